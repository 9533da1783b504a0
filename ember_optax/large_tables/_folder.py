"""The folder of a table in a file: `rows`, `save`, the undo log of the steps since the save, and a lock for one writer.

A save syncs the rows, then writes the file `save.new`, then renames it to `save`, then removes the log. Each log has the number
of its save in its name. So a log that a dying process did not remove is known to be older than the save, and is ignored.

Each of several processes has a folder of its own, and renames its file only when all of them have written theirs. When the
folders are opened, the newest save that all of them have is the last save. If a process has written the next one, but another has
not, it removes it and applies its log. If all have written it, those that have not renamed it yet do so.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from . import _records, _save_file
from ._agreement import attempt, common_save
from ._layouts import Layout
from ._part import locked, part_of
from ._undo_log import UndoLog, roll_back

_NAMES = {"rows", "save", "save.new", "lock", "new"}


class Folder:
    """Opens or creates the folder, and restores the last save if a process died after it.

    Attributes:
      records: the records of all rows of this process.
      header: the header of the last save, with the counts and `nu_feature`.
      steps_lost: steps that were undone.
    """

    def __init__(self, path: Any, table: dict[str, Any], record: np.dtype, layout: Layout, *, reserve: bool, sync_log: bool):
        self._table, self._record, self._layout = {**table, "part": [layout.part, layout.parts]}, record, layout
        self._reserve, self._sync_log, self._log, self._lock = reserve, sync_log, None, None
        what = "open its part of the table"
        try:
            number = common_save(layout, attempt(layout, lambda: self._saves(path)).checked(what))
            self.steps_lost = layout.largest(attempt(layout, lambda: self._open(number)).checked(what))
        except BaseException:
            self.close()
            raise

    def _saves(self, path: Any) -> list[int]:
        """Locks the folder. Returns the number of its last save, and of the next one if that was written but not renamed."""
        self.path = part_of(path, self._layout)
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_names()
        self._lock = locked(self.path)
        self.header: dict[str, Any] = {"save": 0, "count": 0, "total_notfinite": 0}
        if (self.path / "save").exists():  # else it is new, or a process died while it made the folder
            self._read_header()
        return [self.header["save"], *([self.header["save"] + 1] if self._has_next() else [])]

    def _has_next(self) -> bool:
        """Whether the next save was written as a whole. One process alone does not need it."""
        beside = _save_file.beside_of(self.path / "save")
        if self._layout.parts == 1 or not beside.exists():
            return False
        try:
            return _save_file.read(beside)[0]["save"] == self.header["save"] + 1
        except ValueError:  # it was written in part
            return False

    def _open(self, number: int) -> int:
        """Makes a save the last one. Returns the number of steps that were undone for it."""
        if number > self.header["save"]:
            _save_file.replace(self.path / "save")
            self._read_header()
        _save_file.beside_of(self.path / "save").unlink(missing_ok=True)
        rows, num_rows, steps_lost = self.path / "rows", self._layout.rows_here(self._table["shape"][0]), 0
        if not number:
            self._check_no_save_is_lost(rows)
            _records.create_file(rows, num_rows, self._record, reserve=self._reserve)
        self.records = _records.open_file(rows, num_rows, self._record)
        log = self._log_path()
        if number and log.exists():
            steps_lost = roll_back(self.records, log, self.header["count"] + self.header["total_notfinite"])
            self.records.flush()  # pyright: ignore[reportAttributeAccessIssue]
        self._remove_logs()
        return steps_lost

    def _check_no_save_is_lost(self, rows: Path) -> None:
        """Only a process that died while it made the folder leaves rows without a save, and the file `new` beside them."""
        if rows.exists() and not (self.path / "new").exists():
            raise ValueError(f"{rows} has rows, but its save is missing: restore a copy of the whole folder, or remove it.")
        (self.path / "new").touch()

    def before_overwriting(self, steps: int, ids: np.ndarray, old: np.ndarray) -> None:
        """Logs the records that a step is about to write for the first time since the save."""
        if self._log is None:
            self._log = UndoLog(self._log_path(), sync=self._sync_log)
        first = old["last"] <= self.header["count"]
        self._log.append(steps, ids[first], old[first])

    def save(self, state: dict[str, Any], tree: Any) -> None:
        """Makes the rows and the tree the last save, in all processes or in none."""
        header = {"save": self.header["save"] + 1, **state}

        def write() -> None:
            named = _save_file.named_arrays(tree)  # raises before anything is written
            self.records.flush()  # pyright: ignore[reportAttributeAccessIssue]
            _save_file.write_beside(self.path / "save", {"table": self._table, **header}, named)

        try:
            outcome = attempt(self._layout, write)
            if outcome.failed:
                _save_file.beside_of(self.path / "save").unlink(missing_ok=True)
            else:
                _save_file.replace(self.path / "save")
                self.header = header
                (self.path / "new").unlink(missing_ok=True)
                self._close_log()
                self._remove_logs()
        except BaseException:  # an interrupt, or a process is gone: which save is the last is seen when the folder is opened
            self.close()
            raise
        outcome.checked("save")

    def read_save(self) -> list[tuple[str, np.ndarray]]:
        """The arrays of the last save."""
        return _save_file.read(self.path / "save")[1]

    def is_closed(self) -> bool:
        """Whether the folder was closed, also by a save of which nobody knows whether it is the last."""
        return self._lock is None

    def close(self) -> None:
        """Closes the files. Steps after the last save are undone when the folder is opened again."""
        self._close_log()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _log_path(self) -> Path:
        return self.path / f"undo.{self.header['save']}"

    def _remove_logs(self) -> None:
        for log in self.path.glob("undo.*"):
            log.unlink()

    def _check_names(self) -> None:
        others = sorted(p.name for p in self.path.iterdir() if p.name not in _NAMES and not p.name.startswith("undo."))
        if others:
            raise ValueError(f"path {str(self.path)!r} holds other files, {others[:5]}: pass a new folder, or one of a table.")

    def _read_header(self) -> None:
        self.header, _ = _save_file.read(self.path / "save")
        saved = self.header.pop("table")
        for name, value in self._table.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{name} is {value!r}, but the table in {str(self.path)!r} was made with {saved.get(name)!r}: pass that "
                    f"value, or another path for a new table."
                )
