"""The file of a save: what the table is, the state that is not in its records, and the user's tree. It is replaced as a whole."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MARK = b"ember_optax large table 1\n"


def write_beside(path: Path, header: dict[str, Any], arrays: list[tuple[str, np.ndarray]]) -> None:
    """Writes the file that will replace `path`, and syncs it."""
    listed = [[name, list(array.shape), array.dtype.name] for name, array in arrays]
    head = json.dumps({**header, "arrays": listed}).encode()
    beside = beside_of(path)
    try:
        with open(beside, "wb") as file:
            checksum = 0
            for part in (_MARK, len(head).to_bytes(8, "little"), head, *(array.tobytes() for _, array in arrays)):
                checksum = zlib.crc32(part, checksum)
                file.write(part)
            file.write(checksum.to_bytes(4, "little"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, f"nothing was saved ({error.strerror}); the last save is as it was", str(path)) from error
    sync_folder(path.parent)


def replace(path: Path) -> None:
    """Makes the file beside `path` that of `path`, which is the old one or the new one at every time."""
    os.replace(beside_of(path), path)
    sync_folder(path.parent)


def beside_of(path: Path) -> Path:
    """The name of the file that will replace `path`."""
    return path.with_suffix(".new")


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable, where the operating system can."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def read(path: Path) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """The header and the named arrays.

    Raises:
      ValueError: the file is damaged or of another kind.
    """
    data = path.read_bytes()
    if not data.startswith(_MARK):
        raise ValueError(f"{path} is no save of a large table; pass the folder that HostTable made.")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError(f"{path} is damaged: its checksum does not fit its {len(data):,} bytes; restore a copy of the folder.")
    start = len(_MARK) + 8
    size = int.from_bytes(data[len(_MARK) : start], "little")
    header = json.loads(data[start : start + size])
    start, arrays = start + size, []
    for name, shape, dtype in header.pop("arrays"):
        array = np.frombuffer(data, jnp.dtype(dtype), int(np.prod(shape)), start).reshape(shape)
        arrays.append((name, array))
        start += array.nbytes
    return header, arrays


def named_arrays(tree: Any) -> list[tuple[str, np.ndarray]]:
    """The leaves of a tree by path, on the host.

    Raises:
      TypeError: a leaf is not an array of numbers.
      ValueError: a leaf is split over processes.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if not is_key and not getattr(leaf, "is_fully_replicated", True) and not leaf.is_fully_addressable:
            raise ValueError(
                f"the leaf {name or 'tree'} is split over processes, of which each saves what it has whole: save what "
                f"jax.experimental.multihost_utils.process_allgather(leaf, tiled=True) returns."
            )
        array = None if is_key else np.asarray(leaf)
        if array is None or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
            fix = "save jax.random.key_data of it" if is_key else "save arrays and numbers only"
            raise TypeError(f"the leaf {name or 'tree'} is {type(leaf).__name__}, which a save cannot hold: {fix}.")
        restored = jnp.result_type(leaf)
        if array.dtype != restored and not isinstance(leaf, int | float | complex):
            raise TypeError(f"the leaf {name or 'tree'} is {array.dtype}, which JAX restores as {restored}: save that.")
        array = array.astype(restored)
        found.append((name, array))
    return found


def fitted(arrays: list[tuple[str, np.ndarray]], like: Any) -> Any:
    """The arrays in the structure of `like`.

    Raises:
      ValueError: a path, a shape or a dtype differs.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    saved = {name: (array.shape, array.dtype) for name, array in arrays}
    wanted = {jax.tree_util.keystr(path): (jnp.shape(leaf), jnp.result_type(leaf)) for path, leaf in leaves}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise ValueError(
                f"the save does not fit `like`: {name or 'the tree'} is {_shown(saved, name)} in the save and "
                f"{_shown(wanted, name)} in `like`; pass a tree of the structure, shapes and dtypes that were saved."
            )
    by_name = dict(arrays)  # a tree of the same paths may have another order
    restored = [_placed(by_name[jax.tree_util.keystr(path)], leaf) for path, leaf in leaves]
    return jax.tree_util.tree_unflatten(treedef, restored)


def _placed(array: np.ndarray, like: Any) -> jax.Array:
    """The array, over all processes if `like` is."""
    sharding = getattr(like, "sharding", None)
    if sharding is None or sharding.is_fully_addressable:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _shown(of: dict[str, Any], name: str) -> str:
    return f"{of[name][1]}{list(of[name][0])}" if name in of else "missing"
