"""What is wrong with a file that others made, in one line that names it. Nothing in such a file is ever executed."""

import io
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UsageError

_OBJECTS = "it has Python objects in it, which are never loaded here: they could run any program; save arrays of numbers"
# What libraries say of files that are sound, but not for them.
_NOT_DAMAGE = {
    r"unknown variant `(\w+)`, expected one of `BOOL`": r"it has numbers of the type \1, which the installed safetensors does "
    "not know; update safetensors, or save the table as F32",
    r"descr is not a valid dtype descriptor: (.*)": r"it has numbers of the type \1, which NumPy does not know; save the table "
    "as float32",
    r"Python objects|Object arrays": _OBJECTS,
}


def check_file(path: Path) -> None:
    """Raises UsageError for a folder, and for pipes and devices, whose reading need not end."""
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "not a regular file" if path.exists() else "no such file"
        raise UsageError(f"{path}: {what}")


def damage_named(path: Path, read: Callable[[], Any]) -> Any:
    """Returns what `read` returns; every error of a library becomes a UsageError that names the file and what is wrong."""
    try:
        # Sizes that overflow are an error: they would become negative, or small.
        with np.errstate(over="raise"):
            return read()
    except Exception as error:
        if isinstance(error, (UsageError, PermissionError)):
            raise
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        for pattern, message in _NOT_DAMAGE.items():
            if (match := re.search(pattern, reason)) is not None:
                raise UsageError(f"{path}: {match.expand(message)}") from error
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
        raise UsageError(f"{path}: an archive of arrays, not a .npy file; call it .npz, or save one array with numpy.save")
    return array


def to_float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The numbers of an array as float32.

    Raises:
      UsageError: a finite number is larger than float32 can hold.
    """
    try:
        with np.errstate(over="raise"):
            return np.ascontiguousarray(array, np.float32)
    except FloatingPointError:
        raise UsageError(f"{path}: {name} has numbers beyond 3.4e38, the largest of float32; scale the table down") from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed .npz file, as `numpy.savez` writes them; they take no more memory than the file has bytes.

    Raises:
      UsageError: the file is missing, damaged or compressed, or has Python objects in it.
    """
    check_file(path)
    return damage_named(path, lambda: _read_archive(path))


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                why = "a short file could claim any size"
                raise UsageError(f"{path}: {member.filename} is compressed, and {why}; save it again with numpy.savez")
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
