"""Token counts, and the weights that follow from them."""

import jax
import jax.numpy as jnp

from .rows import flat_ids

# A token without a count may weigh so many times what a counted one does, and no more: infinite times zero is NaN.
_LARGEST_LOG = 60.0


def added_counts(counts_V: jax.Array, ids: jax.Array, decay: jax.Array | float) -> jax.Array:
    """`decay * counts` and one for each id; padding (below zero, from V on) counts for nothing."""
    decayed_V = counts_V * jnp.asarray(decay, counts_V.dtype)
    return decayed_V.at[flat_ids(ids, counts_V.shape[0])].add(1, mode="drop")


def weights_of_counts(counts: jax.Array, power: jax.Array | float, smoothing: jax.Array | float, axis: int) -> jax.Array:
    """`(counts + smoothing)^-power`, in units of its mean over the counted tokens; all ones without a count. float32."""
    counts = counts.astype(jnp.float32)
    largest = jnp.max(counts, axis, keepdims=True)
    # XLA on CPU (jax 0.10.2) multiplies with the divisor's reciprocal, and that of the largest float32 is subnormal: zero.
    unit = jnp.where(largest > 1, 0.25, 1)
    share = jnp.where(largest > 0, counts * unit / jnp.where(largest > 0, largest * unit, 1), 1)
    # In logarithms, and the largest weight of a counted token first: no power of a count overflows, and the mean is not zero.
    log_weight = -jnp.asarray(power, jnp.float32) * jnp.log(counts + jnp.asarray(smoothing, jnp.float32))
    of_counted = jnp.max(jnp.where(share > 0, log_weight, -jnp.inf), axis, keepdims=True)
    weight = jnp.exp(jnp.minimum(log_weight - of_counted, _LARGEST_LOG))
    return weight * jnp.sum(share, axis, keepdims=True) / jnp.sum(share * weight, axis, keepdims=True)
