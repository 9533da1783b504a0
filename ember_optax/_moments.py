"""The mathematics of Ember on one table: statistics, moving averages, preconditioning. Arrays only, no trees.

Shapes are written for a (V, D) table. Axes come from `TableAxes`, so the same functions serve a (D, V) head,
several feature axes and stacked tables. Everything is float32 but the quotient, which keeps float64 gradients in float64.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding

from ._dimension_numbers import TableAxes
from ._mean_square import compute_dtype, mean_square
from ._specs import spec_of
from ._varying import as_varying, varying_axes

# The smallest normal float32. A smaller constant is flushed to zero by XLA, and 0 / 0 follows.
_TINY = float(jnp.finfo(jnp.float32).tiny)


class DecayRate(NamedTuple):
    """`b2` in the two forms that the arithmetic needs, both float32 scalars and both accurate near `b2 = 1`."""

    complement: jax.Array  # 1 - b2
    log: jax.Array  # log(b2)


class Moments(NamedTuple):
    """Ember's state for one table: `count` and `total_notfinite` have the shape of the batch axes, () for a plain table."""

    count: jax.Array  # steps taken, int32  # pyright: ignore[reportIncompatibleMethodOverride]
    nu_token: jax.Array  # (V,) float32
    nu_feature: jax.Array  # (D,) float32
    total_notfinite: jax.Array  # batches skipped, int32


def decay_rate(b2) -> DecayRate:
    """Splits `b2`; a Python number is handled in float64, since `1 - float32(b2)` is off by 1e-5 at b2 = 0.999."""
    if isinstance(b2, jax.Array):
        complement = 1.0 - b2.astype(jnp.float32)
        return DecayRate(complement, jnp.log1p(-complement))
    b2 = float(b2)
    return DecayRate(jnp.float32(1.0 - b2), jnp.float32(math.log(b2) if b2 > 0.0 else -math.inf))


def moment_shapes(shape: tuple[int, ...], axes: TableAxes) -> Moments:
    """Shapes of the state: `nu_token` drops the feature axes of `shape`, `nu_feature` its token axis, the counters both."""

    def without(dropped: tuple[int, ...]) -> Any:
        return tuple(size for axis, size in enumerate(shape) if axis not in dropped)

    counter = without(axes.token + axes.feature)
    return Moments(count=counter, nu_token=without(axes.feature), nu_feature=without(axes.token), total_notfinite=counter)


def init_moments(table_VxD: Any, axes: TableAxes) -> Moments:
    """All-zero state of a table, given as an array or a `jax.ShapeDtypeStruct`.

    Strongly typed, and sharded like the table's own axes: a state whose type or sharding changes in the first step makes the
    second one compile again, and `lax.scan` cannot carry it.
    """

    def zeros(dropped: tuple[int, ...], summed_over: tuple[str, ...], dtype) -> jax.Array:
        like = jax.eval_shape(lambda x: jnp.sum(x, dropped).astype(dtype), table_VxD)
        values = jnp.zeros(like.shape, like.dtype, device=_device_without(dropped, table_VxD, like.sharding))
        varying = varying_axes(table_VxD) if isinstance(table_VxD, Tracer) else frozenset()
        return as_varying(values, varying - set(summed_over))

    counter = axes.token + axes.feature, axes.token_mesh + axes.feature_mesh
    return Moments(
        count=zeros(*counter, jnp.int32),
        nu_token=zeros(axes.feature, axes.feature_mesh, jnp.float32),
        nu_feature=zeros(axes.token, axes.token_mesh, jnp.float32),
        total_notfinite=zeros(*counter, jnp.int32),
    )


def _device_without(dropped: tuple[int, ...], table: Any, of_type: NamedSharding | None) -> jax.sharding.Sharding | None:
    """Where a table's reduction over axes lies; `of_type` is what its type says, on a mesh with explicit axes."""
    if isinstance(table, Tracer) or not isinstance(table, jax.Array):
        return of_type  # while tracing, the compiler places arrays
    if not isinstance(table.sharding, NamedSharding):
        return table.sharding if table.committed and len(table.devices()) == 1 else None
    if of_type is not None:
        return NamedSharding(table.sharding.mesh, of_type.spec)
    entries = (entry for axis, entry in enumerate(table.sharding.spec) if axis not in dropped)
    return NamedSharding(table.sharding.mesh, spec_of(entries))


def batch_statistics(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two means of one batch, each a pass over the gradient that writes nothing of its size.

    Every pass reads the gradient behind a barrier of its own. Otherwise XLA shares `g^2`, or the float32 copy of a bfloat16
    gradient, among the passes and writes it to memory: V x D elements more, and two to four times the time on a CPU.

    Returns:
      The gradient for the next pass, `mean_j g[i,j]^2` of shape (V, 1) and `mean_i g[i,j]^2` of shape (1, D).
    """
    token_V1 = mean_square(g_VxD, axes.feature)
    g_VxD, token_V1 = jax.lax.optimization_barrier((g_VxD, token_V1))
    feature_1D = mean_square(g_VxD, axes.token)
    g_VxD, feature_1D = jax.lax.optimization_barrier((g_VxD, feature_1D))
    # Behind the barriers, whose results shard_map takes to vary over every mesh axis that one of them varies over.
    token_V1 = mean_over(axes.feature_mesh, token_V1)
    feature_1D = mean_over(axes.token_mesh, feature_1D)
    return g_VxD, token_V1, feature_1D


def update_moment(moment: jax.Array, statistic: jax.Array, rate: DecayRate) -> jax.Array:
    """`b2 * moment + (1 - b2) * statistic`, decayed by subtraction because `1 - b2` is the accurate constant."""
    return (moment - rate.complement * moment) + rate.complement * statistic


def count_batch(old: Moments, finite: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`count` and `total_notfinite` after a batch: one of them goes up."""
    count = jnp.where(finite, optax.safe_increment(old.count), old.count)
    return count, jnp.where(finite, old.total_notfinite, optax.safe_increment(old.total_notfinite))


def bias_correction(count: jax.Array, rate: DecayRate) -> jax.Array:
    """`1 - b2^count` as `-expm1(count * log(b2))`: the literal form is 1.3e-5 off at count = 1, zero at b2 = 1 - 1e-8."""
    return -jnp.expm1(count.astype(jnp.float32) * rate.log)


def denominator_factors(nu_token_V1, nu_feature_1D, axes: TableAxes, correction_11) -> tuple[jax.Array, jax.Array]:
    """Factors with `a[i] * b[j] = sqrt(v_hat[i,j])`.

    `a = sqrt(nu_token) / sqrt(mean(nu_feature))` and `b = sqrt(nu_feature / correction)`. The roots come before the quotient,
    so that no intermediate leaves float32's range: the product `nu_token * nu_feature` of the literal form underflows at
    |g| = 1e-10, and `nu_token / mean` where one token's gradient is 1e19 times another's.
    """
    mean_11 = mean_over(axes.feature_mesh, jnp.mean(nu_feature_1D, axes.feature, keepdims=True))
    a_V1 = jnp.sqrt(nu_token_V1) / jnp.sqrt(jnp.maximum(mean_11, _TINY))
    b_1D = jnp.sqrt(nu_feature_1D / correction_11)
    # Without the barrier XLA computes both roots again for each of the V x D elements (131072 x 1024: 91 ms instead of 74).
    return jax.lax.optimization_barrier((a_V1, b_1D))


def precondition(g_VxD: jax.Array, a_V1: jax.Array, b_1D: jax.Array, eps) -> jax.Array:
    """`g / (a * b + eps)`, and zero where that denominator is zero (a silent row with eps = 0)."""
    dtype = compute_dtype(g_VxD)
    denominator = (a_V1 * b_1D + jnp.asarray(eps, jnp.float32)).astype(dtype)
    positive = denominator > 0
    # The inner choice keeps 0 / 0 from being computed at all, for jax_debug_nans.
    quotient = g_VxD.astype(dtype) / jnp.where(positive, denominator, jnp.ones((), dtype))
    return jnp.where(positive, quotient, jnp.zeros((), dtype))


def ember_step(
    g_VxD: jax.Array, moments: Moments, axes: TableAxes, rate: DecayRate, eps, *, decayed_VxD: jax.Array | None = None
) -> tuple[jax.Array, Moments]:
    """One step of Ember on one table.

        nu_token[i]   <- b2 * nu_token[i]   + (1 - b2) * mean_j g[i,j]^2
        nu_feature[j] <- b2 * nu_feature[j] + (1 - b2) * mean_i g[i,j]^2
        v_hat[i,j]     = nu_token[i] * nu_feature[j] / mean(nu_feature) / (1 - b2^t)
        update[i,j]    = g[i,j] / (sqrt(v_hat[i,j]) + eps) + decayed[i,j]

    A batch whose mean squares are not finite in float32 is skipped: the update is zero, `count` and both averages stay.
    The two vectors tell, without another pass: every element of `g` enters both.

    Args:
      g_VxD: the gradient, any floating dtype.
      moments: the state before the step.
      axes: the table's axes.
      rate: the decay rate.
      eps: added to the root, float32.
      decayed_VxD: the weight decay's part of the update, or None.

    Returns:
      The update in the gradient's dtype, not yet times the learning rate, and the state after the step.
    """
    old = _reshape(jnp.expand_dims, moments, axes)
    g_VxD, token_V1, feature_1D = batch_statistics(g_VxD, axes)
    finite_11 = all_over(axes.feature_mesh, jnp.all(jnp.isfinite(feature_1D), axes.feature, keepdims=True))
    finite_11 &= all_over(axes.token_mesh, jnp.all(jnp.isfinite(token_V1), axes.token, keepdims=True))
    count, total_notfinite = count_batch(old, finite_11)
    new = Moments(
        count=count,
        nu_token=jnp.where(finite_11, update_moment(old.nu_token, token_V1, rate), old.nu_token),
        nu_feature=jnp.where(finite_11, update_moment(old.nu_feature, feature_1D, rate), old.nu_feature),
        total_notfinite=total_notfinite,
    )
    factors = denominator_factors(new.nu_token, new.nu_feature, axes, bias_correction(new.count, rate))
    update = precondition(g_VxD, *factors, eps)
    if decayed_VxD is not None:
        update = update + decayed_VxD.astype(update.dtype)
    update = jnp.where(finite_11, update, jnp.zeros((), update.dtype))
    return update.astype(g_VxD.dtype), _reshape(jnp.squeeze, new, axes)


def _reshape(change: Callable[[jax.Array, tuple[int, ...]], jax.Array], moments: Moments, axes: TableAxes) -> Moments:
    """Gives every field the table's rank (`jnp.expand_dims`) or takes it away again (`jnp.squeeze`)."""
    return Moments(
        count=change(moments.count, axes.token + axes.feature),
        nu_token=change(moments.nu_token, axes.feature),
        nu_feature=change(moments.nu_feature, axes.token),
        total_notfinite=change(moments.total_notfinite, axes.token + axes.feature),
    )


def mean_over(mesh_axes: tuple[str, ...], local: jax.Array) -> jax.Array:
    """The mean of equal parts over mesh axes, inside `jax.shard_map`; the array itself without mesh axes."""
    return jax.lax.pmean(local, mesh_axes) if mesh_axes else local


def all_over(mesh_axes: tuple[str, ...], local: jax.Array) -> jax.Array:
    """Whether all parts over mesh axes are true; the array itself without mesh axes."""
    return jax.lax.pmin(local.astype(jnp.int32), mesh_axes) > 0 if mesh_axes else local
