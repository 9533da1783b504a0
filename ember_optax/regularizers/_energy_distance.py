"""The energy distance of two samples of rows, from the distances within and between them."""

import jax
import jax.numpy as jnp

from .._math.weighted_rows import power_of_two


@jax.jit
def energy_coefficient(a_NxD: jax.Array, b_MxD: jax.Array, in_a_N: jax.Array, in_b_M: jax.Array) -> jax.Array:
    """`(2 E|a - b| - E|a - a'| - E|b - b'|) / (2 E|a - b|)` over pairs of different rows.

    Zero if one of the samples has fewer than two rows.

    Args:
      a_NxD: rows of the first sample, float32 or float64.
      b_MxD: rows of the second sample.
      in_a_N: a mask of the rows of `a_NxD` that count.
      in_b_M: a mask of the rows of `b_MxD` that count.
    """
    # Each mean distance centers and scales its own rows. Otherwise two narrow samples far apart lose the distances within them.
    a_NxD, b_MxD = (jnp.where(counts[:, None], x, 0) for x, counts in ((a_NxD, in_a_N), (b_MxD, in_b_M)))
    n, count_a, count_b = len(a_NxD), jnp.sum(in_a_N), jnp.sum(in_b_M)
    between = _mean_distance(jnp.concatenate([a_NxD, b_MxD]), jnp.concatenate([in_a_N, in_b_M]), n)
    within_a, within_b = _mean_distance(a_NxD, in_a_N), _mean_distance(b_MxD, in_b_M)
    defined = (count_a > 1) & (count_b > 1) & (between > 0)
    return jnp.where(defined, 1 - (within_a + within_b) / (2 * jnp.where(defined, between, 1)), 0)


def _mean_distance(rows_SxD: jax.Array, counts_S: jax.Array, split: int | None = None) -> jax.Array:
    """The mean distance of two different rows. With `split`, one row is before index `split` and the other is not."""
    # A shift does not change distances, but centered rows have squares with smaller rounding errors.
    rows_SxD = rows_SxD - jax.lax.stop_gradient(jnp.mean(rows_SxD, 0, keepdims=True, where=counts_S[:, None]))
    rows_SxD = jnp.where(counts_S[:, None], rows_SxD, 0)
    # In units of the largest element, because the squares of very small and very large numbers leave float32's range.
    unit = power_of_two(jax.lax.stop_gradient(jnp.max(jnp.abs(rows_SxD))))
    first, second = (slice(None), slice(None)) if split is None else (slice(split), slice(split, None))
    pairs = counts_S[first, None] & counts_S[None, second]
    if split is None:
        pairs &= ~jnp.eye(counts_S.size, dtype=bool)
    distances = jnp.where(pairs, _distances(rows_SxD / unit)[first, second], 0)
    number = jnp.sum(pairs, dtype=distances.dtype)
    return jnp.sum(distances) / jnp.maximum(number, 1) * unit


def _distances(rows_SxD: jax.Array) -> jax.Array:
    """The distance of every two rows, (S, S). Its gradient is zero where two rows are equal."""
    products = jnp.matmul(rows_SxD, rows_SxD.T, precision="highest")
    norms_S = jnp.diagonal(products)
    square = norms_S[:, None] + norms_S[None, :] - 2 * products
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)
