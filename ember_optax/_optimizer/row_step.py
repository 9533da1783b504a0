"""One step of Ember on the rows that have a gradient: the dense step, at the cost of these rows and a vector of length V.

A row without gradient does not move, and its `nu_token` only decays. So nothing of the size of the table is read or written.
Weight decay is the exception: the dense step decays every row, this one the rows of the batch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .._math.axes import TableAxes
from .._math.mean_square import compute_dtype, mean_square
from .._math.mesh import all_over, mean_over
from .._math.moments import all_finite, bias_correction, next_moments
from .._math.rows import flat_ids, like_rows, rows_back, rows_first, sum_duplicates, take_rows
from .._math.state import Moments, expand_moments, squeeze_moments
from .._math.step import Hyperparameters, decay_term, mean_moment, over_active_rows, precondition


@functools.partial(jax.jit, static_argnames=("axes", "active_rows"))
def ember_row_step(
    compact: jax.Array,
    ids: jax.Array,
    moments: Moments,
    by: Hyperparameters,
    table: jax.Array | None = None,
    *,
    axes: TableAxes,
    active_rows: bool = False,
    num_rows: Any = None,
) -> tuple[jax.Array, Moments]:
    """`ember_step` for a gradient that is zero outside of the rows `ids`.

    Args:
      compact: the gradients of these rows, of the table's shape with the axes of `ids` instead of the token axis.
      ids: integers of any shape. The rows of equal ids are summed before they are squared. Padding (ids below zero, or V and
        above) is ignored.
      moments: the state before the step.
      by: the hyperparameters.
      table: the parameter; None for no decay.
      axes: the table's axes, without batch axes.
      active_rows: as in `ember_step`.
      num_rows: V, if `moments` has `nu_token` of some rows only, to which `ids` refer; None if it has all rows. Some rows are
        not enough for `active_rows`, which reads every `nu_token`.

    Returns:
      The update in the shape and dtype of `compact`, and the state after the step. The first occurrence of an id has the row's
      whole update. Later occurrences and padding have zeros.
    """
    (token_axis,), size = axes.token, moments.nu_token.shape[0]
    ids_N = flat_ids(ids, size)
    rows_NxF, first_N = sum_duplicates(rows_first(compact, token_axis, ids.ndim), ids_N, size)
    axes = axes._replace(token=(0,), feature=tuple(range(1, rows_NxF.ndim)))
    old = expand_moments(moments, axes)

    rows_NxF, token_N1, feature_1F = _row_statistics(rows_NxF, first_N, size if num_rows is None else num_rows, axes)
    if active_rows:
        feature_1F = over_active_rows(feature_1F, _active_share(token_N1, size), axes)
    # Check `nu_token` only in the rows of the batch, because a row-sparse step reads no others.
    finite_11 = all_finite(old._replace(nu_token=take_rows(old.nu_token, ids_N, 0)), token_N1, feature_1F, axes)
    if active_rows:  # the mean of nu_token reads every token
        finite_11 &= all_over(axes.token_mesh, jnp.all(jnp.isfinite(old.nu_token), axes.token, keepdims=True))
    new = next_moments(
        old, token_N1, feature_1F, finite_11, by.rate, lambda decayed, rows: decayed.at[ids_N].add(rows, mode="drop")
    )

    mean_11 = mean_moment(new, axes, active_rows=active_rows)
    nu_token_N1 = take_rows(new.nu_token, ids_N, 0)
    update = precondition(rows_NxF, nu_token_N1, new.nu_feature, mean_11, bias_correction(new.count, by.rate), by.eps)
    if table is not None:
        update = update + decay_term(take_rows(table, ids_N, token_axis), by.weight_decay).astype(update.dtype)
    update = jnp.where(like_rows(first_N, update) & finite_11, update, jnp.zeros((), update.dtype))
    return rows_back(update.astype(compact.dtype), compact.shape, token_axis, ids.ndim), squeeze_moments(new, axes)


def _row_statistics(
    rows_NxF: jax.Array, first_N: jax.Array, num_rows: Any, axes: TableAxes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rows for the next pass, the token statistic of these rows, and the feature statistic of the whole gradient."""
    token_N1 = mean_square(rows_NxF, axes.feature)
    # As in `batch_statistics`: without the barrier, XLA computes the squares once for both passes and writes them to memory.
    rows_NxF, token_N1 = jax.lax.optimization_barrier((rows_NxF, token_N1))
    token_N1 = jnp.where(like_rows(first_N, token_N1), mean_over(axes.feature_mesh, token_N1), 0.0)
    feature_1F = jnp.sum(jnp.square(rows_NxF), 0, keepdims=True, dtype=compute_dtype(rows_NxF)) / num_rows
    return rows_NxF, token_N1, mean_over(axes.token_mesh, feature_1F.astype(jnp.float32))


def _active_share(token_N1: jax.Array, size: int) -> jax.Array:
    return jnp.sum(token_N1 > 0, 0, keepdims=True, dtype=jnp.float32) / size
