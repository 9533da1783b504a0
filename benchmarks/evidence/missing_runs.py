"""The runs that are missing, and what they cost."""

import importlib
from statistics import mean

from benchmarks.evidence import pairs
from benchmarks.evidence.methods import title
from benchmarks.evidence.pairs import PairCell
from benchmarks.evidence.plan import Cell
from benchmarks.evidence.records import Records
from benchmarks.evidence.studies import TASKS, Study
from benchmarks.harness.report import markdown


def missing(study: Study, records: dict[str, Records]) -> str:
    """The cells that are not complete, by setting: how many runs they need, and the hours of one core."""
    cells = {(type(cell), *cell[:3]): cell for cell in (*study.pairs, *study.cells)}.values()
    usual = _usual_number(study, records)
    found: dict[tuple[str, str, str], list[tuple[str, int, float]]] = {}
    for cell in cells:
        of_task = records.get(cell.task, {})
        if runs := cell.missing(of_task):
            if isinstance(cell, PairCell) and cell.method != "frozen":
                runs = max(runs, usual.get(cell.grid_seeds, 0) - _number(cell, of_task))
            key = TASKS[cell.task].title, cell.setting, "one" if isinstance(cell, Cell) else "two"
            found.setdefault(key, []).append((title(cell.method), runs, runs * _seconds(cell, of_task) / 3600))
    rows = [(*key, "; ".join(name for name, _, _ in lacking), *_sums(lacking)) for key, lacking in found.items()]
    rows.append(("All", "", "", "", *_sums([one for lacking in found.values() for one in lacking])))
    headers = ("task", "setting", "rates", "tables trained by", "runs", "hours of a core")
    return markdown(rows, headers, names=4) if found else ""


def _sums(lacking: list[tuple[str, int, float]]) -> tuple[str, str]:
    return f"{sum(runs for _, runs, _ in lacking):,}", f"{sum(hours for _, _, hours in lacking):.1f}"


def _usual_number(study: Study, records: dict[str, Records]) -> dict[tuple[int, ...], int]:
    """How many runs a finished cell took, by the seeds of its grid: more than those of its first grid, which is extended."""
    taken: dict[tuple[int, ...], list[int]] = {}
    for cell in study.pairs:
        of_task = records.get(cell.task, {})
        if not cell.missing(of_task) and cell.method != "frozen":
            taken.setdefault(cell.grid_seeds, []).append(_number(cell, of_task))
    return {seeds: round(mean(numbers)) for seeds, numbers in taken.items()}


def _number(cell: PairCell, records: Records) -> int:
    return sum(len(runs) for runs in pairs.tried(cell, records).values()) + len(pairs.fresh(cell, records))


def _seconds(cell: Cell | PairCell, records: Records) -> float:
    """Seconds of a core for one run: by the finished runs of the setting, else by those of another setting and the work of both.

    NaN if the task has no finished run.
    """
    of_setting = _measured(records)
    if cell.setting in of_setting:
        return of_setting[cell.setting]
    settings = importlib.import_module(f"benchmarks.evidence.{cell.task}").SETTINGS
    # Small settings spend most of their time outside of the products, so the largest one that was run is nearest.
    known = {setting: settings[setting].work for setting in of_setting if setting in settings}
    if not known:
        return float("nan")
    nearest = max(known, key=lambda setting: known[setting])
    return of_setting[nearest] * settings[cell.setting].work / known[nearest]


def _measured(records: Records) -> dict[str, float]:
    """The mean time of each setting: by processor time where lines have it, else by the clock."""
    found: dict[str, list[dict[str, float]]] = {}
    for run, record in records.items():
        found.setdefault(run.setting, []).append(record.details)
    means = {}
    for setting, details in found.items():
        times = [d["processor_seconds"] for d in details if "processor_seconds" in d] or [
            d["seconds"] for d in details if "seconds" in d
        ]
        if times:
            means[setting] = mean(times)
    return means
