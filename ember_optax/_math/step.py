"""One step of Ember on one table: the statistics, the next state, and the preconditioned update. Arrays only.

Shapes are written for a (V, D) table. Everything is float32, except that the update of a float64 gradient is float64.
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

# The smallest normal float32. XLA flushes a smaller constant to zero, and then 0 / 0 is NaN.
_TINY = float(jnp.finfo(jnp.float32).tiny)


# Its own `jax.jit`, so that tables of one shape are traced once: 5,000 tables take a fifth of the time. XLA inlines the call.
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

    A batch whose mean squares are not finite in float32 is skipped: the update is zero, and `count` and both averages stay.

    Args:
      g_VxD: the gradient, any floating dtype.
      moments: the state before the step.
      rate: the decay rate.
      eps: added to the root, float32.
      weight_decay: this times `table_VxD` is added to the update.
      table_VxD: the parameter; None for no decay.
      axes: the table's axes.
      active_rows: average the feature statistic over the rows with a gradient, as the paper's code did (`over_active_rows`).

    Returns:
      The update in the gradient's dtype, without the learning rate, and the state after the step.
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
    """From the two statistics of a batch: whether the batch counts, the next state, and the mean that normalizes the profile.

    The state has the table's rank (`expand_moments`).
    """
    old = expand_moments(moments, axes)
    if active_rows:
        feature_1D = over_active_rows(feature_1D, jnp.mean(token_V1 > 0, axes.token, keepdims=True, dtype=jnp.float32), axes)
    finite_11 = all_finite(old, token_V1, feature_1D, axes)
    new = next_moments(old, token_V1, feature_1D, finite_11, rate)
    return finite_11, new, mean_moment(new, axes, active_rows=active_rows)


def batch_statistics(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two mean squares of one batch, in the form that moves the fewest bytes on each platform.

    No form writes anything of the gradient's size. The numbers are tables read and written by a step on 262144 x 1024 (XLA of jax
    0.10.2; docs/speed.md has the whole account):

        platform          form               tables   the other form
        TPU v5e, v5p, v6e both means at once 4.0      5.0: a barrier forbids the one read that serves both
        H100              both means at once 5        5: XLA reads the gradient once for each of them in any form
        CPU               one after another  5        7 and a temporary of a table: `g^2` is written for both, 6 to 8 axpy for 2.1

    Returns:
      The gradient for the next pass, `mean_j g[i,j]^2` of shape (V, 1) and `mean_i g[i,j]^2` of shape (1, D).
    """
    one_by_one, at_once = (functools.partial(means, axes=axes) for means in (_means_one_by_one, _means_at_once))
    g_VxD, token_V1, feature_1D = jax.lax.platform_dependent(g_VxD, cpu=one_by_one, default=at_once)
    # These means come after the barriers: shard_map types every result of a barrier as varying over the mesh axes of all of them.
    token_V1 = mean_over(axes.feature_mesh, token_V1)
    feature_1D = mean_over(axes.token_mesh, feature_1D)
    return g_VxD, token_V1, feature_1D


def _means_at_once(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient and its two means. XLA may fuse both means into one read, and that read into the producer of the gradient.

    On several devices a barrier prevents the fusion with the producer. Without it, XLA keeps the whole gradient that was summed
    over the devices until its last reader has taken this device's shard. (A model in the shape of Llama 3 8B on 256 v5e has 6.9
    GB of temporaries on each device without the barrier, and 3.8 GB with it.)
    """
    if not on_one_device(g_VxD):
        g_VxD = jax.lax.optimization_barrier(g_VxD)
    return g_VxD, mean_square(g_VxD, axes.feature), mean_square(g_VxD, axes.token)


def _means_one_by_one(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient and its two means. Each pass reads the gradient behind its own barrier.

    Without the barriers, XLA on CPU writes `g^2` or a float32 copy of the gradient to memory and shares it among the passes.
    """
    token_V1 = cpu_mean_square(g_VxD, axes.feature)
    g_VxD, token_V1 = jax.lax.optimization_barrier((g_VxD, token_V1))
    feature_1D = cpu_mean_square(g_VxD, axes.token)
    g_VxD, feature_1D = jax.lax.optimization_barrier((g_VxD, feature_1D))
    return g_VxD, token_V1, feature_1D


def over_active_rows(feature_1D: jax.Array, share_11: jax.Array, axes: TableAxes) -> jax.Array:
    """`sum_i g[i,j]^2 / n_active`, from `sum_i g[i,j]^2 / V` and the share of active rows in this shard.

    A row is active if its mean square is not zero in float32.
    """
    share_11 = mean_over(axes.token_mesh, share_11)
    return feature_1D / jnp.where(share_11 > 0, share_11, 1.0)


def mean_moment(moments: Moments, axes: TableAxes, *, active_rows: bool) -> jax.Array:
    """The mean that normalizes the feature profile. It is the mean of `nu_feature`, or of `nu_token` with `active_rows`.

    The two means are equal, unless `active_rows`.
    """
    if active_rows:
        return mean_over(axes.token_mesh, _mean(moments.nu_token, axes.token, stacked=bool(axes.batch)))
    return mean_over(axes.feature_mesh, _mean(moments.nu_feature, axes.feature, stacked=bool(axes.batch)))


def _mean(moment: jax.Array, axes: tuple[int, ...], *, stacked: bool) -> jax.Array:
    """The mean over axes, which are kept with length one.

    For stacked tables it is a product with equal weights. XLA on CPU (jax 0.10.2) fuses a large sum with the preconditioning that
    follows into one kernel, and writes its result, which is as large as the table, to memory. (For 4,096 tables of 64 x 64 the
    temporaries are 103 % of the tables with a sum, and 6 % with the product.)
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
    intermediate result leaves float32's range. In the literal form, `nu_token * nu_feature` underflows at |g| = 1e-10, and
    `nu_token / mean` underflows if one token's gradient is 1e19 times another's.

    Squares below 1.2e-38 are zero in float32, so roots below `sqrt(1.2e-38 / correction)` are not known. The denominator is at
    least this number. So a row without gradient gives zero if eps = 0, and no gradient takes a step of more than its own size in
    units of this number, for any eps.
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
    """`weight_decay * table`, in float32 for tables of fewer bits."""
    dtype = compute_dtype(table)
    return jnp.asarray(weight_decay, dtype) * table.astype(dtype)
