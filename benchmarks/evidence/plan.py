"""Which run comes next: the rules that make a comparison fair, as pure functions of the runs that are finished.

Every method is first run at each rate of the same grid with one seed, and the grid is extended by its own steps until the best
rate has neighbours on both sides. At that rate alone it is run again with fresh seeds, the same for all methods: they decide
initial parameters and batches, so differences between methods are taken within pairs.
"""

import itertools
from typing import NamedTuple

from benchmarks.evidence.records import Record, Records, Run

SWEEP_SEED = 0
_STEPS = (1, 2, 5)
# A best rate that is still at an edge after this number of extensions is reported as such.
MOST_EXTENSIONS = 12


class Cell(NamedTuple):
    """One method in one setting: the rates to begin with, and how many fresh seeds there are at the best."""

    task: str
    setting: str
    method: str
    rates: tuple[float, ...]
    seeds: int

    def run(self, rate: float, seed: int) -> Run:
        """A run of this cell."""
        return Run(self.task, self.setting, self.method, rate, seed)

    def next_run(self, records: Records) -> Run | None:
        """The first run that is missing, None once the cell is complete."""
        return next((run for run in _runs(self, records) if run not in records), None)

    def missing(self, records: Records) -> int:
        """How many runs are missing at least: the grid may have to be extended."""
        fresh = self.seeds if best(self, records) is None else 0
        return fresh + sum(run not in records for run in _runs(self, records))


class Best(NamedTuple):
    """The best rate so far, and whether rates on both sides of it were tried and were worse."""

    rate: float
    inside: bool


def neighbour(rate: float, direction: int) -> float:
    """The next rate of the grid 1, 2, 5, 10, ..., upwards (1) or downwards (-1).

    Example:
      >>> neighbour(0.05, 1), neighbour(0.01, -1), neighbour(20.0, 1)
      (0.1, 0.005, 50.0)
    """
    mantissa, exponent = f"{rate:.0e}".split("e")
    place = _STEPS.index(int(mantissa)) + direction
    return float(f"{_STEPS[place % 3]}e{int(exponent) + place // 3}")


def tried(cell: Cell, records: Records) -> dict[float, Record]:
    """What the sweep over rates has, in increasing order of the rates."""
    found = {run.rate: record for run, record in records.items() if run == cell.run(run.rate, SWEEP_SEED)}
    return dict(sorted(found.items()))


def best(cell: Cell, records: Records) -> Best | None:
    """The best rate of what was tried; None before anything was."""
    sweep = tried(cell, records)
    if not sweep:
        return None
    rate = min(sweep, key=lambda rate: sweep[rate].value)
    return Best(rate, len(cell.rates) == 1 or min(sweep) < rate < max(sweep))


def fresh(cell: Cell, records: Records) -> dict[int, Record]:
    """The runs with fresh seeds at the best rate, by seed."""
    found = best(cell, records)
    runs = {} if found is None else {seed: cell.run(found.rate, seed) for seed in _fresh_seeds(cell)}
    return {seed: records[run] for seed, run in runs.items() if run in records}


def _runs(cell: Cell, records: Records):
    yield from _rates_of(cell, records)
    yield from _seeds_of(cell, records)


def _rates_of(cell: Cell, records: Records):
    yield from (cell.run(rate, SWEEP_SEED) for rate in cell.rates)
    sweep, found = tried(cell, records), best(cell, records)
    if found and not found.inside and len(sweep) < len(cell.rates) + MOST_EXTENSIONS:
        direction = 1 if found.rate == max(sweep) else -1
        yield cell.run(neighbour(found.rate, direction), SWEEP_SEED)


def _seeds_of(cell: Cell, records: Records):
    found = best(cell, records)
    if found:
        yield from (cell.run(found.rate, seed) for seed in _fresh_seeds(cell))


def _fresh_seeds(cell: Cell) -> range:
    return range(SWEEP_SEED + 1, SWEEP_SEED + 1 + cell.seeds)


def cells(task: str, settings: tuple[str, ...], methods: tuple[str, ...], rates: tuple[float, ...], seeds: int) -> list[Cell]:
    """Every method in every setting."""
    return [Cell(task, *pair, rates, seeds) for pair in itertools.product(settings, methods)]
