"""Token counts: halves and buckets of tokens by frequency, and weights that depend on the frequency."""

import jax
import jax.numpy as jnp
import numpy as np

from .mean_square import compute_dtype
from .rows import flat_ids

# The logarithm of the largest weight of a token that does not occur. A larger weight becomes infinite, and inf * 0 is NaN.
_LARGEST_LOG = 60.0


def halves_by_count(counts_V: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two masks over the n tokens that occur: the rarer half and the more frequent half.

    Tokens are ranked by count, and equal counts by id. The rarer half has the ranks r < n / 2, so the middle token of an odd n
    is rare. The rarer half is the lower one of two `rank_buckets`.
    """
    occurs_V = counts_V > 0
    never = jnp.sum(~occurs_V, dtype=jnp.int32)
    of_occurring_V = _ranks(jnp.where(occurs_V, counts_V, jnp.zeros((), counts_V.dtype))) - never
    is_rare_V = of_occurring_V < (counts_V.size - never + 1) // 2
    return occurs_V & is_rare_V, occurs_V & ~is_rare_V


def rank_buckets(counts_V: jax.Array, buckets: int) -> jax.Array:
    """The bucket of each token, `floor(rank * buckets / V)`. Tokens are ranked by count, and equal counts by id."""
    size = counts_V.size
    # A search over the first rank of each bucket: rank * buckets overflows int32 for a large vocabulary in many buckets.
    first_rank_B = -(-np.arange(buckets, dtype=np.int64) * size // buckets)
    return jnp.searchsorted(jnp.asarray(first_rank_B, jnp.int32), _ranks(counts_V), side="right") - 1


def _ranks(counts_V: jax.Array) -> jax.Array:
    return jnp.argsort(jnp.argsort(counts_V, stable=True)).astype(jnp.int32)


def added_counts(counts_V: jax.Array, ids: jax.Array, decay: jax.Array | float) -> jax.Array:
    """`decay * counts`, plus one for each id. Padding (ids below zero, or V and above) is ignored.

    A batch is counted in float32, because 256 + 1 is 256 in bfloat16.
    """
    dtype = compute_dtype(counts_V)
    batch_V = jnp.zeros(counts_V.shape, dtype).at[flat_ids(ids, counts_V.shape[0])].add(1, mode="drop")
    return (counts_V.astype(dtype) * jnp.asarray(decay, dtype) + batch_V).astype(counts_V.dtype)


def weights_of_counts(counts: jax.Array, power: jax.Array | float, smoothing: jax.Array | float, axis: int) -> jax.Array:
    """`(counts + smoothing)^-power` divided by its mean over the counted tokens, in float32. All ones if all counts are zero."""
    counts, smoothing = counts.astype(jnp.float32), jnp.asarray(smoothing, jnp.float32)
    # In logarithms, because powers, products and sums of large counts overflow float32. The sum of two halves does not.
    log_weight = -jnp.asarray(power, jnp.float32) * (jnp.log(counts / 2 + smoothing / 2) - jnp.log(jnp.float32(0.5)))
    counted = counts > 0
    log_counts = jnp.where(counted, jnp.log(jnp.where(counted, counts, 1)), -jnp.inf)
    log_total, log_weighted = (
        jax.scipy.special.logsumexp(terms, axis, keepdims=True) for terms in (log_counts, log_counts + log_weight)
    )
    weight = jnp.exp(jnp.minimum(log_weight - (log_weighted - log_total), _LARGEST_LOG))
    return jnp.where(jnp.any(counted, axis, keepdims=True), weight, 1)
