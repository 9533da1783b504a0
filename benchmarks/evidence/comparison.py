"""The comparisons of a sweep, made from its finished runs: every method at its own best rate, paired with the baseline."""

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.evidence import plan
from benchmarks.evidence.likeness import UnlikeRunsError, check_alike
from benchmarks.evidence.plan import Cell
from benchmarks.evidence.records import Record, Records
from benchmarks.evidence.statistics import Difference, Spread, paired_difference, spread
from benchmarks.evidence.studies import BASELINE


class Result(NamedTuple):
    """One method in one setting.

    Attributes:
      cell: which.
      best: its best rate, and whether it has worse neighbours on both sides.
      sweep: the runs at all rates, by rate.
      fresh: the runs with fresh seeds at the best rate, by seed.
      losses: spread of the fresh runs; None before there are any.
      difference: to the baseline, over the seeds that both have; None of the baseline itself, without pairs, and where the
        pairs are refused.
      diverged: runs that did, of all.
      refused: why the difference was refused: a pair of runs that differ in more than the method.
    """

    cell: Cell
    best: plan.Best
    sweep: dict[float, Record]
    fresh: dict[int, Record]
    losses: Spread | None
    difference: Difference | None
    diverged: int
    refused: str | None = None

    @property
    def table_state_bytes(self) -> int:
        """Of the tables' optimizer state."""
        return self.any.details["table_state_bytes"]

    @property
    def any(self) -> Record:
        """One of the runs, for what all have in common."""
        return self.sweep[self.best.rate]

    @property
    def is_complete(self) -> bool:
        """Whether the fairness rules are met: the best rate is inside what was tried, and all fresh seeds are there."""
        return self.best.inside and len(self.fresh) == self.cell.seeds


def results(cells: Iterable[Cell], records: dict[str, Records]) -> dict[tuple[str, str, str], Result]:
    """The results of every cell with a finished run, by task, setting and method."""
    cells = list(dict.fromkeys(cells))
    found = {(cell.task, cell.setting, cell.method): result for cell in cells if (result := _result(cell, cells, records))}
    return found


def _result(cell: Cell, cells: list[Cell], records: dict[str, Records]) -> Result | None:
    of_task = records.get(cell.task, {})
    best = plan.best(cell, of_task)
    if best is None:
        return None
    sweep, fresh = plan.tried(cell, of_task), plan.fresh(cell, of_task)
    losses = spread([record.value for record in fresh.values()]) if fresh else None
    diverged = sum(record.loss is None for record in {**sweep, **{-seed: record for seed, record in fresh.items()}}.values())
    try:
        for record in fresh.values():  # the sweep chose the rate for runs of its own text and settings
            check_alike(sweep[best.rate], record, ignored=("seed", "base"))
        return Result(cell, best, sweep, fresh, losses, _difference(cell, fresh, cells, of_task), diverged)
    except UnlikeRunsError as error:
        return Result(cell, best, sweep, fresh, losses, None, diverged, str(error))


def paired(ours: dict[int, Record], theirs: dict[int, Record], ignored: tuple[str, ...] = ()) -> Difference | None:
    """The difference over the seeds that both have; None without any. `ignored` is that of `check_alike`.

    Raises:
      UnlikeRunsError: runs of a seed differ in more than method and rates.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    for seed in seeds:
        check_alike(ours[seed], theirs[seed], ignored)
    return paired_difference([ours[s].value for s in seeds], [theirs[s].value for s in seeds]) if seeds else None


def _difference(cell: Cell, fresh: dict[int, Record], cells: list[Cell], records: Records) -> Difference | None:
    baselines = [other for other in cells if other[:2] == cell[:2] and other.method == BASELINE]
    if cell.method == BASELINE or not baselines:
        return None
    return paired(fresh, plan.fresh(baselines[0], records))
