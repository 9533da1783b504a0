"""The comparisons with two rates, made from the finished runs: every method at its own best pair, against each baseline."""

import math
from collections.abc import Iterable
from statistics import mean
from typing import NamedTuple

from benchmarks.evidence import pairs
from benchmarks.evidence.comparison import paired
from benchmarks.evidence.likeness import UnlikeRunsError, check_alike
from benchmarks.evidence.pairs import BestPair, Pair, PairCell
from benchmarks.evidence.records import Record, Records
from benchmarks.evidence.statistics import Difference, Spread, spread


class PairResult(NamedTuple):
    """One method in one setting.

    Attributes:
      cell: which.
      best: its best pair of rates, and whether its four neighbours were tried and worse.
      grid: the runs with the seeds of the grid, by pair and seed.
      fresh: the runs with fresh seeds at the best pair, by seed.
      losses: spread of the fresh runs; None before there are any.
      diverged: runs that did, of all.
    """

    cell: PairCell
    best: BestPair
    grid: dict[Pair, dict[int, Record]]
    fresh: dict[int, Record]
    losses: Spread | None
    diverged: int

    @property
    def is_complete(self) -> bool:
        """Whether the best pair is inside what was tried, and all fresh seeds are there."""
        return self.best.inside and len(self.fresh) == self.cell.seeds

    @property
    def grid_mean(self) -> float:
        """The mean at the best pair over the seeds of the grid, which are no fresh seeds: to choose by."""
        return mean_of(self.grid[self.best.pair])

    @property
    def table_state_bytes(self) -> int:
        """Of the tables' optimizer state."""
        return next(iter(self.grid[self.best.pair].values())).details["table_state_bytes"]


PairResults = dict[tuple[str, str, str], PairResult]


def pair_results(cells: Iterable[PairCell], records: dict[str, Records]) -> PairResults:
    """The results of every cell that has a pair with all seeds of the grid, by task, setting and method.

    Of a cell that comes twice the last counts, which has more seeds.

    Raises:
      UnlikeRunsError: runs of one cell differ in more than their rates and seeds.
    """
    found = {(cell.task, cell.setting, cell.method): _result(cell, records.get(cell.task, {})) for cell in cells}
    return {key: result for key, result in found.items() if result}


def against(results: PairResults, key: tuple[str, str, str], baseline: str) -> Difference | str | None:
    """A method's difference to a baseline in its setting, the reason where it is refused, None without a pair of runs."""
    ours, theirs = results.get(key), results.get((*key[:2], baseline))
    if not ours or not theirs or key[2] == baseline:
        return None
    try:
        return paired(ours.fresh, theirs.fresh)
    except UnlikeRunsError as error:
        return str(error)


def best_of(results: PairResults, task: str, setting: str, methods: Iterable[str]) -> str | None:
    """The method that is best on the seeds of the grid, so that fresh seeds do not choose whom they are compared with."""
    found = [result for method in methods if (result := results.get((task, setting, method)))]
    return min(found, key=lambda result: result.grid_mean).cell.method if found else None


def mean_of(runs: dict[int, Record]) -> float:
    """Mean loss, infinite where a run diverged."""
    values = [record.value for record in runs.values()]
    return mean(values) if all(map(math.isfinite, values)) else math.inf


def _result(cell: PairCell, records: Records) -> PairResult | None:
    grid, found = pairs.tried(cell, records), pairs.best(cell, records)
    if found is None:
        return None
    for runs in grid.values():
        for seed, record in runs.items():
            if seed in grid[found.pair]:
                check_alike(record, grid[found.pair][seed])
    fresh = pairs.fresh(cell, records)
    for record in fresh.values():
        check_alike(next(iter(grid[found.pair].values())), record, ignored=("seed", "base"))
    every = [*fresh.values(), *(record for runs in grid.values() for record in runs.values())]
    losses = spread([record.value for record in fresh.values()]) if fresh else None
    return PairResult(cell, found, grid, fresh, losses, sum(record.loss is None for record in every))
