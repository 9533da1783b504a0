"""One step of Ember on one table: the statistics, the next state, and the preconditioned update. Arrays only.

Shapes are written for a (V, D) table. Everything is float32, except that the update of a float64 gradient is float64.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .axes import TableAxes
from .mean_square import compute_dtype
from .mesh import mean_over
from .moments import DecayRate, all_finite, bias_correction, next_moments
from .platform_forms import batch_statistics, mean_of_moment
from .state import Moments, expand_moments, squeeze_moments

# The smallest normal float32. XLA flushes a smaller constant to zero, and then 0 / 0 is NaN.
_TINY = float(jnp.finfo(jnp.float32).tiny)


class Hyperparameters(NamedTuple):
    """The numbers of a step. The same for all tables, and for the dense, the row-sparse, the fused and the host table's step.

    A number is added here. It has no default, so that every step that makes these has to give it, and those that use them are
    `ember_step`, `ember_row_step` and the `Preconditioner` of fused heads.
    """

    rate: DecayRate
    eps: Any  # added to the root
    weight_decay: Any  # this times the parameter is added to the update


# Its own `jax.jit`, so that tables of one shape are traced once: 5,000 tables take a fifth of the time. XLA inlines the call.
@functools.partial(jax.jit, static_argnames=("axes", "active_rows"))
def ember_step(
    g_VxD: jax.Array,
    moments: Moments,
    by: Hyperparameters,
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
      by: the hyperparameters.
      table_VxD: the parameter; None for no decay.
      axes: the table's axes.
      active_rows: average the feature statistic over the rows with a gradient, as the paper's code did (`over_active_rows`).

    Returns:
      The update in the gradient's dtype, without the learning rate, and the state after the step.
    """
    g_VxD, token_V1, feature_1D = batch_statistics(g_VxD, axes)
    finite_11, new, mean_11 = after_batch(moments, token_V1, feature_1D, by.rate, axes=axes, active_rows=active_rows)
    update = precondition(g_VxD, new.nu_token, new.nu_feature, mean_11, bias_correction(new.count, by.rate), by.eps)
    if table_VxD is not None:
        update = update + decay_term(table_VxD, by.weight_decay).astype(update.dtype)
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
        return mean_over(axes.token_mesh, mean_of_moment(moments.nu_token, axes.token, stacked=bool(axes.batch)))
    return mean_over(axes.feature_mesh, mean_of_moment(moments.nu_feature, axes.feature, stacked=bool(axes.batch)))


def precondition(g_VxD: jax.Array, nu_token_V1, nu_feature_1D, mean_11, correction_11, eps) -> jax.Array:
    """`g / (a * b + eps)` with `a[i] * b[j] = sqrt(v_hat[i,j])`.

    `a = sqrt(nu_token) / sqrt(mean)` and `b = sqrt(nu_feature / correction)`. The roots come before the quotient, so that no
    intermediate result leaves float32's range. In the literal form, `nu_token * nu_feature` underflows at |g| = 1e-10, and
    `nu_token / mean` underflows if one token's gradient is 1e19 times another's.

    Squares below 1.2e-38 are zero in float32, so roots below `sqrt(1.2e-38 / correction)` are not known. The denominator is at
    least this number. So a row without gradient gives zero also if eps = 0, and for any eps an update is at most g divided by
    this number.
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
