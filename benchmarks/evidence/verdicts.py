"""What a difference of losses is called, by its 95 % interval and a margin."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.evidence.comparison import Result, paired
from benchmarks.evidence.likeness import UnlikeRunsError
from benchmarks.evidence.pair_comparison import PairResult, PairResults
from benchmarks.evidence.statistics import Difference
from benchmarks.evidence.studies import MOMENTA
from benchmarks.evidence.tables import Results, shown_difference

# In nats for each token, or in the share of wrong answers.
MARGIN = 0.01
# A comparison at two rates replaces the one at one rate when it has as many fresh seeds.
FEWEST = 3

SAME = f"the same within {MARGIN}"
LOWER = "lower"
NOT_WORSE = f"not higher by {MARGIN}"
HIGHER = "higher"
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
      >>> [judged(Difference(mean, 0.004, 8)) for mean in (-0.05, -0.009, 0.003, 0.009, 0.05)]
      ['lower', 'lower', 'the same within 0.01', 'higher', 'higher by more than 0.01']
      >>> [judged(Difference(mean, 0.02, 8)) for mean in (-0.011, 0.011)]
      ['not higher by 0.01', 'open']
    """
    low, high = difference.mean - difference.half, difference.mean + difference.half
    if not math.isfinite(low) or not math.isfinite(high):
        return OPEN
    if low >= -MARGIN and high <= MARGIN:
        return SAME
    if high < 0:
        return LOWER
    if low > 0:
        return WORSE if low > MARGIN else HIGHER
    return NOT_WORSE if high <= MARGIN else OPEN


def compared(one: Results, two: PairResults, task: str, setting: str, ours: str, theirs: str) -> Compared | None:
    """Ours minus theirs, at two rates where both were run so with enough fresh seeds, else at one.

    None without pairs of runs, and if they are refused, which the page says (`refusals`).
    """
    for rates, found in (("two", two), ("one", one)):
        a, b = found.get((task, setting, ours)), found.get((task, setting, theirs))
        if a and b and _is_ready(a, rates) and _is_ready(b, rates):
            try:
                difference = paired(a.fresh, b.fresh)
            except UnlikeRunsError:
                return None
            if difference:
                return Compared(setting, rates, difference)
    return None


def refusals(one: Results, two: PairResults) -> list[str]:
    """Why methods are not compared with one of the baselines, each reason once."""
    found = []
    for results in (two, one):
        for key, ours in results.items():
            for theirs in (results.get((*key[:2], other)) for other in MOMENTA):
                try:
                    paired(ours.fresh, theirs.fresh if theirs else {})
                except UnlikeRunsError as error:
                    found.append(str(error))
    return list(dict.fromkeys(found))


def summary(found: Sequence[Compared]) -> str:
    """How many comparisons have which verdict."""
    verdicts = [one.verdict for one in found]
    names = (LOWER, SAME, NOT_WORSE, HIGHER, WORSE, OPEN)
    return ", ".join(f"{verdicts.count(name)} {name}" for name in names if name in verdicts)


def extremes(found: Sequence[Compared]) -> str:
    """The differences with the smallest and the largest mean, each with its interval.

    Example:
      >>> extremes([Compared("a", "two", Difference(mean, 0.01, 8)) for mean in (0.02, -0.03, 0.01)])
      '-0.0300 [-0.0400, -0.0200] to +0.0200 [+0.0100, +0.0300]'
    """
    ordered = sorted((one.difference for one in found), key=lambda difference: difference.mean)
    return " to ".join(dict.fromkeys(shown_difference(one) for one in (ordered[0], ordered[-1])))


def missing(found: Sequence[Compared | None]) -> str:
    """How many settings were not compared, in words; empty if all were.

    Example:
      >>> missing([None]), missing([])
      ('1 not measured', '')
    """
    number = found.count(None)
    return f"{number} not measured" if number else ""


def _is_ready(result: Result | PairResult, rates: str) -> bool:
    return len(result.fresh) >= (FEWEST if rates == "two" else 1)
