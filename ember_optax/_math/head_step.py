"""One step of Ember on a head whose gradient is not stored as an array.

The statistics come from the gradient's sums of squares, and the table is updated chunk by chunk. Shapes are written for a (V, D)
head.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .axes import TableAxes
from .chunks import over_chunks, put_chunk, take_chunk, tokens_from
from .head_gradient import HeadTap, TouchedRows, gradient_of_rows
from .moments import DecayRate, Moments, bias_correction, squeeze_moments
from .rounding import bits_at, places_along, rounded_update
from .row_writes import set_rows
from .rows import take_rows
from .softmax import HeadLoss
from .step import after_batch, decay_term, precondition


class HeadStep(NamedTuple):
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
    tap: HeadTap,
    factor: Any,
    moments: Moments,
    rate: DecayRate,
    eps: Any,
    weight_decay: Any,
    *,
    axes: TableAxes,
    active_rows: bool,
) -> tuple[HeadStep, Moments]:
    """`ember_step` from the sums of squares of the gradient, multiplied by `factor`. Returns the step and the state after it."""
    (token_axis,), (feature_axis,) = axes.token, axes.feature
    size, width = tap.token_squares.size, tap.feature_squares.size
    token_V1 = jnp.expand_dims(jnp.square(factor) * tap.token_squares / width, feature_axis)
    feature_1D = jnp.expand_dims(jnp.square(factor) * tap.feature_squares / size, token_axis)
    finite_11, new, mean_11 = after_batch(moments, token_V1, feature_1D, rate, axes=axes, active_rows=active_rows)
    correction, finite = bias_correction(new.count, rate).reshape(()), finite_11.reshape(())
    moments = squeeze_moments(new, axes)
    one = jnp.ones((), jnp.float32)
    eps, weight_decay = jnp.asarray(eps, jnp.float32), jnp.asarray(weight_decay, jnp.float32)
    step = HeadStep(factor, moments.nu_token, moments.nu_feature, mean_11.reshape(()), correction, eps, weight_decay, finite, one)
    return step, moments


# Compiled, but the caller donates: `jax.jit` inlines this function into the caller's program.
@functools.partial(jax.jit, static_argnames=("loss",))
def apply_head_step(
    table_VxD: jax.Array,
    source_VxD: jax.Array | None,
    tap: HeadTap,
    touched: TouchedRows | None,
    step: HeadStep,
    *,
    loss: HeadLoss,
) -> jax.Array:
    """The table after a step, in its dtype. Each chunk of the gradient is computed again, preconditioned and added.

    Args:
      table_VxD: the table.
      source_VxD: the table at which the gradient was taken. None if it is `table_VxD`, which then needs no copy.
      tap: the arrays that the gradient is computed from.
      touched: the rows of a tied table that have a gradient from a lookup too. They get an update of their own.
      step: the numbers that turn the gradient into an update.
      loss: the options of the loss.
    """
    token_axis, size = loss.token_axis, table_VxD.shape[loss.token_axis]
    write_touched = _keep
    if touched is not None:
        rows_MxD = take_rows(table_VxD, touched.ids, token_axis)
        at_MxD = rows_MxD if source_VxD is None else take_rows(source_VxD, touched.ids, token_axis)
        new_MxD = _updated(rows_MxD, at_MxD, touched.rows, touched.ids, step, 0, token_axis)
        write_touched = functools.partial(set_rows, rows=new_MxD, ids_N=touched.ids, token_axis=token_axis)

    def update(stored: Any) -> jax.Array:
        return _over_chunks(stored, source_VxD, tap, step, loss, size, table_VxD.dtype)

    def update_bits(table_VxD: jax.Array) -> jax.Array:
        # XLA on CPU (jax 0.10.2) copies the whole table for each chunk of bfloat16 that it writes.
        return jax.lax.bitcast_convert_type(update(jax.lax.bitcast_convert_type(table_VxD, jnp.uint16)), table_VxD.dtype)

    if table_VxD.dtype == jnp.bfloat16:
        return write_touched(jax.lax.platform_dependent(table_VxD, cpu=update_bits, default=update))
    return write_touched(update(table_VxD))


def _over_chunks(
    stored_VxD: jax.Array, source_VxD: jax.Array | None, tap: HeadTap, step: HeadStep, loss: HeadLoss, size: int, dtype: Any
) -> jax.Array:
    """The table with all chunks updated. It is stored as bits or as numbers, and `dtype` is the dtype of the numbers."""
    token_axis = loss.token_axis

    def update(start, count, carry):
        stored_VxD, source_VxD, tap, step = carry
        chunk_CxD, tokens_C = _as_type(take_chunk(stored_VxD, start, count, token_axis), dtype), tokens_from(start, count)
        at_CxD = chunk_CxD if source_VxD is None else take_chunk(source_VxD, start, count, token_axis)
        of_chunk_CxD = gradient_of_rows(tap, at_CxD, tokens_C, loss)
        new_CxD = _updated(chunk_CxD, at_CxD, of_chunk_CxD, tokens_C, step, token_axis, token_axis)
        return put_chunk(stored_VxD, _as_type(new_CxD, stored_VxD.dtype), start, token_axis), source_VxD, tap, step

    def decay(start, count, carry):
        # Rows of padding have no gradient, but a dense step applies weight decay to them too.
        (stored_VxD, source_VxD, step), start = carry, loss.num_tokens + start
        chunk_CxD = _as_type(take_chunk(stored_VxD, start, count, token_axis), dtype)
        at_CxD = chunk_CxD if source_VxD is None else take_chunk(source_VxD, start, count, token_axis)
        none_CxD = jnp.zeros(chunk_CxD.shape, jnp.float32)
        new_CxD = _updated(chunk_CxD, at_CxD, none_CxD, tokens_from(start, count), step, token_axis, token_axis)
        return put_chunk(stored_VxD, _as_type(new_CxD, stored_VxD.dtype), start, token_axis), source_VxD, step

    stored_VxD, *_ = over_chunks(update, (stored_VxD, source_VxD, tap, step), loss.num_tokens, loss.chunk)
    stored_VxD, *_ = over_chunks(decay, (stored_VxD, source_VxD, step), size - loss.num_tokens, loss.chunk)
    return stored_VxD


def _as_type(array: jax.Array, dtype: Any) -> jax.Array:
    return array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)


def _keep(table_VxD: jax.Array) -> jax.Array:
    return table_VxD


def _updated(
    chunk: jax.Array, at: jax.Array, gradient: jax.Array, tokens_C: jax.Array, step: HeadStep, here: int, in_table: int
) -> jax.Array:
    """Some rows after the step, added as `optax.apply_updates` does.

    `at` are the same rows where the gradient was taken. Weight decay is a part of the update, so it is theirs.

    The token axis is `here` in the arrays of these rows, and `in_table` in the table.
    """
    nu_token = jnp.expand_dims(jnp.take(step.nu_token, tokens_C, mode="fill", fill_value=0), 1 - here)
    nu_feature = jnp.expand_dims(step.nu_feature, here)
    update = precondition(gradient * step.factor, nu_token, nu_feature, step.mean, step.correction, step.eps)
    update = jnp.where(step.finite, update + decay_term(at, step.weight_decay).astype(update.dtype), 0.0) * step.scale
    if step.rounding_key is not None:
        features = places_along(1 - here, chunk.shape[1 - here], 2)
        places = sorted([(in_table, jnp.expand_dims(tokens_C, 1 - here)), (1 - in_table, features)], key=lambda place: place[0])
        update = rounded_update(update, chunk, bits_at(step.rounding_key, places))
    return (chunk + update).astype(chunk.dtype)
