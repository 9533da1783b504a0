"""One step of Ember on a head whose gradient is not stored as an array.

The statistics come from the gradient's sums of squares, and the table is updated chunk by chunk. Shapes are written for a (V, D)
head.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .._math.axes import TableAxes
from .._math.chunks import over_chunks, put_chunk, take_chunk, tokens_from
from .._math.mesh import in_auto_mode, spec_like
from .._math.moments import bias_correction
from .._math.parts import first_row, over_parts
from .._math.platform_forms import read_as, write_in_place
from .._math.rounding import bits_at, places_along, rounded_update
from .._math.row_writes import set_rows
from .._math.rows import flat_ids, take_rows
from .._math.shares import Share
from .._math.softmax import LossOptions, rows_of
from .._math.state import Moments, squeeze_moments
from .._math.step import Hyperparameters, after_batch, decay_term, precondition
from .gradient import gradient_of_share
from .taps import Tap, specs_of_tap


class Preconditioner(NamedTuple):
    """The numbers that turn the gradient G of a head into an update.

    The update is `scale * (precondition(factor * G) + weight_decay * table)`. It is then rounded.
    """

    factor: Any
    nu_token: Any  # (V,)
    nu_feature: Any  # (D,)
    mean: Any
    correction: Any
    eps: Any
    weight_decay: Any
    finite: Any  # bool
    scale: Any
    rounding_key: Any = None  # uint32; None for rounding to the nearest


@functools.partial(jax.jit, static_argnames=("axes", "active_rows"))
def ember_head_step(
    tap: Tap,
    factor: Any,
    moments: Moments,
    by: Hyperparameters,
    *,
    axes: TableAxes,
    active_rows: bool,
) -> tuple[Preconditioner, Moments]:
    """`ember_step` from the sums of squares of the gradient, multiplied by `factor`. Returns the step and the state after it."""
    (token_axis,), (feature_axis,) = axes.token, axes.feature
    size, width = tap.token_squares.size * jax.lax.axis_size(axes.token_mesh), tap.feature_squares.size
    token_V1 = jnp.expand_dims(jnp.square(factor) * tap.token_squares / width, feature_axis)
    feature_1D = jnp.expand_dims(jnp.square(factor) * tap.feature_squares / size, token_axis)
    finite_11, new, mean_11 = after_batch(moments, token_V1, feature_1D, by.rate, axes=axes, active_rows=active_rows)
    correction, finite = bias_correction(new.count, by.rate).reshape(()), finite_11.reshape(())
    moments = squeeze_moments(new, axes)
    one = jnp.ones((), jnp.float32)
    eps, weight_decay = jnp.asarray(by.eps, jnp.float32), jnp.asarray(by.weight_decay, jnp.float32)
    vectors, mean = (moments.nu_token, moments.nu_feature), mean_11.reshape(())
    return Preconditioner(factor, *vectors, mean, correction, eps, weight_decay, finite, one), moments


# Compiled, but the caller donates: `jax.jit` inlines this function into the caller's program.
@functools.partial(jax.jit, static_argnames=("loss",))
def apply_head_step(
    table_VxD: jax.Array,
    source_VxD: jax.Array | None,
    tap: Tap,
    touched: tuple[jax.Array, jax.Array] | None,
    preconditioner: Preconditioner,
    *,
    loss: LossOptions,
) -> jax.Array:
    """The table after a step, in its dtype. Each chunk of the gradient is computed again, preconditioned and added.

    Args:
      table_VxD: the table.
      source_VxD: the table at which the gradient was taken. None if it is `table_VxD`, which then needs no copy.
      tap: the arrays that the gradient is computed from.
      touched: the ids, (M,), and the whole gradient, (M, D), of the rows of a tied table that a lookup touched too. They get an
        update of their own.
      preconditioner: the numbers that turn the gradient into an update.
      loss: the options of the loss.
    """
    of_part = functools.partial(_apply_to_part, loss=loss)
    if tap.shares is not None:  # nothing else is needed of the tap
        tap = Tap(None, None, None, None, None, None, tap.shares)

    def over_all(table_VxD, source_VxD, tap, touched, preconditioner):
        arrays = table_VxD, source_VxD, tap, touched, preconditioner
        if loss.layout is None:
            return of_part(*arrays)
        rows, whole = loss.layout.specs(loss.token_axis, 1)[1], PartitionSpec()
        of_numbers = jax.tree.map(lambda _: whole, preconditioner)._replace(nu_token=PartitionSpec(loss.layout.token_axes))
        of_tap = specs_of_tap(tap, loss.layout, loss.token_axis, whole=True)
        specs = rows, None if source_VxD is None else rows, of_tap, touched and whole, of_numbers
        return over_parts(of_part, loss.layout, specs, rows, *arrays)

    return in_auto_mode(over_all, lambda: spec_like(table_VxD), table_VxD, source_VxD, tap, touched, preconditioner)


def _apply_to_part(
    table_VxD: jax.Array, source_VxD: jax.Array | None, tap: Tap, touched: Any, by: Preconditioner, *, loss: LossOptions
) -> jax.Array:
    """`apply_head_step` of a whole head, or of this device's rows."""
    write = functools.partial(_write_chunks, source_VxD=source_VxD, tap=tap, by=by, loss=loss, dtype=table_VxD.dtype)
    if touched is None:
        return write_in_place(write, table_VxD)
    # These rows are read before the table is written. XLA would copy the table to read them afterwards.
    (tokens_M, of_rows_MxD), size = touched, table_VxD.shape[loss.token_axis]
    rows_M = tokens_M
    if loss.layout is not None:  # ids of other devices become padding
        rows_M = flat_ids(tokens_M - first_row(loss.layout, size), size)
    rows_MxD = take_rows(table_VxD, rows_M, loss.token_axis)
    at_MxD = rows_MxD if source_VxD is None else take_rows(source_VxD, rows_M, loss.token_axis)
    rows_MxD = _updated(rows_MxD, at_MxD, of_rows_MxD, rows_M, tokens_M, by, 0, loss.token_axis)
    return set_rows(write_in_place(write, table_VxD), rows_MxD, rows_M, loss.token_axis)


def _write_chunks(
    stored_VxD: jax.Array, source_VxD: jax.Array | None, tap: Tap, by: Preconditioner, loss: LossOptions, dtype: Any
) -> jax.Array:
    """The table with all chunks updated. It is stored as bits or as numbers, and `dtype` is the dtype of the numbers."""
    token_axis, size = loss.token_axis, stored_VxD.shape[loss.token_axis]
    first, rows = rows_of(stored_VxD, loss)

    def write(start, count, carry, *, is_padding=False):
        stored_VxD, source_VxD, tap, by = carry
        start = rows + start if is_padding else start
        share = Share(loss.layout, token_axis, count)
        of_chunk_CxD = read_as(take_chunk(stored_VxD, start, count, token_axis), dtype)
        rows_SxD = share.of(of_chunk_CxD)
        at_SxD = rows_SxD if source_VxD is None else share.of(take_chunk(source_VxD, start, count, token_axis))
        if is_padding:  # no gradient, but a dense step applies weight decay to these rows too
            gradient_SxD = jnp.zeros(rows_SxD.shape, jnp.float32)
        elif tap.shares is not None:
            gradient_SxD = take_chunk(tap.shares, start // share.parts, share.rows, token_axis)
        else:
            gradient_SxD = gradient_of_share(tap, at_SxD, first + start, share, loss)
        rows_S, tokens_S = (tokens_from(begin + share.first, share.rows) for begin in (start, first + start))
        new_SxD = _updated(rows_SxD, at_SxD, gradient_SxD, rows_S, tokens_S, by, token_axis, token_axis)
        new_CxD = share.gathered(read_as(new_SxD, stored_VxD.dtype))
        return put_chunk(stored_VxD, new_CxD, start, token_axis), source_VxD, tap, by

    carry = over_chunks(write, (stored_VxD, source_VxD, tap, by), rows, loss.chunk)
    return over_chunks(functools.partial(write, is_padding=True), carry, size - rows, loss.chunk)[0]


def _updated(
    chunk: jax.Array, at: jax.Array, gradient: jax.Array, rows_C: Any, tokens_C: Any, by: Preconditioner, here: int, in_table: int
) -> jax.Array:
    """Some rows after the step, added as `optax.apply_updates` does.

    `at` are the same rows where the gradient was taken. Weight decay is a part of the update, so it is theirs. `rows_C` are the
    places of the rows in this device's part of the table, and `tokens_C` those in the whole table.

    The token axis is `here` in the arrays of these rows, and `in_table` in the table.
    """
    nu_token = jnp.expand_dims(jnp.take(by.nu_token, rows_C, mode="fill", fill_value=0), 1 - here)
    nu_feature = jnp.expand_dims(by.nu_feature, here)
    update = precondition(gradient * by.factor, nu_token, nu_feature, by.mean, by.correction, by.eps)
    update = jnp.where(by.finite, update + decay_term(at, by.weight_decay).astype(update.dtype), 0.0) * by.scale
    if by.rounding_key is not None:
        features = places_along(1 - here, chunk.shape[1 - here], 2)
        places = sorted([(in_table, jnp.expand_dims(tokens_C, 1 - here)), (1 - in_table, features)], key=lambda place: place[0])
        update = rounded_update(update, chunk, bits_at(by.rounding_key, places))
    return (chunk + update).astype(chunk.dtype)
