"""The gradient of a softmax head that is never stored as an array.

It is kept as the arrays that it is computed from, as its sums of squares and, for a tied table, as the rows that a lookup
touched too. Shapes are written for a (V, D) head. The gradient is `g^T h`, where g is the gradient of the logits, (N, V). g is
computed from the hidden states h, the labels, the logsumexp and the gradient of the losses, which are N (D + 3) numbers together.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .._math.chunks import behind_barriers, over_chunks, put_chunk, take_chunk, tokens_from
from .._math.mesh import as_varying, in_auto_mode, spec_like, varying_axes
from .._math.parts import over_parts, parts_of, sum_over_batch, sum_over_tokens
from .._math.rows import take_rows
from .._math.shares import Share, gathers_tokens, has_shares, keeps_shares
from .._math.softmax import (
    LossOptions,
    chunk_of,
    gradients_over_chunks,
    logit_gradients,
    losses_and_lse,
    rows_of,
    table_gradient,
    where_it_counts,
)
from .manual import in_whole_table, whole_tokens
from .squares import add_share, no_squares, sum_of_shares
from .taps import Tap, tap_specs, without_squares


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def tapped_losses(
    hidden_NxD: jax.Array, table_VxD: jax.Array, labels_N: jax.Array, tap: Tap, link: jax.Array, loss: LossOptions, call: int
) -> jax.Array:
    """`token_losses`, but with no gradient with respect to the table.

    The gradient with respect to `tap` holds the arrays that the table's gradient is computed from, with the sums of squares that
    the tap has. The gradient with respect to `link` is one for this call, and zero for all others: see `as_linked`.
    """
    return _forward(hidden_NxD, table_VxD, labels_N, tap, link, loss, call)[0]


def _forward(hidden_NxD, table_VxD, labels_N, tap, link, loss: LossOptions, call: int):
    del call
    of_rows_NxD = as_varying(hidden_NxD, loss.layout.token_axes) if loss.layout else hidden_NxD
    losses_N, lse_N = losses_and_lse(of_rows_NxD, table_VxD, labels_N, loss)
    return losses_N, (hidden_NxD, table_VxD, labels_N, lse_N, link, tap.feature_squares)


def _backward(loss: LossOptions, call: int, residuals, cotangents_N):
    *residuals, link, squares_of_tap = residuals
    residuals = where_it_counts(residuals, cotangents_N)
    hidden_NxD, table_VxD, labels_N, lse_N = residuals
    if loss.layout is not None:  # a loop carries what varies from the start
        residuals = (as_varying(hidden_NxD, loss.layout.token_axes), *residuals[1:])

    def add(total, of_chunk_CxD, start, count):
        share = Share(loss.layout, loss.token_axis, count)
        return total and add_share(total, share.of_sum(of_chunk_CxD, table_VxD.dtype), start, share)

    # If hidden states are gathered, the tap has no squares.
    total = None if squares_of_tap is None else no_squares(table_VxD, loss, has_shares(loss.layout))
    of_hidden_NxD, total = gradients_over_chunks(loss, residuals, cotangents_N, total, add)
    # The step overwrites the table. If XLA put a part of this pass behind it, as it does on a TPU, it would copy the table.
    of_hidden_NxD, total = behind_barriers((of_hidden_NxD, total))
    of_hidden_NxD, cotangents_N = behind_barriers((sum_over_tokens(loss.layout, of_hidden_NxD), cotangents_N))
    squares = (None, None, None) if total is None else sum_of_shares(total, table_VxD, loss)
    labels_N, lse_N, cotangents_N = (array_N.astype(jnp.float32) for array_N in (labels_N, lse_N, cotangents_N))
    of_tap = Tap(hidden_NxD, labels_N, lse_N, cotangents_N, *squares)
    of_link = jnp.zeros_like(link).at[call].set(1.0)
    return differentiable_once(of_hidden_NxD, link), None, None, of_tap, of_link


tapped_losses.defvjp(_forward, _backward)


@jax.custom_jvp
def differentiable_once(gradient: jax.Array, link: jax.Array) -> jax.Array:
    """The gradient, which refuses to be differentiated again: it depends on the head, but JAX would see only the link."""
    del link
    return gradient


@differentiable_once.defjvp
def _refuse(_, __):
    raise TypeError(
        "the gradient of a loss with a fused head was differentiated again, for a gradient penalty or a Hessian, and the head "
        "would miss its part: leave the head out of heads."
    )


def as_linked(tap: Tap, of_link: jax.Array) -> Tap:
    """The tap, changed as the loss function would have changed the head's gradient on its way to the parameters.

    The loss function passes the link along with the table. The gradient of the link is one, unless the loss function stops
    gradients: then it is zero, and the head's gradient becomes zero. Any other value means that the loss function applies a
    custom gradient, whose effect on the head's gradient is not known. The tap becomes NaN, and the table skips the step.
    """
    factor = jnp.where((of_link == 1) | (of_link == 0), of_link, jnp.nan)

    # Zero times what is not finite would be NaN.
    tap = jax.tree.map(lambda array: jnp.where(factor == 0, jnp.zeros((), array.dtype), array), tap)
    linear = jax.tree.map(lambda array: factor * array, tap[3:])  # the factor is its own square
    return Tap(*tap[:3], *linear)


def joined(taps: Sequence[Tap], table_VxD: jax.Array, loss: LossOptions) -> Tap:
    """The tap of the sum of several losses: the tokens of all, and the sums of squares of the whole gradient.

    The square of a sum is not the sum of the squares, so the sums of squares take one more pass over the table. That pass is also
    for one loss whose tokens are gathered: then every device has all tokens in the result.
    """
    tokens, size = sum(tap.labels.size for tap in taps), table_VxD.shape[loss.token_axis]
    gathers, keeps = gathers_tokens(loss.layout, tokens, size), keeps_shares(loss.layout, tokens, size)

    of_part = functools.partial(_joined_part, loss=loss, gathers=gathers, keeps=keeps)

    def tap_of_all(of_array):
        return of_array._replace(shares=of_array.shares if keeps else None)

    def over_all(taps, table_VxD):
        if loss.layout is None:
            return of_part(taps, table_VxD)
        of_tap = tap_specs(loss.layout, loss.token_axis, whole=gathers)
        specs = tuple(without_squares(of_tap) for _ in taps), loss.layout.specs(loss.token_axis, 1)[1]
        return over_parts(of_part, loss.layout, specs, tap_of_all(of_tap), taps, table_VxD)

    def specs():
        if loss.layout is not None:
            return tap_of_all(tap_specs(loss.layout, loss.token_axis, whole=gathers))
        return jax.tree.map(spec_like, taps[0])._replace(token_squares=PartitionSpec(), feature_squares=PartitionSpec())

    return in_auto_mode(over_all, specs, tuple(taps), table_VxD)


def _joined_part(taps: Sequence[Tap], table_VxD: jax.Array, *, loss: LossOptions, gathers: bool, keeps: bool) -> Tap:
    """`joined` of a whole head, or of this device's rows."""
    arrays = [jnp.concatenate(of_calls) for of_calls in zip(*(tap[:4] for tap in taps), strict=True)]
    arrays = whole_tokens(arrays, loss.layout) if gathers else arrays
    table_VxD = as_varying(table_VxD, loss.layout.batch_axes) if loss.layout else table_VxD
    tap = Tap(*arrays, token_squares=None, feature_squares=None)
    first, rows = rows_of(table_VxD, loss)
    lowest = jnp.min(tap.labels, initial=0).astype(jnp.int32)

    def step(start, count, carry):
        tap, table_VxD, total = carry
        share, tokens_C = Share(loss.layout, loss.token_axis, count), tokens_from(first + start, count)
        chunk_CxD = chunk_of(table_VxD, start, tokens_C, loss, lowest)
        if gathers:
            of_share_SxD = gradient_of_share(tap, share.of(chunk_CxD), first + start, share, loss)
        else:
            of_share_SxD = share.of_sum(gradient_of_rows(tap, chunk_CxD, tokens_C, loss), table_VxD.dtype)
        return tap, table_VxD, add_share(total, of_share_SxD, start, share)

    carry = over_chunks(step, (tap, table_VxD, no_squares(table_VxD, loss, keeps)), rows, loss.chunk)
    token_V, feature_D, shares = sum_of_shares(carry[2], table_VxD, loss)
    return Tap(*arrays, token_squares=token_V, feature_squares=feature_D, shares=shares)


def gradient_of_share(tap: Tap, rows_SxD: jax.Array, start: Any, share: Share, loss: LossOptions) -> jax.Array:
    """The gradient of this device's share of the chunk that begins with token `start`, zero for rows of padding.

    The tap has all tokens of the devices that share the chunk.
    """
    places_S = share.first + jax.lax.iota(jnp.int32, share.rows)
    of_share_SxD = gradient_of_rows(tap, rows_SxD, start + places_S, loss)
    if not share.padding:
        return of_share_SxD
    return jnp.where(jnp.expand_dims(places_S < share.size, 1 - share.axis), of_share_SxD, 0.0)


def gradient_of_rows(tap: Tap, rows_CxD: jax.Array, tokens_C: jax.Array, loss: LossOptions) -> jax.Array:
    """The gradient of some rows of the head in float32, (C, D), or (D, C) if `loss.token_axis` is 1.

    Args:
      tap: the arrays that the gradient is computed from.
      rows_CxD: these rows of the head, (C, D), or (D, C) if `loss.token_axis` is 1.
      tokens_C: the tokens of the rows, below `loss.num_tokens` unless `loss.masks`.
      loss: the options of the loss.
    """
    rows_CxD = rows_CxD if loss.dtype is None else rows_CxD.astype(loss.dtype)
    labels_N = tap.labels.astype(jnp.int32)
    g_NxC = logit_gradients(tap.hidden, rows_CxD, labels_N, tap.lse, tap.cotangents, tokens_C, loss)
    return table_gradient(g_NxC, tap.hidden, loss)


def with_lookup(
    tap: Tap, table_VxD: jax.Array, ids_M: jax.Array, of_lookup_MxD: jax.Array, loss: LossOptions
) -> tuple[Tap, jax.Array]:
    """The gradient of a tied table: the gradient of the head plus the gradient of a lookup.

    Args:
      tap: the tap of the head.
      table_VxD: the table.
      ids_M: the ids of the lookup, distinct, in increasing order, V for padding.
      of_lookup_MxD: the gradient of the lookup, rows first.
      loss: the options of the loss.

    Returns:
      The tap with the sums of squares of the whole gradient, and the whole gradient of the rows of the lookup, (M, D) in float32.
    """
    size, by_rows = table_VxD.shape[loss.token_axis], loss._replace(token_axis=0, layout=None, masks=False)
    layout = loss.layout if loss.layout and loss.layout.is_manual else None  # elsewhere the arrays are whole
    rows_MxD = take_rows(table_VxD, ids_M, loss.token_axis)

    def add(start, count, carry):
        rows_MxD, of_lookup_MxD, total_MxD, more_D = carry
        ids_C, of_lookup_CxD = take_chunk(ids_M, start, count, 0), take_chunk(of_lookup_MxD, start, count, 0)
        valid_C1 = (ids_C < size)[:, None]
        tokens_C = in_whole_table(ids_C, size, layout)
        of_head_CxD = gradient_of_rows(tap, take_chunk(rows_MxD, start, count, 0), tokens_C, by_rows)
        if loss.num_tokens < size * parts_of(layout):  # rows of padding may be looked up, but the head does not use them
            of_head_CxD = jnp.where((tokens_C < loss.num_tokens)[:, None], of_head_CxD, 0.0)
        if layout and varying_axes(tap.hidden):  # each device has its own hidden states
            of_head_CxD = sum_over_batch(layout, of_head_CxD)
        total_CxD = jnp.where(valid_C1, of_head_CxD + of_lookup_CxD, 0.0)
        # (a + b)^2 - a^2 = b (2 a + b), which subtracts no large squares.
        more_CxD = jnp.where(valid_C1, of_lookup_CxD * (of_head_CxD + total_CxD), 0.0)
        # The gradient of a float64 head is float64, but the state is float32.
        more_D = more_D + jnp.sum(more_CxD, 0).astype(more_D.dtype)
        return rows_MxD, of_lookup_MxD, put_chunk(total_MxD, total_CxD, start, 0), more_D

    of_lookup_MxD = of_lookup_MxD.astype(jnp.float32)
    zeros_D = as_varying(jnp.zeros_like(tap.feature_squares), layout.token_axes if layout else ())
    carry = rows_MxD, of_lookup_MxD, jnp.zeros_like(of_lookup_MxD), zeros_D
    *_, total_MxD, more_D = over_chunks(add, carry, ids_M.size, loss.chunk)
    token_V = tap.token_squares.at[ids_M].set(jnp.sum(jnp.square(total_MxD), 1), mode="drop")
    more_D = sum_over_tokens(layout, more_D)
    # `jnp.maximum` keeps NaN.
    return tap._replace(token_squares=token_V, feature_squares=jnp.maximum(tap.feature_squares + more_D, 0.0)), total_MxD
