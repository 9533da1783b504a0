"""Token counts: the halves and buckets of tokens by frequency, and the weights that follow."""

import jax
import jax.numpy as jnp
import numpy as np

from .mean_square import compute_dtype
from .rows import flat_ids

# The logarithm of the largest weight of a token without a count: infinite times zero is NaN.
_LARGEST_LOG = 60.0


def halves_by_count(counts_V: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Masks of the rarer and of the more frequent half of the n tokens that occur; the middle one of an odd n is rare.

    The rarer half has the ranks r < n / 2, by count and for equal counts by id. It is the lower one of two `rank_buckets`.
    """
    occurs_V = counts_V > 0
    never = jnp.sum(~occurs_V, dtype=jnp.int32)
    of_occurring_V = _ranks(jnp.where(occurs_V, counts_V, jnp.zeros((), counts_V.dtype))) - never
    is_rare_V = of_occurring_V < (counts_V.size - never + 1) // 2
    return occurs_V & is_rare_V, occurs_V & ~is_rare_V


def rank_buckets(counts_V: jax.Array, buckets: int) -> jax.Array:
    """The bucket of each token in equal parts by rank, `floor(rank * buckets / V)`; equal counts are ranked by id."""
    size = counts_V.size
    # From the first rank of each bucket: the product would leave int32 for a large vocabulary in many buckets.
    first_rank_B = -(-np.arange(buckets, dtype=np.int64) * size // buckets)
    return jnp.searchsorted(jnp.asarray(first_rank_B, jnp.int32), _ranks(counts_V), side="right") - 1


def _ranks(counts_V: jax.Array) -> jax.Array:
    return jnp.argsort(jnp.argsort(counts_V, stable=True)).astype(jnp.int32)


def added_counts(counts_V: jax.Array, ids: jax.Array, decay: jax.Array | float) -> jax.Array:
    """`decay * counts` and one for each id; padding (below zero, from V on) counts for nothing.

    A batch is counted in float32: in bfloat16, 256 + 1 is 256.
    """
    dtype = compute_dtype(counts_V)
    batch_V = jnp.zeros(counts_V.shape, dtype).at[flat_ids(ids, counts_V.shape[0])].add(1, mode="drop")
    return (counts_V.astype(dtype) * jnp.asarray(decay, dtype) + batch_V).astype(counts_V.dtype)


def weights_of_counts(counts: jax.Array, power: jax.Array | float, smoothing: jax.Array | float, axis: int) -> jax.Array:
    """`(counts + smoothing)^-power`, in units of its mean over the counted tokens; all ones without a count. float32."""
    counts, smoothing = counts.astype(jnp.float32), jnp.asarray(smoothing, jnp.float32)
    # All in logarithms: a power, a product or a sum of large counts would leave float32. Halves, so that the sum of two does not.
    log_weight = -jnp.asarray(power, jnp.float32) * (jnp.log(counts / 2 + smoothing / 2) - jnp.log(jnp.float32(0.5)))
    counted = counts > 0
    log_counts = jnp.where(counted, jnp.log(jnp.where(counted, counts, 1)), -jnp.inf)
    log_total, log_weighted = (
        jax.scipy.special.logsumexp(terms, axis, keepdims=True) for terms in (log_counts, log_counts + log_weight)
    )
    weight = jnp.exp(jnp.minimum(log_weight - (log_weighted - log_total), _LARGEST_LOG))
    return jnp.where(jnp.any(counted, axis, keepdims=True), weight, 1)
