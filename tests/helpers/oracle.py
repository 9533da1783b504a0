"""Ember in float64 NumPy, written from the equations of the paper and sharing nothing with the library."""

import numpy as np


class NumpyEmber:
    """One (V, D) table."""

    def __init__(self, shape, b2=0.999, eps=1e-8):
        self.b2, self.eps, self.t = b2, eps, 0
        self.token, self.feature = np.zeros(shape[0]), np.zeros(shape[1])

    def update(self, g):
        g = np.asarray(g, np.float64)
        self.t += 1
        self.token = self.b2 * self.token + (1 - self.b2) * np.mean(g**2, axis=1)
        self.feature = self.b2 * self.feature + (1 - self.b2) * np.mean(g**2, axis=0)
        profile = np.ones_like(self.feature)
        if self.feature.mean() > 0:
            profile = self.feature / self.feature.mean()
        v_hat = np.outer(self.token, profile) / (1 - self.b2**self.t)
        denominator = np.sqrt(v_hat) + self.eps
        return np.divide(g, denominator, out=np.zeros_like(g), where=denominator > 0)
