"""One step of Ember on one table: statistics, the state after them, preconditioning. Arrays only.

Shapes are written for a (V, D) table. Everything is float32 but the quotient, which keeps float64 gradients in float64.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from .axes import TableAxes
from .mean_square import compute_dtype, cpu_mean_square, mean_square
from .mesh import mean_over, on_one_device
from .moments import DecayRate, Moments, all_finite, bias_correction, expand_moments, next_moments, squeeze_moments

# The smallest normal float32. A smaller constant is flushed to zero by XLA, and 0 / 0 follows.
_TINY = float(jnp.finfo(jnp.float32).tiny)


# Compiled by itself, so that tables of one shape are traced once: 5,000 tables in a fifth of the time. XLA inlines the call.
@functools.partial(jax.jit, static_argnames=("axes", "active_rows"))
def ember_step(
    g_VxD: jax.Array,
    moments: Moments,
    rate: DecayRate,
    eps: Any,
    weight_decay: Any = 0.0,
    table_VxD: jax.Array | None = None,
    *,
    axes: TableAxes,
    active_rows: bool = False,
) -> tuple[jax.Array, Moments]:
    """One step of Ember on one table.

        nu_token[i]   <- b2 * nu_token[i]   + (1 - b2) * mean_j g[i,j]^2
        nu_feature[j] <- b2 * nu_feature[j] + (1 - b2) * mean_i g[i,j]^2
        v_hat[i,j]     = nu_token[i] * nu_feature[j] / mean(nu_feature) / (1 - b2^t)
        update[i,j]    = g[i,j] / (sqrt(v_hat[i,j]) + eps) + weight_decay * table[i,j]

    A batch whose mean squares are not finite in float32 is skipped: the update is zero, `count` and both averages stay.

    Args:
      g_VxD: the gradient, any floating dtype.
      moments: the state before the step.
      rate: the decay rate.
      eps: added to the root, float32.
      weight_decay: times `table_VxD`, added to the update.
      table_VxD: the parameter; None for no decay.
      axes: the table's axes.
      active_rows: average the feature statistic over the rows with a gradient, as the paper's code did (`over_active_rows`).

    Returns:
      The update in the gradient's dtype, not yet times the learning rate, and the state after the step.
    """
    g_VxD, token_V1, feature_1D = batch_statistics(g_VxD, axes)
    finite_11, new, mean_11 = after_batch(moments, token_V1, feature_1D, rate, axes=axes, active_rows=active_rows)
    update = precondition(g_VxD, new.nu_token, new.nu_feature, mean_11, bias_correction(new.count, rate), eps)
    if table_VxD is not None:
        update = update + decay_term(table_VxD, weight_decay).astype(update.dtype)
    update = jnp.where(finite_11, update, jnp.zeros((), update.dtype))
    return update.astype(g_VxD.dtype), squeeze_moments(new, axes)


def after_batch(
    moments: Moments, token_V1: jax.Array, feature_1D: jax.Array, rate: DecayRate, *, axes: TableAxes, active_rows: bool
) -> tuple[jax.Array, Moments, jax.Array]:
    """What follows from the two statistics of a batch: whether it counts, the state after it, and the mean of the profile.

    The state has the table's rank (`expand_moments`).
    """
    old = expand_moments(moments, axes)
    if active_rows:
        feature_1D = over_active_rows(feature_1D, jnp.mean(token_V1 > 0, axes.token, keepdims=True, dtype=jnp.float32), axes)
    finite_11 = all_finite(old, token_V1, feature_1D, axes)
    new = next_moments(old, token_V1, feature_1D, finite_11, rate)
    return finite_11, new, mean_moment(new, axes, active_rows=active_rows)


def batch_statistics(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two means of one batch, in the form that moves least on each platform; none writes anything of the gradient's size.

    In tables read and written by a step on 262144 x 1024 (XLA of jax 0.10.2; docs/speed.md has the whole account):

        platform          form               tables   the other form
        TPU v5e, v5p, v6e both means at once 4.0      5.0: a barrier forbids the one read that serves both
        H100              both means at once 5        5: XLA reads the gradient once for each of them in any form
        CPU               one after another  5        7 and a temporary of a table: `g^2` is written for both, 6 to 8 axpy for 2.1

    Returns:
      The gradient for the next pass, `mean_j g[i,j]^2` of shape (V, 1) and `mean_i g[i,j]^2` of shape (1, D).
    """
    one_by_one, at_once = (functools.partial(means, axes=axes) for means in (_means_one_by_one, _means_at_once))
    g_VxD, token_V1, feature_1D = jax.lax.platform_dependent(g_VxD, cpu=one_by_one, default=at_once)
    # Behind the barriers, whose results shard_map takes to vary over every mesh axis that one of them varies over.
    token_V1 = mean_over(axes.feature_mesh, token_V1)
    feature_1D = mean_over(axes.token_mesh, feature_1D)
    return g_VxD, token_V1, feature_1D


def _means_at_once(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both reads may become one, and that one part of whatever makes the gradient.

    Not so on several devices: there XLA would keep all of a gradient that was summed over them until its last reader has taken
    this device's part (a model in the shape of Llama 3 8B on 256 v5e: 6.9 GB of temporaries on each instead of 3.8).
    """
    if not on_one_device(g_VxD):
        g_VxD = jax.lax.optimization_barrier(g_VxD)
    return g_VxD, mean_square(g_VxD, axes.feature), mean_square(g_VxD, axes.token)


def _means_one_by_one(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each pass reads the gradient behind a barrier of its own, or XLA on CPU shares `g^2`, or a float32 copy, among them."""
    token_V1 = cpu_mean_square(g_VxD, axes.feature)
    g_VxD, token_V1 = jax.lax.optimization_barrier((g_VxD, token_V1))
    feature_1D = cpu_mean_square(g_VxD, axes.token)
    g_VxD, feature_1D = jax.lax.optimization_barrier((g_VxD, feature_1D))
    return g_VxD, token_V1, feature_1D


def over_active_rows(feature_1D: jax.Array, share_11: jax.Array, axes: TableAxes) -> jax.Array:
    """From `sum_i g[i,j]^2 / V` to `sum_i g[i,j]^2 / n_active`, with this part's share of rows that are active.

    Active are the rows whose mean square is not zero in float32.
    """
    share_11 = mean_over(axes.token_mesh, share_11)
    return feature_1D / jnp.where(share_11 > 0, share_11, 1.0)


def mean_moment(moments: Moments, axes: TableAxes, *, active_rows: bool) -> jax.Array:
    """The mean that makes the feature profile; of `nu_feature` and of `nu_token` it is the same, unless `active_rows`."""
    if active_rows:
        return mean_over(axes.token_mesh, _mean(moments.nu_token, axes.token, stacked=bool(axes.batch)))
    return mean_over(axes.feature_mesh, _mean(moments.nu_feature, axes.feature, stacked=bool(axes.batch)))


def _mean(moment: jax.Array, axes: tuple[int, ...], *, stacked: bool) -> jax.Array:
    """The mean over axes, which stay with length one.

    For stacks as a product with equal weights: of a large sum XLA on CPU (jax 0.10.2) makes one kernel with the preconditioning
    behind it, whose result, as large as the table, it writes to memory (4,096 tables of 64 x 64: temporaries of 103 %, now 6 %).
    """
    if not (stacked and axes):
        return jnp.mean(moment, axes, keepdims=True)
    sizes = [moment.shape[axis] for axis in axes]
    weights = jnp.full(sizes, 1.0 / math.prod(sizes), moment.dtype)
    kept = [axis for axis in range(moment.ndim) if axis not in axes]
    return jnp.expand_dims(jnp.einsum(moment, range(moment.ndim), weights, axes, kept, precision="highest"), axes)


def precondition(g_VxD: jax.Array, nu_token_V1, nu_feature_1D, mean_11, correction_11, eps) -> jax.Array:
    """`g / (a * b + eps)` with `a[i] * b[j] = sqrt(v_hat[i,j])`.

    `a = sqrt(nu_token) / sqrt(mean)` and `b = sqrt(nu_feature / correction)`. The roots come before the quotient, so that no
    intermediate leaves float32's range: the product `nu_token * nu_feature` of the literal form underflows at |g| = 1e-10, and
    `nu_token / mean` where one token's gradient is 1e19 times another's.

    Squares below 1.2e-38 are zero in float32, so the root is not known better than to `sqrt(1.2e-38 / correction)`. The
    denominator is at least that: a silent row with eps = 0 gives zero, and no gradient takes a step of more than its own size
    in these units, however small eps is.
    """
    a_V1 = jnp.sqrt(nu_token_V1) / jnp.sqrt(jnp.maximum(mean_11, _TINY))
    b_1D = jnp.sqrt(nu_feature_1D / correction_11)
    smallest_11 = jnp.sqrt(_TINY / correction_11)
    # Without the barrier XLA computes the roots again for each of the V x D elements (131072 x 1024: 91 ms instead of 74).
    a_V1, b_1D, smallest_11 = jax.lax.optimization_barrier((a_V1, b_1D, smallest_11))
    dtype = compute_dtype(g_VxD)
    denominator = jnp.maximum(a_V1 * b_1D + jnp.asarray(eps, jnp.float32), smallest_11)
    return g_VxD.astype(dtype) / denominator.astype(dtype)


def decay_term(table: jax.Array, weight_decay: Any) -> jax.Array:
    """`weight_decay * table`, in float32 for narrower tables."""
    dtype = compute_dtype(table)
    return jnp.asarray(weight_decay, dtype) * table.astype(dtype)
