"""The folder of a table in a file: `rows`, `save`, the undo log of the steps since the save, and a lock for one writer.

A save syncs the rows, then replaces the file `save`, then removes the log. Each log has the number of its save in its name. So a
log that a dying process did not remove is known to be older than the save, and is ignored.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from .._tree.inputs import shown
from . import _records, _save_file
from ._undo_log import UndoLog, roll_back

try:
    import fcntl
except ImportError:  # Windows has no flock, and two writers are not noticed there
    fcntl = None  # pyright: ignore[reportAssignmentType]

_NAMES = {"rows", "save", "save.new", "lock"}


class Folder:
    """Opens or creates the folder, and restores the last save if a process died after it.

    Attributes:
      records: the records of all rows.
      header: the header of the last save, with the counts and `nu_feature`.
      steps_lost: steps that were undone.
    """

    def __init__(self, path: Any, table: dict[str, Any], record: np.dtype, *, reserve: bool, sync_log: bool):
        self.path, self._table, self._sync_log, self._log = _checked(path), table, sync_log, None
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_names()
        self._lock = _locked(self.path)
        try:
            self._open(record, reserve)
        except BaseException:
            self.close()
            raise

    def _open(self, record: np.dtype, reserve: bool) -> None:
        num_rows = self._table["shape"][0]
        self.steps_lost = 0
        self.header: dict[str, Any]
        if not (self.path / "save").exists():  # new, or a process died while it made the folder
            _records.create_file(self.path / "rows", num_rows, record, reserve=reserve)
            self.records = _records.open_file(self.path / "rows", num_rows, record)
            self.header = {"save": 0, "count": 0, "total_notfinite": 0}
            return
        self.header, _ = _save_file.read(self.path / "save")
        self._check_table(self.header.pop("table"))
        self.records = _records.open_file(self.path / "rows", num_rows, record)
        log = self._log_path()
        if log.exists():
            self.steps_lost = roll_back(self.records, log, self.header["count"] + self.header["total_notfinite"])
            self.records.flush()  # pyright: ignore[reportAttributeAccessIssue]
        self._remove_logs()

    def before_overwriting(self, steps: int, ids: np.ndarray, old: np.ndarray) -> None:
        """Logs the records that a step is about to write for the first time since the save."""
        if self._log is None:
            self._log = UndoLog(self._log_path(), sync=self._sync_log)
        first = old["last"] <= self.header["count"]
        self._log.append(steps, ids[first], old[first])

    def save(self, state: dict[str, Any], tree: Any) -> None:
        """Makes the rows and the tree the last save."""
        _save_file.named_arrays(tree)  # raises before anything is written
        self.records.flush()  # pyright: ignore[reportAttributeAccessIssue]
        header = {"save": self.header["save"] + 1, **state}
        _save_file.write(self.path / "save", {"table": self._table, **header}, tree)
        self.header = header
        if self._log is not None:
            self._log.close()
            self._log = None
        self._remove_logs()

    def read_save(self) -> list[tuple[str, np.ndarray]]:
        """The arrays of the last save."""
        return _save_file.read(self.path / "save")[1]

    def close(self) -> None:
        """Closes the files. Steps after the last save are undone when the folder is opened again."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _log_path(self) -> Path:
        return self.path / f"undo.{self.header['save']}"

    def _remove_logs(self) -> None:
        for log in self.path.glob("undo.*"):
            log.unlink()

    def _check_names(self) -> None:
        others = sorted(p.name for p in self.path.iterdir() if p.name not in _NAMES and not p.name.startswith("undo."))
        if others:
            raise ValueError(f"path {str(self.path)!r} holds other files, {others[:5]}: pass a new folder, or one of a table.")

    def _check_table(self, saved: dict[str, Any]) -> None:
        for name, value in self._table.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{name} is {value!r}, but the table in {str(self.path)!r} was made with {saved.get(name)!r}: pass that "
                    f"value, or another path for a new table."
                )


def _checked(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise TypeError(f"path must be the name of a folder, got {shown(path)}; pass path='memory', or None for host memory.")
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"path {str(path)!r} is a file, but a table needs a folder: pass another name.")
    return path


def _locked(path: Path) -> int | None:
    """The number of the lock's file. The operating system unlocks it when the process ends, however it ends."""
    number = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        raise ValueError(
            f"path {str(path)!r} is open in another HostTable: two writers would mix their steps. Close the other, or pass "
            f"another path."
        ) from None
    return number
