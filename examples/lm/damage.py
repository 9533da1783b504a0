"""What is wrong with a file that others made, in one line that names it. Nothing in such a file is ever executed."""

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UsageError


def check_file(path: Path) -> None:
    """Raises UsageError for a folder, and for pipes and devices, whose reading need not end."""
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "not a regular file" if path.exists() else "no such file"
        raise UsageError(f"{path}: {what}")


def damage_named(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns; whatever a library makes of a damaged file becomes a UsageError that names it."""
    try:
        # Sizes that overflow are no warning: they become negative, or small.
        with np.errstate(over="raise"):
            return read()
    except Exception as error:
        if isinstance(error, (UsageError, PermissionError)):
            raise
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise UsageError(f"{path}: the file is damaged, or not what its name says: {reason}; get or convert it again") from error


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped: a size that the file only claims is an error and not an allocation.

    Raises:
      UsageError: the file is missing, damaged, an archive or has Python objects in it.
    """
    check_file(path)
    array = damage_named(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    if not isinstance(array, np.ndarray):
        array.close()
        raise UsageError(f"{path}: an archive of arrays, not a .npy file; save the array that is wanted with numpy.save")
    return array


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed .npz file, as `numpy.savez` writes them; they take no more memory than the file has bytes.

    Raises:
      UsageError: the file is damaged, has Python objects in it, or is compressed: a short file can claim any size then.
    """
    return damage_named(path, lambda: _read_archive(path))


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} is compressed")
            if member.file_size > path.stat().st_size:
                raise ValueError(f"{member.filename} claims to have {member.file_size:,} bytes, more than the file")
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError(f"two of its members have one name, among {listed(names)}")
        return {name.removesuffix(".npy"): _decoded(archive.read(name), name) for name in names}


def _decoded(content: bytes, name: str) -> np.ndarray:
    """`numpy.load` would make room for all numbers that the header claims, before it looks for them."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"{name} is of version {version}")
    shape, fortran_order, dtype = headers[version](stream)
    if dtype.hasobject:
        raise ValueError(f"{name} has Python objects in it")
    claimed, found = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if claimed != found or min(shape, default=0) < 0:
        raise ValueError(f"{name} claims to have {claimed:,} bytes of {dtype} in shape {shape}, and has {found:,}")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran_order else "C")


def listed(names: list[str], most: int = 5) -> str:
    """The first of some names."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + rest
