"""Numbers of a comparison: mean and spread over fresh seeds, and differences within pairs with their confidence interval."""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; the normal one beyond.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Spread(NamedTuple):
    """Mean and standard deviation of so many values; the deviation is nan of a single one."""

    mean: float
    deviation: float
    count: int


class Difference(NamedTuple):
    """The mean difference of pairs and its 95 % interval, mean - half and mean + half."""

    mean: float
    half: float
    count: int

    @property
    def verdict(self) -> str:
        """In words, of losses: what the interval leaves open counts as no difference."""
        if not self.half < abs(self.mean):
            return "no difference seen"
        return "lower" if self.mean < 0 else "higher"


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation, infinite where a value is.

    Example:
      >>> spread([1.0, 2.0, 3.0])
      Spread(mean=2.0, deviation=1.0, count=3)
    """
    finite = all(map(math.isfinite, values))
    deviation = stdev(values) if finite and len(values) > 1 else math.nan
    return Spread(mean(values) if finite else math.inf, deviation, len(values))


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Ours minus theirs, within pairs; of one pair the interval is infinite.

    Example:
      >>> difference = paired_difference([1.0, 2.0, 3.0], [1.5, 2.4, 3.6])
      >>> print(f"{difference.mean:.3f} +- {difference.half:.3f}: {difference.verdict}")
      -0.500 +- 0.248: lower
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return Difference(mean(differences) if differences else math.nan, math.inf, len(differences))
    freedom = len(differences) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else 1.96
    return Difference(mean(differences), quantile * stdev(differences) / math.sqrt(len(differences)), len(differences))
