"""One step of Ember on the rows that have a gradient: the dense step, at the cost of those rows and of a vector of length V.

A row without gradient does not move, and its `nu_token` only decays. So nothing of the size of the table is read or written.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ._dimension_numbers import TableAxes
from ._mean_square import compute_dtype, plain_mean_square
from ._moments import (
    DecayRate,
    Moments,
    all_over,
    bias_correction,
    count_batch,
    denominator_factors,
    mean_over,
    precondition,
    update_moment,
)
from ._rows import flat_ids, like_rows, rows_back, rows_first, sum_duplicates, take_rows


def ember_row_step(
    compact: jax.Array,
    ids: jax.Array,
    moments: Moments,
    table: jax.Array | None,
    *,
    axes: TableAxes,
    rate: DecayRate,
    eps: Any,
    weight_decay: Any,
) -> tuple[jax.Array, Moments]:
    """`ember_step` for a gradient that is zero outside of the rows `ids`.

    Args:
      compact: their gradients, of the table's shape with the axes of `ids` in the place of the token axis.
      ids: integers of any shape; equal ids are summed before they are squared, padding (below zero, from V on) is ignored.
      moments: the state before the step.
      table: the parameter, for its decay, or None.
      axes: the table's axes, without batch axes.
      rate: the decay rate.
      eps: added to the root, float32.
      weight_decay: times the touched rows of `table`, added to their update.

    Returns:
      The update in the shape and dtype of `compact`: a row's whole update where its id stands first, zeros where it stands again
      and in padding. And the state after the step.
    """
    (token_axis,), size = axes.token, moments.nu_token.shape[0]
    ids_N = flat_ids(ids, size)
    rows_NxF, first_N = sum_duplicates(rows_first(compact, token_axis, ids.ndim), ids_N, size)
    feature_axes = tuple(range(1, rows_NxF.ndim))
    axes = axes._replace(token=(0,), feature=feature_axes)

    token_N1 = plain_mean_square(rows_NxF, feature_axes)
    # As in `batch_statistics`: otherwise XLA shares the squares among both passes and writes them to memory.
    rows_NxF, token_N1 = jax.lax.optimization_barrier((rows_NxF, token_N1))
    token_N1 = mean_over(axes.feature_mesh, token_N1)
    feature_1F = jnp.sum(jnp.square(rows_NxF), 0, keepdims=True, dtype=compute_dtype(rows_NxF)) / size
    feature_1F = mean_over(axes.token_mesh, feature_1F.astype(jnp.float32))
    finite = all_over(axes.feature_mesh, jnp.all(jnp.isfinite(feature_1F)))
    finite &= all_over(axes.token_mesh, jnp.all(jnp.isfinite(token_N1)))

    count, total_notfinite = count_batch(moments, finite)
    # Zero instead of the rate leaves both averages bit for bit what they were.
    complement = jnp.where(finite, rate.complement, 0.0)
    seen_N = jnp.where(first_N & finite, rate.complement * token_N1.reshape(-1), 0.0)
    nu_token = (moments.nu_token - complement * moments.nu_token).at[ids_N].add(seen_N, mode="drop")
    nu_feature = jnp.where(finite, update_moment(moments.nu_feature, feature_1F[0], rate), moments.nu_feature)

    of_rows_N1 = like_rows(take_rows(nu_token, ids_N, 0), rows_NxF)
    factors = denominator_factors(of_rows_N1, nu_feature[None], axes, bias_correction(count, rate))
    update = precondition(rows_NxF, *factors, eps)
    if table is not None:
        decayed = take_rows(table, ids_N, token_axis)
        update = update + (weight_decay * decayed.astype(compute_dtype(decayed))).astype(update.dtype)
    update = jnp.where(like_rows(first_N & finite, update), update, jnp.zeros((), update.dtype))
    new = Moments(count, nu_token, nu_feature, total_notfinite)
    return rows_back(update.astype(compact.dtype), compact.shape, token_axis, ids.ndim), new
