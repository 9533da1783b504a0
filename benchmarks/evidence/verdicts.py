"""What a difference of losses is called, by a margin that was fixed before the runs with two rates were made."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.evidence.comparison import Result, paired
from benchmarks.evidence.likeness import UnlikeRunsError
from benchmarks.evidence.pair_comparison import PairResult, PairResults
from benchmarks.evidence.statistics import Difference
from benchmarks.evidence.tables import Results

# In nats for each token, or in the share of wrong answers.
MARGIN = 0.01
# A comparison at two rates replaces the one at one rate when it has as many fresh seeds.
FEWEST = 3

SAME = f"the same within {MARGIN}"
LOWER = "lower"
NOT_WORSE = f"not higher by {MARGIN}"
WORSE = f"higher by more than {MARGIN}"
OPEN = "open"


class Compared(NamedTuple):
    """Two methods in one setting: whether each has two rates of its own or one, and the difference."""

    setting: str
    rates: str
    difference: Difference

    @property
    def verdict(self) -> str:
        """The name of the difference."""
        return judged(self.difference)


def judged(difference: Difference) -> str:
    """What the 95 % interval of a difference allows.

    Example:
      >>> [judged(Difference(mean, 0.004, 8)) for mean in (-0.05, -0.002, 0.003, 0.009, 0.05)]
      ['lower', 'the same within 0.01', 'the same within 0.01', 'open', 'higher by more than 0.01']
    """
    low, high = difference.mean - difference.half, difference.mean + difference.half
    if not math.isfinite(low) or not math.isfinite(high):
        return OPEN
    if low > MARGIN:
        return WORSE
    if high > MARGIN:
        return OPEN
    if low >= -MARGIN:
        return SAME
    return LOWER if high < 0 else NOT_WORSE


def compared(one: Results, two: PairResults, task: str, setting: str, ours: str, theirs: str) -> Compared | None:
    """Ours minus theirs, at two rates where both were run so with enough fresh seeds, else at one; None without pairs of runs."""
    for rates, found in (("two", two), ("one", one)):
        a, b = found.get((task, setting, ours)), found.get((task, setting, theirs))
        if a and b and _is_ready(a, rates) and _is_ready(b, rates):
            try:
                difference = paired(a.fresh, b.fresh)
            except UnlikeRunsError:
                difference = None
            if difference:
                return Compared(setting, rates, difference)
    return None


def summary(found: Sequence[Compared]) -> str:
    """How many comparisons have which verdict."""
    verdicts = [one.verdict for one in found]
    return ", ".join(f"{verdicts.count(name)} {name}" for name in (LOWER, SAME, NOT_WORSE, WORSE, OPEN) if name in verdicts)


def missing(found: Sequence[Compared | None]) -> str:
    """How many settings were not compared, in words; empty if all were.

    Example:
      >>> missing([None]), missing([])
      ('1 setting is missing', '')
    """
    number = found.count(None)
    return f"{number} setting{' is' if number == 1 else 's are'} missing" if number else ""


def _is_ready(result: Result | PairResult, rates: str) -> bool:
    return len(result.fresh) >= (FEWEST if rates == "two" else 1)
