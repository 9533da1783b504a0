"""The undo log of a table in a file: what rows were at the last save, written before a step overwrites them.

A row is logged when a step writes it for the first time after a save. So the log and the file together are the table at the last
save, whenever the process dies. An entry is a header, the ids, the old records and a checksum.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import _records

_HEADER = struct.Struct("<4sQQ")  # a mark, the steps taken before this one, the number of records; then their checksum
_CHECKSUM = struct.Struct("<I")
_MARK = b"EMU2"


class UndoLog:
    """A file to which entries are appended. `sync` makes each entry durable before its rows are overwritten."""

    def __init__(self, path: Path, *, sync: bool):
        self.path, self._sync = path, sync
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)

    def append(self, steps: int, ids: np.ndarray, records: np.ndarray) -> None:
        """Writes one entry. If that fails, the log is as before, and the table's rows were not touched."""
        header = _HEADER.pack(_MARK, steps, len(ids))
        body = header + _checksum(header) + ids.astype("<u4").tobytes() + records.tobytes()
        before = os.fstat(self._file).st_size
        try:
            _write_all(self._file, body + _checksum(body))
            if self._sync:
                os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise OSError(
                error.errno,
                f"the step was not written, because the undo log cannot grow ({error.strerror}): free space in "
                f"{self.path.parent}, then write again or save",
                str(self.path),
            ) from error

    def close(self, *, remove: bool = False) -> None:
        os.close(self._file)
        if remove:
            self.path.unlink()


def entries(path: Path, record: np.dtype) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The steps, ids and records of each whole entry.

    A process that dies while it appends leaves a part of an entry at the end, and has not touched the rows of that entry yet.

    Raises:
      ValueError: an entry before the end is damaged.
    """
    data = path.read_bytes()
    start = 0

    def check(begin: int, end: int) -> None:
        if data[end : end + _CHECKSUM.size] != _checksum(data[begin:end]):
            raise ValueError(f"{path} is damaged at byte {begin}: the last save cannot be restored from it; restore a copy.")

    while (ids_start := start + _HEADER.size + _CHECKSUM.size) <= len(data):
        check(start, start + _HEADER.size)
        mark, steps, count = _HEADER.unpack_from(data, start)
        body_end = ids_start + count * (4 + record.itemsize)
        if mark != _MARK:
            raise ValueError(f"{path} is no undo log of this version: restore a copy, or open it with the version that wrote it.")
        if body_end + _CHECKSUM.size > len(data):
            return
        check(start, body_end)
        ids = np.frombuffer(data, "<u4", count, ids_start)
        yield steps, ids, np.frombuffer(data, record, count, ids_start + 4 * count)
        start = body_end + _CHECKSUM.size


def _checksum(data: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(data))


def roll_back(records: np.ndarray, path: Path, steps_at_save: int) -> int:
    """Writes the logged records back. Returns the number of steps that are undone by it."""
    steps_lost = 0
    for steps, ids, old in entries(path, records.dtype):
        steps_lost = steps + 1 - steps_at_save
        _records.put(records, ids, old)
    return steps_lost


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
