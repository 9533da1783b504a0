"""Numbers of a comparison: mean and spread over fresh seeds, and differences within pairs with their confidence interval."""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

import scipy.stats  # JAX brings it


class Spread(NamedTuple):
    """Mean and standard deviation of `size` values. The deviation of a single value is nan."""

    mean: float
    deviation: float
    size: int


class Difference(NamedTuple):
    """The mean difference of pairs and its 95 % interval, mean - half and mean + half."""

    mean: float
    half: float
    size: int

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
      Spread(mean=2.0, deviation=1.0, size=3)
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
    quantile = float(scipy.stats.t.ppf(0.975, len(differences) - 1))
    return Difference(mean(differences), quantile * stdev(differences) / math.sqrt(len(differences)), len(differences))
