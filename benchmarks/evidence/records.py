"""Finished runs as lines of JSON: appended as they come, so that a sweep that is killed loses the run it was at and no other."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.results import RESULTS

FOLDER = RESULTS / "evidence"


class Run(NamedTuple):
    """What names a run: a task's setting, what trains the tables at which peak rate, and the seed of all that is random.

    `head_rate` is the peak rate of the heads where it is not `rate`, which is then that of the input tables alone.
    """

    task: str
    setting: str
    method: str
    rate: float
    seed: int
    head_rate: float | None = None


class Record(NamedTuple):
    """A finished run and what it measured.

    Attributes:
      loss: what the task compares at the end of the decay, lower is better; None of a run that diverged.
      details: everything else, as JSON has it.
    """

    run: Run
    loss: float | None
    details: dict[str, Any]

    @property
    def value(self) -> float:
        """The loss to compare by: infinite of a run that diverged."""
        return float("inf") if self.loss is None else self.loss


Records = dict[Run, Record]


def read(path: Path) -> Records:
    """The finished runs of a file, none without it; a last line that was cut off is left out.

    Raises:
      ValueError: a line before the last is damaged.
    """
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    records = {}
    for number, line in enumerate(lines, 1):
        try:
            record = _record(json.loads(line))
        except (ValueError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: {error}; remove that line to have its run made again") from error
        records[record.run] = record
    return records


def path_of(folder: Path, task: str, setting: str) -> Path:
    """The file of a task's setting."""
    return folder / task / f"{re.sub('[^0-9A-Za-z.]+', '_', setting)}.jsonl"


def read_all(folder: Path = FOLDER) -> dict[str, Records]:
    """The finished runs of every task, by its name."""
    found: dict[str, Records] = {}
    for path in sorted(folder.glob("*/*.jsonl")):
        found.setdefault(path.parent.name, {}).update(read(path))
    return found


def append(path: Path, record: Record) -> None:
    """Adds a finished run, and first ends a line that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = {field: value for field, value in record.run._asdict().items() if value is not None}
    line = json.dumps(name | {"loss": record.loss} | record.details, separators=(",", ":"), allow_nan=False)
    with path.open("a+b") as file:
        if file.tell() and not _ends_with_newline(path):
            _drop_last_line(path)
        file.write(line.encode() + b"\n")


def merge(source: Path, folder: Path) -> int:
    """Adds the runs of another folder of results that are missing in `folder`; returns how many."""
    added = 0
    for path in sorted(source.glob("*/*.jsonl")):
        target = folder / path.relative_to(source)
        known = read(target)
        for run, record in read(path).items():
            if run not in known:
                append(target, record)
                added += 1
    return added


def rounded(values: Iterable[float], digits: int = 5) -> list[float | None]:
    """Numbers as the lines keep them; None of those that are not finite, which JSON cannot hold."""
    return [float(f"{value:.{digits}g}") if abs(value) < float("inf") else None for value in map(float, values)]


def _record(line: dict[str, Any]) -> Record:
    run = Run(*(line.pop(field) for field in Run._fields if field != "head_rate"), head_rate=line.pop("head_rate", None))
    return Record(run, line.pop("loss"), line)


def _ends_with_newline(path: Path) -> bool:
    return path.read_bytes()[-1:] == b"\n"


def _drop_last_line(path: Path) -> None:
    kept, newline, _ = path.read_bytes().rpartition(b"\n")
    path.write_bytes(kept + newline)
