"""The gradient of a softmax head that is never stored as an array.

It is kept as the arrays that it is computed from, as its sums of squares and, for a tied table, as the rows that a lookup
touched too. Shapes are written for a (V, D) head. The gradient is `g^T h`, where g is the gradient of the logits, (N, V). g is
computed from the hidden states h, the labels, the logsumexp and the gradient of the losses, which are N (D + 3) numbers together.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._math.chunks import over_chunks, put_chunk, take_chunk, tokens_from
from .._math.mesh import as_varying, in_auto_mode, spec_entries, spec_like, spec_of
from .._math.parts import Layout, over_parts, sum_over_batch, sum_over_tokens
from .._math.rows import take_rows
from .._math.softmax import (
    LossOptions,
    gradients_over_chunks,
    logit_gradients,
    losses_and_lse,
    rows_of,
    table_gradient,
    where_it_counts,
)


class Tap(NamedTuple):
    """The arrays that the gradient of a head is computed from.

    A tap of zeros is an argument of the loss. The "gradient" with respect to it is the tap with these arrays.
    """

    hidden: Any  # (N, D)
    labels: Any  # (N,) in float32, which holds the integers of a vocabulary below 2^24
    lse: Any  # (N,)
    cotangents: Any  # (N,)
    token_squares: Any  # (V,): sum_j G[i,j]^2; None for one of several calls
    feature_squares: Any  # (D,): sum_i G[i,j]^2; None for one of several calls


LARGEST_VOCABULARY = 1 << 24


def tap_shapes(hidden: jax.Array, size: int, layout: Layout | None) -> Tap:
    """The shapes, dtypes and, on explicit axes, shardings of the tap of a loss with these hidden states and `size` tokens."""
    width, mesh = hidden.shape[-1], jax.typeof(hidden).sharding.mesh
    tokens, is_explicit = hidden.size // width, AxisType.Explicit in mesh.axis_types
    shapes = Tap((tokens, width), (tokens,), (tokens,), (tokens,), (size,), (width,))
    specs = tap_specs(layout or Layout((), spec_of(spec_entries(hidden)[:-1])))

    def shape_of(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec) if is_explicit else None)

    dtypes = [hidden.dtype] + [jnp.float32] * 5
    return Tap(*map(shape_of, shapes, dtypes, specs))


def tap_specs(layout: Layout) -> Tap:
    """The specs of a tap. Its tokens are in any order, because only sums over them are computed."""
    of_N, of_V = PartitionSpec(layout.batch_axes or None), PartitionSpec(layout.token_axes or None)
    return Tap(of_N, of_N, of_N, of_N, of_V, PartitionSpec())


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
        del count
        return total and _add_squares(total, sum_over_batch(loss.layout, of_chunk_CxD), start, loss)

    zeros = None if squares_of_tap is None else _zero_squares(table_VxD, loss)
    of_hidden_NxD, squares = gradients_over_chunks(loss, residuals, cotangents_N, zeros, add)
    of_hidden_NxD = sum_over_tokens(loss.layout, of_hidden_NxD)
    token_V, feature_D = (None, None) if squares is None else (squares[0], sum_over_tokens(loss.layout, squares[1]))
    labels_N, lse_N, cotangents_N = (array_N.astype(jnp.float32) for array_N in (labels_N, lse_N, cotangents_N))
    of_tap = Tap(hidden_NxD, labels_N, lse_N, cotangents_N, token_V, feature_D)
    of_link = jnp.zeros_like(link).at[call].set(1.0)
    return differentiable_once(of_hidden_NxD, link), None, None, of_tap, of_link


def _zero_squares(table_VxD: jax.Array, loss: LossOptions) -> tuple[jax.Array, jax.Array]:
    zeros = (jnp.zeros(table_VxD.shape[axis], jnp.float32) for axis in (loss.token_axis, 1 - loss.token_axis))
    token_V, feature_D = (as_varying(array, loss.layout.token_axes) if loss.layout else array for array in zeros)
    return token_V, feature_D


def _add_squares(total: Any, of_chunk_CxD: jax.Array, start: Any, loss: LossOptions) -> tuple[jax.Array, jax.Array]:
    """The sums of squares with those of a chunk of the gradient, which was summed over the devices before it is squared.

    With the third pass that sends 2 V D numbers for the V rows of a device. The other way sends N D and V D: every device gets
    all N hidden states and works on its share of the V rows. But its temporaries are those of a dense step: 434 MiB instead of 19
    (262144 x 1152, 8,192 tokens, 2 x 4 v5e, libtpu 0.0.42).
    """
    (token_V, feature_D), squares_CxD = total, jnp.square(of_chunk_CxD)
    token_V = put_chunk(token_V, jnp.sum(squares_CxD, 1 - loss.token_axis), start, 0)
    return token_V, feature_D + jnp.sum(squares_CxD, loss.token_axis).astype(feature_D.dtype)


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

    The square of a sum is not the sum of the squares, so the sums of squares take one more pass over the table.
    """

    def of_part(taps, table_VxD):
        arrays = [jnp.concatenate(of_calls) for of_calls in zip(*(tap[:4] for tap in taps), strict=True)]
        tap = Tap(*arrays, token_squares=None, feature_squares=None)
        first, rows = rows_of(table_VxD, loss)

        def step(start, count, carry):
            tap, table_VxD, total = carry
            chunk_CxD = take_chunk(table_VxD, start, count, loss.token_axis)
            of_chunk_CxD = gradient_of_rows(tap, chunk_CxD, tokens_from(first + start, count), loss)
            return tap, table_VxD, _add_squares(total, of_chunk_CxD, start, loss)

        carry = over_chunks(step, (tap, table_VxD, _zero_squares(table_VxD, loss)), rows, loss.chunk)
        token_V, feature_D = carry[2]
        return tap._replace(token_squares=token_V, feature_squares=sum_over_tokens(loss.layout, feature_D))

    def over_all(taps, table_VxD):
        if loss.layout is None:
            return of_part(taps, table_VxD)
        of_tap = tap_specs(loss.layout)
        specs = tuple(of_tap._replace(token_squares=None, feature_squares=None) for _ in taps)
        return over_parts(of_part, loss.layout, (specs, loss.layout.specs(loss.token_axis, 1)[1]), of_tap, taps, table_VxD)

    def specs():
        of_V = PartitionSpec(loss.layout.token_axes if loss.layout else None)
        return jax.tree.map(spec_like, taps[0])._replace(token_squares=of_V, feature_squares=PartitionSpec())

    return in_auto_mode(over_all, specs, tuple(taps), table_VxD)


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
    return sum_over_batch(loss.layout, table_gradient(g_NxC, tap.hidden, loss))


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
    rows_MxD = take_rows(table_VxD, ids_M, loss.token_axis)

    def add(start, count, carry):
        rows_MxD, of_lookup_MxD, total_MxD, more_D = carry
        ids_C, of_lookup_CxD = take_chunk(ids_M, start, count, 0), take_chunk(of_lookup_MxD, start, count, 0)
        valid_C1 = (ids_C < size)[:, None]
        of_head_CxD = gradient_of_rows(tap, take_chunk(rows_MxD, start, count, 0), ids_C, by_rows)
        if loss.num_tokens < size:  # rows of padding may be looked up, but the head does not use them
            of_head_CxD = jnp.where((ids_C < loss.num_tokens)[:, None], of_head_CxD, 0.0)
        total_CxD = jnp.where(valid_C1, of_head_CxD + of_lookup_CxD, 0.0)
        # (a + b)^2 - a^2 = b (2 a + b), which subtracts no large squares.
        more_CxD = jnp.where(valid_C1, of_lookup_CxD * (of_head_CxD + total_CxD), 0.0)
        # The gradient of a float64 head is float64, but the state is float32.
        more_D = more_D + jnp.sum(more_CxD, 0).astype(more_D.dtype)
        return rows_MxD, of_lookup_MxD, put_chunk(total_MxD, total_CxD, start, 0), more_D

    of_lookup_MxD = of_lookup_MxD.astype(jnp.float32)
    carry = rows_MxD, of_lookup_MxD, jnp.zeros_like(of_lookup_MxD), jnp.zeros_like(tap.feature_squares)
    *_, total_MxD, more_D = over_chunks(add, carry, ids_M.size, loss.chunk)
    token_V = tap.token_squares.at[ids_M].set(jnp.sum(jnp.square(total_MxD), 1), mode="drop")
    # `jnp.maximum` keeps NaN.
    return tap._replace(token_squares=token_V, feature_squares=jnp.maximum(tap.feature_squares + more_D, 0.0)), total_MxD
