"""Two peak rates, one of the input tables and one of the heads: which run comes next, as pure functions of what is finished.

Every method is run at each pair of the same grid with the same few seeds, or with one seed where a run takes long. The best pair
is the one with the lowest mean. The grid is extended until each of the pair's four neighbours (one rate a step of 1, 2, 5, 10,
... up or down) was tried and was worse. At that pair alone it is run with fresh seeds.
"""

import itertools
from statistics import mean
from typing import NamedTuple

from benchmarks.evidence.plan import SWEEP_SEED, neighbour
from benchmarks.evidence.records import Record, Records, Run

# None of them is a fresh seed.
GRID_SEEDS = (SWEEP_SEED, 101, 102)
# A pair behind the first grid that is so much worse with the first seed needs no other: differences of pairs of equal seeds
# vary by a fifth of it.
CLEARLY_WORSE = 0.05
# After this many extensions, a best pair at an edge of the grid is reported as being at the edge.
MOST_EXTENSIONS = 24

Pair = tuple[float, float]


class PairCell(NamedTuple):
    """One method in one setting: the rates of the input tables and of the heads to begin with, and the number of fresh seeds.

    `also` are pairs that are run with the seeds of the grid in any case: equal rates, to see what the second rate is worth.
    `grid_seeds` are the seeds with which pairs are tried.
    """

    task: str
    setting: str
    method: str
    rates: tuple[float, ...]
    head_rates: tuple[float, ...]
    seeds: int
    also: tuple[Pair, ...] = ()
    grid_seeds: tuple[int, ...] = GRID_SEEDS

    def run(self, pair: Pair, seed: int) -> Run:
        """A run of this cell."""
        return Run(self.task, self.setting, self.method, pair[0], seed, pair[1])

    def next_run(self, records: Records) -> Run | None:
        """The first run that is missing, None once the cell is complete."""
        return next((run for run in _runs(self, records) if run not in records), None)

    def missing(self, records: Records) -> int:
        """How many runs are missing at least: the grid may have to be extended."""
        fresh = self.seeds if best(self, records) is None else 0
        return fresh + sum(run not in records for run in _runs(self, records))


class BestPair(NamedTuple):
    """The best pair so far, and whether its neighbours on all four sides were tried and were worse."""

    pair: Pair
    inside: bool


def tried(cell: PairCell, records: Records) -> dict[Pair, dict[int, Record]]:
    """What the grid has: the runs of each pair by seed, in increasing order of the pairs."""
    found: dict[Pair, dict[int, Record]] = {}
    for run, record in records.items():
        if run.head_rate is not None and run.seed in cell.grid_seeds and run == cell.run((run.rate, run.head_rate), run.seed):
            found.setdefault((run.rate, run.head_rate), {})[run.seed] = record
    return dict(sorted(found.items()))


def best(cell: PairCell, records: Records) -> BestPair | None:
    """The pair with the lowest mean over all seeds of the grid; None before one has all of them."""
    return _best(cell, tried(cell, records))


def fresh(cell: PairCell, records: Records) -> dict[int, Record]:
    """The runs with fresh seeds at the best pair, by seed."""
    found = best(cell, records)
    runs = {} if found is None else {seed: cell.run(found.pair, seed) for seed in _fresh_seeds(cell)}
    return {seed: records[run] for seed, run in runs.items() if run in records}


def neighbours(pair: Pair) -> list[Pair]:
    """The four pairs around one.

    Example:
      >>> neighbours((0.005, 0.02))
      [(0.002, 0.02), (0.01, 0.02), (0.005, 0.01), (0.005, 0.05)]
    """
    rate, head = pair
    return [*((neighbour(rate, side), head) for side in (-1, 1)), *((rate, neighbour(head, side)) for side in (-1, 1))]


def _best(cell: PairCell, grid: dict[Pair, dict[int, Record]]) -> BestPair | None:
    means = {
        pair: mean(record.value for record in runs.values()) for pair, runs in grid.items() if len(runs) == len(cell.grid_seeds)
    }
    if not means:
        return None
    pair = min(means, key=lambda pair: means[pair])
    # What is not trained is the same at any rate.
    inside = cell.method == "frozen" or all(_is_settled(cell, other, pair, grid) for other in neighbours(pair))
    return BestPair(pair, inside)


def _is_settled(cell: PairCell, other: Pair, best: Pair, grid: dict[Pair, dict[int, Record]]) -> bool:
    """Whether it is known that a pair is no better than the best one."""
    runs = grid.get(other, {})
    if len(runs) == len(cell.grid_seeds):
        return True
    return any(record.value > grid[best][seed].value + CLEARLY_WORSE for seed, record in runs.items())


def _runs(cell: PairCell, records: Records):
    start = list(itertools.product(cell.rates, cell.head_rates))
    yield from (cell.run(pair, seed) for pair in start for seed in cell.grid_seeds)
    grid = tried(cell, records)
    found = _best(cell, grid)
    if found is None:
        return
    if not found.inside and len(grid) < len(start) + MOST_EXTENSIONS:
        open_pairs = [pair for pair in neighbours(found.pair) if not _is_settled(cell, pair, found.pair, grid)]
        yield from (cell.run(pair, seed) for pair in open_pairs for seed in cell.grid_seeds)
    yield from (cell.run(found.pair, seed) for seed in _fresh_seeds(cell))
    yield from (cell.run(pair, seed) for pair in cell.also for seed in cell.grid_seeds)


def _fresh_seeds(cell: PairCell) -> range:
    return range(SWEEP_SEED + 1, SWEEP_SEED + 1 + cell.seeds)
