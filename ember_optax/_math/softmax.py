"""Cross entropy of a softmax head in chunks of its vocabulary, forward and backward. No array has N x V elements. Arrays only.

Shapes are written for a (V, D) head. The backward pass computes the logits of each chunk again, and keeps only the logsumexp of
the forward pass. Products keep the dtype of their operands and add up in float32, because float32 operands would be slower.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .chunks import over_chunks, put_chunk, take_chunk, tokens_from
from .mean_square import compute_dtype
from .mesh import as_varying, varying_axes
from .parts import Layout, cotangent_over_tokens, first_row, sum_over_tokens
from .platform_forms import cast_in_loop
from .sums_in_parts import in_parts, number_of_parts, together


class LossOptions(NamedTuple):
    """The options of the loss of a head. All of them are static."""

    token_axis: int
    num_tokens: int  # the tokens of the softmax; the rows of the head from here on are padding
    chunk: int
    soft_cap: float | None
    z_loss: float
    label_smoothing: float
    dtype: Any = None  # rows of the head are cast to it before they are multiplied; None for no cast
    layout: Layout | None = None  # how the head is split by tokens; None for a whole head
    masks: bool = False  # whether chunks have rows of padding, because every device has equally many rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def token_losses(hidden_NxD: jax.Array, table_VxD: jax.Array, labels_N: jax.Array, loss: LossOptions) -> jax.Array:
    """The loss of each token, (N,) in float32.

        x[n,i]  = hidden[n] . table[i],  x = cap * tanh(x / cap) with a soft cap
        lse[n]  = log(sum_i exp(x[n,i]))
        loss[n] = lse[n] - (1 - s) * x[n,label[n]] - s * mean_i x[n,i] + z * lse[n]^2

    for the tokens i in 0 to `loss.num_tokens` - 1. A token whose loss has a cotangent of exactly zero adds exactly zero to every
    gradient, for any label and hidden state.

    Args:
      hidden_NxD: hidden states.
      table_VxD: the head. Its dtype may differ: products use the wider one.
      labels_N: int32. A label outside 0 to `loss.num_tokens` - 1 makes the loss NaN, and the gradient too if its cotangent is
        not zero.
      loss: the options.
    """
    return losses_and_lse(hidden_NxD, table_VxD, labels_N, loss)[0]


def losses_and_lse(
    hidden_NxD: jax.Array, table_VxD: jax.Array, labels_N: jax.Array, loss: LossOptions
) -> tuple[jax.Array, jax.Array]:
    """The loss of each token and its logsumexp, which is all that the backward pass needs in addition to the arguments."""
    dtype, lowest = _sum_dtype(hidden_NxD, table_VxD), jnp.min(labels_N, initial=0)
    first, rows = rows_of(table_VxD, loss)

    def add(start, count, carry):
        hidden_NxD, table_VxD, highest_N, sum_N, picked_N, total_N = carry
        tokens_C = tokens_from(first + start, count)
        x_NxC = _logits(hidden_NxD, chunk_of(table_VxD, start, tokens_C, loss, lowest), loss)
        picked_N = picked_N + jnp.sum(jnp.where(_is_label(labels_N, tokens_C), x_NxC, 0.0), 1)
        if loss.label_smoothing:
            total_N = total_N + jnp.sum(x_NxC, 1)
        if loss.masks:
            x_NxC = jnp.where(tokens_C < loss.num_tokens, x_NxC, -jnp.inf)
        new_N = jnp.maximum(highest_N, jnp.max(x_NxC, 1))
        sum_N = sum_N * jnp.exp(highest_N - new_N) + jnp.sum(jnp.exp(x_NxC - new_N[:, None]), 1)
        return hidden_NxD, table_VxD, new_N, sum_N, picked_N, total_N

    zeros_N = as_varying(jnp.zeros(labels_N.shape, dtype), varying_axes(hidden_NxD))
    # The start is finite, because exp(-inf - -inf) would be NaN if the logits of the first chunk overflow to -inf.
    carry = hidden_NxD, table_VxD, zeros_N + jnp.finfo(dtype).min, zeros_N, zeros_N, zeros_N
    *_, highest_N, sum_N, picked_N, total_N = over_chunks(add, carry, rows, loss.chunk)
    if loss.layout and loss.layout.token_axes:
        parts_N, highest_N = highest_N, jax.lax.pmax(jax.lax.stop_gradient(highest_N), loss.layout.token_axes)
        sum_N = sum_N * jnp.exp(parts_N - highest_N)
        sum_N, picked_N = sum_over_tokens(loss.layout, jnp.stack([sum_N, picked_N]))
        total_N = sum_over_tokens(loss.layout, total_N) if loss.label_smoothing else total_N
    lse_N = highest_N + jnp.log(sum_N)
    picked_N = jnp.where(_in_vocabulary(labels_N, loss), picked_N, jnp.nan)
    losses_N = lse_N - (1.0 - loss.label_smoothing) * picked_N
    if loss.label_smoothing:
        losses_N = losses_N - loss.label_smoothing / loss.num_tokens * total_N
    if loss.z_loss:
        losses_N = losses_N + loss.z_loss * jnp.square(lse_N)
    return losses_N, lse_N


def logit_gradients(
    hidden_NxD: jax.Array,
    chunk_CxD: jax.Array,
    labels_N: jax.Array,
    lse_N: jax.Array,
    cotangents_N: jax.Array,
    tokens_C: jax.Array,
    loss: LossOptions,
) -> jax.Array:
    """The gradient with respect to the logits of one chunk (before the cap), in the dtype of the products.

    It is exactly zero for a token whose cotangent is zero, also if its logits are not finite.

    Args:
      hidden_NxD: hidden states.
      chunk_CxD: some rows of the head.
      labels_N: labels.
      lse_N: logsumexp.
      cotangents_N: the gradient with respect to the loss of each token.
      tokens_C: the tokens of the rows, int32, below `loss.num_tokens` unless `loss.masks`.
      loss: the options.
    """
    # Zero times what is not finite would be NaN.
    x_NxC = jnp.where(_counts(cotangents_N)[:, None], _logits(hidden_NxD, chunk_CxD, loss), 0.0)
    cotangents_N = jnp.where(_in_vocabulary(labels_N, loss), cotangents_N, jnp.nan)
    factor_N = cotangents_N * (1.0 + 2.0 * loss.z_loss * lse_N) if loss.z_loss else cotangents_N
    is_label_NxC = _is_label(labels_N, tokens_C)
    g_NxC = jnp.exp(x_NxC - lse_N[:, None]) * factor_N[:, None]
    g_NxC = g_NxC - jnp.where(is_label_NxC, (cotangents_N * (1.0 - loss.label_smoothing))[:, None], 0.0)
    if loss.label_smoothing:
        g_NxC = g_NxC - (cotangents_N * (loss.label_smoothing / loss.num_tokens))[:, None]
    if loss.soft_cap is not None:
        g_NxC = g_NxC * (1.0 - jnp.square(x_NxC / loss.soft_cap))
    if loss.masks:
        g_NxC = jnp.where(tokens_C < loss.num_tokens, g_NxC, 0.0)
    return g_NxC.astype(_product_dtype(hidden_NxD, chunk_CxD))


def where_it_counts(residuals: Any, cotangents_N: jax.Array) -> Any:
    """The residuals `(hidden_NxD, table_VxD, labels_N, lse_N)`, with zeros for tokens whose cotangent is zero.

    Otherwise zero times a hidden state or a logsumexp that is not finite would be NaN.
    """
    hidden_NxD, table_VxD, labels_N, lse_N = residuals
    counts_N = _counts(cotangents_N)
    hidden_NxD = jnp.where(counts_N[:, None], hidden_NxD, jnp.zeros((), hidden_NxD.dtype))
    return hidden_NxD, table_VxD, jnp.where(counts_N, labels_N, 0), jnp.where(counts_N, lse_N, 0.0)


def table_gradient(g_NxC: jax.Array, hidden_NxD: jax.Array, loss: LossOptions) -> jax.Array:
    """The gradient of one chunk of the head from the gradient of its logits, in the layout of the head and in float32."""
    pair = (g_NxC, hidden_NxD) if loss.token_axis == 0 else (hidden_NxD, g_NxC)
    return _product(*pair, 0, 0)


def hidden_gradient(g_NxC: jax.Array, chunk_CxD: jax.Array, loss: LossOptions) -> jax.Array:
    """The part of the hidden states' gradient that one chunk adds, (N, D) in float32."""
    return _product(g_NxC, chunk_CxD, 1, loss.token_axis)


def rows_of(table_VxD: jax.Array, loss: LossOptions) -> tuple[Any, int]:
    """The token of the first row, and the number of rows that the loops go over, of a head or of this device's part of one."""
    size = table_VxD.shape[loss.token_axis]
    return first_row(loss.layout, size), size if loss.layout else loss.num_tokens


def chunk_of(table_VxD: jax.Array, start: Any, tokens_C: jax.Array, loss: LossOptions, lowest: jax.Array) -> jax.Array:
    """The rows of a head that begin with row `start`, in the dtype of the products, with zeros for rows of padding.

    `tokens_C` are the tokens of these rows, and `lowest` is the lowest label.
    """
    chunk_CxD = cast_in_loop(take_chunk(table_VxD, start, tokens_C.size, loss.token_axis), start, lowest)
    if loss.masks:
        is_token = jnp.expand_dims(tokens_C < loss.num_tokens, 1 - loss.token_axis)
        chunk_CxD = jnp.where(is_token, chunk_CxD, jnp.zeros((), chunk_CxD.dtype))
    return chunk_CxD if loss.dtype is None else chunk_CxD.astype(loss.dtype)


def _forward(hidden_NxD, table_VxD, labels_N, loss: LossOptions):
    losses_N, lse_N = losses_and_lse(hidden_NxD, table_VxD, labels_N, loss)
    return losses_N, (hidden_NxD, table_VxD, labels_N, lse_N)


def gradients_over_chunks(
    loss: LossOptions, residuals: Any, cotangents_N: jax.Array, total: Any, add: Callable[[Any, jax.Array, Any, int], Any]
) -> tuple[jax.Array, Any]:
    """The gradient of the hidden states, and `total` after `total = add(total, of_chunk_CxD, start, count)` for every chunk.

    `residuals` come from `where_it_counts`. `of_chunk_CxD` is the gradient of these rows of the head in float32. Rows of padding
    are in no chunk.
    """
    hidden_NxD, table_VxD, labels_N, lse_N = residuals
    lowest, (first, rows) = jnp.min(labels_N, initial=0), rows_of(table_VxD, loss)

    def step(start, count, carry):
        hidden_NxD, table_VxD, of_parts, total = carry
        tokens_C = tokens_from(first + start, count)
        chunk_CxD = chunk_of(table_VxD, start, tokens_C, loss, lowest)
        g_NxC = logit_gradients(hidden_NxD, chunk_CxD, labels_N, lse_N, cotangents_N, tokens_C, loss)
        of_parts = [of + hidden_gradient(g, chunk_CxD, loss) for of, g in zip(of_parts, in_parts(g_NxC, parts), strict=True)]
        return hidden_NxD, table_VxD, of_parts, add(total, table_gradient(g_NxC, hidden_NxD, loss), start, count)

    dtype = _sum_dtype(hidden_NxD, table_VxD)
    parts = number_of_parts(hidden_NxD, dtype) if loss.layout is not None else 1  # without a layout a slice might send rows
    of_parts = [jnp.zeros_like(part_PxD, dtype) for part_PxD in in_parts(hidden_NxD, parts)]
    *_, of_parts, total = over_chunks(step, (hidden_NxD, table_VxD, of_parts, total), rows, loss.chunk)
    # Zero times a row of the head that is not finite is NaN as well.
    counted = zip(in_parts(_counts(cotangents_N)[:, None], parts), of_parts, strict=True)
    return together([jnp.where(counts_P, of, 0.0).astype(hidden_NxD.dtype) for counts_P, of in counted]), total


def _backward(loss: LossOptions, residuals, cotangents_N):
    def put(table_VxD, of_chunk_CxD, start, count):
        del count
        return put_chunk(table_VxD, of_chunk_CxD, start, loss.token_axis)

    cotangents_N = cotangent_over_tokens(loss.layout, cotangents_N, residuals[1])
    residuals = where_it_counts(residuals, cotangents_N)
    of_hidden_NxD, of_table_VxD = gradients_over_chunks(loss, residuals, cotangents_N, jnp.zeros_like(residuals[1]), put)
    return of_hidden_NxD, of_table_VxD, None


token_losses.defvjp(_forward, _backward)


def _logits(hidden_NxD: jax.Array, chunk_CxD: jax.Array, loss: LossOptions) -> jax.Array:
    x_NxC = _product(hidden_NxD, chunk_CxD, 1, 1 - loss.token_axis)
    return x_NxC if loss.soft_cap is None else loss.soft_cap * jnp.tanh(x_NxC / loss.soft_cap)


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    dtype = _product_dtype(a, b)
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), axes, preferred_element_type=_sum_dtype(a, b))


def _product_dtype(a: jax.Array, b: jax.Array):
    return jnp.promote_types(a.dtype, b.dtype)


def _sum_dtype(a: jax.Array, b: jax.Array):
    return jnp.promote_types(compute_dtype(a), compute_dtype(b))


def _is_label(labels_N: jax.Array, tokens_C: jax.Array) -> jax.Array:
    return labels_N[:, None] == tokens_C[None, :]


def _in_vocabulary(labels_N: jax.Array, loss: LossOptions) -> jax.Array:
    return (labels_N >= 0) & (labels_N < loss.num_tokens)


def _counts(cotangents_N: jax.Array) -> jax.Array:
    """A mask of the tokens whose loss counts. It is False for masked tokens, and True where the cotangent is NaN."""
    return cotangents_N != 0
