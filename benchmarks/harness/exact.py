"""Ember in 50 decimal digits, written from the equations of the paper and sharing nothing with the library."""

from collections.abc import Sequence

import mpmath
import numpy as np

_DIGITS = 50


class ExactEmber:
    """One (V, D) table; updates come back as float64, which is exact to 1e-16 of each number.

    Example:
      >>> ExactEmber((2, 2), b2=0.5, eps=0.0).update([[3.0, -3.0], [0.0, 0.0]]).tolist()
      [[1.0, -1.0], [0.0, 0.0]]
    """

    def __init__(self, shape: tuple[int, int], b2: float = 0.999, eps: float = 1e-8):
        self.b2, self.eps, self.t = mpmath.mpf(repr(b2)), mpmath.mpf(repr(eps)), 0
        self.token, self.feature = [mpmath.mpf(0)] * shape[0], [mpmath.mpf(0)] * shape[1]

    def update(self, gradient: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """One step."""
        with mpmath.workdps(_DIGITS):
            g = [[mpmath.mpf(float(value)) for value in row] for row in gradient]
            self.t += 1
            self.token = [self._average(old, row) for old, row in zip(self.token, g, strict=True)]
            self.feature = [self._average(old, column) for old, column in zip(self.feature, zip(*g, strict=True), strict=True)]
            mean = mpmath.fsum(self.feature) / len(self.feature) or mpmath.mpf(1)
            correction = 1 - self.b2**self.t
            return np.array(
                [
                    [self._scaled(x, token * feature / mean / correction) for x, feature in zip(row, self.feature, strict=True)]
                    for row, token in zip(g, self.token, strict=True)
                ]
            )

    def _average(self, old: mpmath.mpf, values: Sequence[mpmath.mpf]) -> mpmath.mpf:
        return self.b2 * old + (1 - self.b2) * mpmath.fsum(x * x for x in values) / len(values)

    def _scaled(self, x: mpmath.mpf, v_hat: mpmath.mpf) -> float:
        denominator = mpmath.sqrt(v_hat) + self.eps
        return float(x / denominator) if denominator else 0.0
