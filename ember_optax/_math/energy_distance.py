"""How far two samples of rows are apart as distributions, by distances within and between them."""

import jax
import jax.numpy as jnp


@jax.jit
def energy_coefficient(a_NxD: jax.Array, b_MxD: jax.Array, in_a_N: jax.Array, in_b_M: jax.Array) -> jax.Array:
    """`(2 E|a - b| - E|a - a'| - E|b - b'|) / (2 E|a - b|)`, pairs of different rows only; zero with less than two of a sample.

    Args:
      a_NxD: rows of the first sample, float32 or float64.
      b_MxD: rows of the second one.
      in_a_N: which rows of `a_NxD` count.
      in_b_M: which rows of `b_MxD` count.
    """
    rows_SxD = jnp.concatenate([a_NxD, b_MxD])
    counts_S = jnp.concatenate([in_a_N, in_b_M])
    # Distances do not see a shift, but the rounding of their squares does.
    rows_SxD = rows_SxD - jax.lax.stop_gradient(jnp.mean(rows_SxD, 0, keepdims=True, where=counts_S[:, None]))
    rows_SxD = jnp.where(counts_S[:, None], rows_SxD, 0)
    # Nor does the quotient see a scale, but squares of small and of large numbers leave float32.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows_SxD)))
    rows_SxD = rows_SxD / jnp.where(largest > 0, largest, 1)
    distance_SxS = _distances(rows_SxD)
    n = len(a_NxD)
    count_a, count_b = jnp.sum(in_a_N), jnp.sum(in_b_M)
    between = _mean(distance_SxS[:n, n:], in_a_N, in_b_M, count_a * count_b)
    within_a = _mean(distance_SxS[:n, :n], in_a_N, in_a_N, count_a * (count_a - 1))
    within_b = _mean(distance_SxS[n:, n:], in_b_M, in_b_M, count_b * (count_b - 1))
    defined = (count_a > 1) & (count_b > 1) & (between > 0)
    return jnp.where(defined, 1 - (within_a + within_b) / (2 * jnp.where(defined, between, 1)), 0)


def _distances(rows_SxD: jax.Array) -> jax.Array:
    """The distance of every two rows; its gradient is zero where they are equal."""
    products = jnp.matmul(rows_SxD, rows_SxD.T, precision="highest")
    norms_S = jnp.diagonal(products)
    square = norms_S[:, None] + norms_S[None, :] - 2 * products
    apart = (square > 0) & ~jnp.eye(len(rows_SxD), dtype=bool)
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)


def _mean(distance: jax.Array, rows: jax.Array, columns: jax.Array, pairs: jax.Array) -> jax.Array:
    counted = jnp.where(rows[:, None] & columns[None, :], distance, 0)
    return jnp.sum(counted) / jnp.maximum(pairs, 1).astype(distance.dtype)
