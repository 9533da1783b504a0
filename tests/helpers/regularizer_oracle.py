"""What the regularizers are, in float64 NumPy, by brute force and sharing nothing with the library."""

import numpy as np


def anisotropy_gradient(x, p=None, step=1e-6):
    """Central differences of the mean cosine."""
    return differences(lambda x: mean_cosine(x, p), x, step)


def mean_cosine(x, weights=None):
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    kept = np.flatnonzero((w > 0) & x.any(1))
    total = norm = 0.0
    for i in kept:
        for j in kept:
            if i != j:
                total += w[i] * w[j] * (x[i] @ x[j]) / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
                norm += w[i] * w[j]
    return total / norm


def energy_coefficient(rare, frequent):
    def mean_distance(a, b, same):
        found = [np.linalg.norm(r - f) for i, r in enumerate(a) for j, f in enumerate(b) if not (same and i == j)]
        return np.mean(found)

    between = mean_distance(rare, frequent, same=False)
    within = mean_distance(rare, rare, same=True) + mean_distance(frequent, frequent, same=True)
    return (2 * between - within) / (2 * between)


def frequency_weights(counts, power, smoothing=1.0):
    counts = np.asarray(counts, np.float64)
    weights = (counts + smoothing) ** -power
    return weights / (np.average(weights, weights=counts) if counts.any() else 1.0) if counts.any() else np.ones(len(counts))


def capped(update, most):
    rms = np.sqrt(np.mean(np.square(update), axis=1, keepdims=True))
    return update * np.where(rms > most, most / np.where(rms > most, rms, 1), 1)


def differences(function, x, step=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            gradient[index] += sign * function(moved) / (2 * step)
    return gradient
