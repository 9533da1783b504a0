"""The records of a table on the host: one for each row, with its `nu_token` and the step that wrote it last.

A record is contiguous, so that a row costs one random access and not three. A record of zeros is a row that no batch has had yet:
its values come from a hash (`_initial_rows.py`), so neither memory nor a file has to be written before training.
"""

import importlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of buffers that JAX takes over on a CPU.
_ALIGNMENT = 64


def record_dtype(row_shape: tuple[int, ...], dtype: Any, *, in_file: bool) -> np.dtype:
    """The record of one row, of whole words of 32 bits. In a file it has a checksum.

    NumPy has no 16-bit floats of every kind, so 16-bit rows are stored as their bits.
    """
    stored = np.dtype(np.uint16) if np.dtype(dtype).itemsize == 2 else np.dtype(dtype)
    checksum = [("checksum", np.uint32)] if in_file else []
    return np.dtype([*checksum, ("nu_token", np.float32), ("last", np.int32), ("row", stored, row_shape)], align=True)


def in_memory(num_rows: int, record: np.dtype) -> np.ndarray:
    """Records of zeros in host memory. The operating system gives a page when it is first written."""
    return np.zeros(num_rows, record)


def create_file(path: Path, num_rows: int, record: np.dtype, *, reserve: bool) -> None:
    """A file of zeros. With `reserve`, its space on the disk is reserved, and not written."""
    size = num_rows * record.itemsize
    free = shutil.disk_usage(path.parent).free
    if reserve and size > free:
        raise OSError(
            f"the table needs {size:,} bytes in {path.parent}, where {free:,} are free: choose another path, or pass "
            f"reserve=False to use space only for rows that batches touch."
        )
    with open(path, "wb") as file:
        if reserve and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def open_file(path: Path, num_rows: int, record: np.dtype) -> np.ndarray:
    """The records of a file, mapped into memory. Raises ValueError if the file is missing or has another size."""
    wanted = num_rows * record.itemsize
    found = path.stat().st_size if path.exists() else None
    if found != wanted:
        state = "is missing" if found is None else f"has {found:,} bytes"
        raise ValueError(
            f"{path} {state}, but a table of {num_rows:,} rows needs {wanted:,}: the file was truncated or belongs to another "
            f"table; restore a copy of the whole folder."
        )
    records = np.memmap(path, record, mode="r+", shape=(num_rows,))
    mmap = importlib.import_module("mmap")  # as NumPy does: who has no table in a file does not load it
    mapped: Any = records.base
    if hasattr(mmap, "MADV_RANDOM") and isinstance(mapped, mmap.mmap):
        # Else the system reads 128 KB around each missing record, which fills the page cache. With 100M records a step of 8,192
        # ids took twice the time, also with its own pages in the cache.
        mapped.madvise(mmap.MADV_RANDOM)
    return records


def aligned_zeros(count: int, record: np.dtype) -> np.ndarray:
    """Records of zeros at a multiple of 64 bytes, where JAX uses the memory of the host as it is if the device is a CPU."""
    size = count * record.itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(record)


def take(records: np.ndarray, ids: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
    """A copy of some records. As bytes, NumPy copies each with one memmove."""
    as_bytes = f"V{records.dtype.itemsize}"
    into = np.empty(len(ids), records.dtype) if into is None else into
    np.take(records.view(np.ndarray).view(as_bytes), ids, out=into.view(as_bytes), mode="clip")  # "raise" copies twice
    return into


def take_checked(records: Any, ids: np.ndarray, newest: int, into: np.ndarray | None = None) -> np.ndarray:
    """A copy of some records, whose checksums fit, and which no step after `newest` wrote.

    Raises:
      ValueError: a checksum does not fit, or a record is newer.
    """
    found = take(records, ids, into)
    if "checksum" in (found.dtype.names or ()):
        damaged = np.flatnonzero(found["checksum"] != _checksums(found, ids))
        if len(damaged):
            raise ValueError(
                f"{records.filename} is damaged: the checksums of {len(damaged)} of the {len(ids)} rows of this batch do not "
                f"fit, and the first of them is at {ids[damaged[0]]:,} in the file; restore a copy of the whole folder."
            )
        if len(newer := np.flatnonzero(found["last"] > newest)):
            raise ValueError(
                f"{records.filename} does not fit its save: step {found['last'][newer[0]]} wrote the row at {ids[newer[0]]:,}, "
                f"but the table is at step {newest}. The folder was copied while it was open, or has files of different times: "
                f"restore a copy of the whole folder."
            )
    return found


def _checksums(records: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """A sum of the words of each record modulo 2^32, each times an odd number, so that a change of one word always changes it.

    A record that a step wrote depends on its place too. The checksum of a record of zeros is zero.
    """
    words = words_of(records)[:, 1:]
    factors = np.arange(1, words.shape[1] + 1, dtype=np.uint32) * np.uint32(0x9E3779B2) + np.uint32(1)
    of_place = np.where(records["last"] > 0, ids, 0).astype(np.uint32) * np.uint32(0x85EBCA6B)
    return np.einsum("ij,j->i", words, factors) + of_place


def put(records: np.ndarray, ids: np.ndarray, new: np.ndarray) -> None:
    """Writes some records."""
    as_bytes = f"V{records.dtype.itemsize}"
    records.view(np.ndarray).view(as_bytes)[ids] = new.view(as_bytes)


def pack(ids: np.ndarray, rows: np.ndarray, nu_token: np.ndarray, last: np.ndarray, record: np.dtype, dtype: Any) -> np.ndarray:
    """The records of some rows."""
    new = np.zeros(len(rows), record)
    stored = np.asarray(rows).astype(dtype, copy=False)
    new["row"] = stored.view(np.uint16) if stored.dtype.itemsize == 2 else stored
    new["nu_token"], new["last"] = nu_token, last
    if "checksum" in (record.names or ()):
        new["checksum"] = _checksums(new, ids)
    return new


def words_of(records: np.ndarray) -> np.ndarray:
    """Records as words of 32 bits, (N, words)."""
    return records.view(np.uint32).reshape(len(records), records.dtype.itemsize // 4)


def unpacked(words: jax.Array, row_shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rows of some records in the table's dtype, their `nu_token` and `last`, from their words on the device."""
    num_features, per_word = math.prod(row_shape), 4 // dtype.itemsize
    of_state, of_rows = jnp.split(words, [words.shape[1] - math.ceil(num_features / per_word)], axis=1)
    nu_token, last = (jax.lax.bitcast_convert_type(of_state[:, at], kind) for at, kind in ((-2, jnp.float32), (-1, jnp.int32)))
    flat = jax.lax.bitcast_convert_type(of_rows, dtype).reshape(len(words), -1)  # of 16 bits: the low half of a word comes first
    return flat[:, :num_features].reshape(len(words), *row_shape), nu_token, last
