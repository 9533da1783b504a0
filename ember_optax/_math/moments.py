"""The state after a batch: moving averages with bias correction, and batches that are not finite.

Shapes are written for a (V, D) table.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from .axes import TableAxes
from .mesh import all_over
from .state import Moments


class DecayRate(NamedTuple):
    """`b2` in the two forms that the arithmetic needs. Both are float32 scalars, and both are accurate near `b2 = 1`."""

    complement: jax.Array  # 1 - b2
    log: jax.Array  # log(b2)


def decay_rate(b2) -> DecayRate:
    """The two forms of `b2`, computed in float64 from a Python number: `1 - float32(b2)` has an error of 1e-5 at b2 = 0.999."""
    if isinstance(b2, jax.Array):
        complement = 1.0 - b2.astype(jnp.float32)
        return DecayRate(complement, jnp.log1p(-complement))
    b2 = float(b2)
    return DecayRate(jnp.float32(1.0 - b2), jnp.float32(math.log(b2) if b2 > 0.0 else -math.inf))


def next_moments(
    old: Moments,
    token: jax.Array,
    feature: jax.Array,
    finite_11: jax.Array,
    rate: DecayRate,
    add_token: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
) -> Moments:
    """The state after a batch. All arrays have the table's rank (`expand_moments`).

        nu_token[i]   <- b2 * nu_token[i]   + (1 - b2) * token[i]
        nu_feature[j] <- b2 * nu_feature[j] + (1 - b2) * feature[j]

    A batch that is not finite changes only `total_notfinite`; other fields stay bit for bit. `add_token` adds `token` to the
    decayed average. A row-sparse step passes a scatter, because its `token` has an entry for some tokens only.
    """
    complement_11 = jnp.where(finite_11, rate.complement, 0.0)

    def average(moment: jax.Array, statistic: jax.Array, add: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        # The decay is a subtraction, because 1 - b2 is the accurate constant.
        new = add(moment - complement_11 * moment, complement_11 * jnp.where(finite_11, statistic, 0.0))
        return new.astype(moment.dtype)

    return Moments(
        count=jnp.where(finite_11, optax.safe_increment(old.count), old.count),
        nu_token=average(old.nu_token, token, add_token),
        nu_feature=average(old.nu_feature, feature, jnp.add),
        total_notfinite=jnp.where(finite_11, old.total_notfinite, optax.safe_increment(old.total_notfinite)),
    )


def all_finite(read: Moments, token: jax.Array, feature: jax.Array, axes: TableAxes) -> jax.Array:
    """Whether a batch counts: whether its statistics and the averages that its step reads are finite.

    The two statistics cover every element of the gradient, without another pass over it. An average that is not finite, for
    example from a damaged checkpoint, would make every later update zero or NaN. So every batch that reads it is skipped.
    """

    of_features = jnp.all(jnp.isfinite(feature) & jnp.isfinite(read.nu_feature), axes.feature, keepdims=True)
    of_tokens = jnp.all(jnp.isfinite(token) & jnp.isfinite(read.nu_token), axes.token, keepdims=True)
    return all_over(axes.feature_mesh, of_features) & all_over(axes.token_mesh, of_tokens)


def bias_correction(count: jax.Array, rate: DecayRate) -> jax.Array:
    """`1 - b2^count`, computed as `-expm1(count * log(b2))`.

    The literal form has an error of 1.3e-5 at count = 1, and is zero at b2 = 1 - 1e-8. The result is one at count = 0, which
    only a skipped batch reads. All averages are zero then, and 0 / 0 would stop `jax_debug_nans`.
    """
    return jnp.where(count > 0, -jnp.expm1(count.astype(jnp.float32) * rate.log), 1.0)
