"""The definitions of geometry in float64 NumPy, by brute force and sharing nothing with the library."""

import numpy as np


def prepared(x, weights=None, centered=False):
    """Rows with a weight, and their weights."""
    x = np.asarray(x, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    x, w = x[w > 0], w[w > 0]
    return (x - np.average(x, axis=0, weights=w) if centered else x), w


def spectrum(x, **options):
    x, w = prepared(x, **options)
    return np.linalg.svd(np.sqrt(w)[:, None] * x, compute_uv=False)


def effective_rank(x, **options):
    p = spectrum(x, **options)
    p = p[p > 0] / p.sum()
    return np.exp(-np.sum(p * np.log(p)))


def stable_rank(x, **options):
    sigma = spectrum(x, **options)
    return np.sum(sigma**2) / sigma[0] ** 2


def mean_cosine_similarity(x, **options):
    x, w = prepared(x, **options)
    total, norm = 0.0, 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j and np.any(x[i]) and np.any(x[j]):
                total += w[i] * w[j] * (x[i] @ x[j]) / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
                norm += w[i] * w[j]
    return total / norm


def partition_isotropy(x, **options):
    x, w = prepared(x, **options)
    directions = np.linalg.eigh(x.T @ (w[:, None] * x))[1]
    z = np.concatenate([np.sum(w[:, None] * np.exp(sign * x @ directions), 0) for sign in (1, -1)])
    return z.min() / z.max()


def iso_score(x, centered=True, **options):
    """Step by step as published: normalised variances, their distance to equal ones, rescaled."""
    x, w = prepared(x, centered=centered, **options)
    variances, n = np.linalg.eigvalsh(x.T @ (w[:, None] * x)), x.shape[1]
    normalised = np.sqrt(n) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    return ((n - defect**2 * (n - np.sqrt(n))) ** 2 - n) / (n * (n - 1))


def row_norms(x, centered=False):
    return np.linalg.norm(prepared(x, centered=centered)[0], axis=1)


def mean_row_norm(x, **options):
    x, w = prepared(x, **options)
    return np.average(np.linalg.norm(x, axis=1), weights=w)


def ray(snapshots):
    """Share and straightness of each token of (T + 1, V, D) snapshots."""
    snapshots = np.asarray(snapshots, np.float64)
    displacements, steps = snapshots[1:] - snapshots[0], np.diff(snapshots, axis=0)
    energies = np.stack([np.linalg.svd(displacements[:, i], compute_uv=False) ** 2 for i in range(snapshots.shape[1])])
    path = np.linalg.norm(steps, axis=2).sum(0)
    return energies[:, 0] / energies.sum(1), np.linalg.norm(displacements[-1], axis=1) / path
