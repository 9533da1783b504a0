"""The checks of the arguments of the losses."""

from typing import Any

import jax
import jax.numpy as jnp

from .._math.parts import Layout
from .._math.softmax import LossOptions
from .._tree.boxes import unbox
from .._tree.hyperparameters import checked_number
from .._tree.inputs import check_array, checked_axis, checked_integer, shown
from ..row_sparse._slice import head_of

# Rows of one chunk. 1,024 to 4,096 were equally fast within the noise (131072 x 640, 512 tokens, two cores).
_CHUNK = 2048
# The most logits of one chunk, 128 MiB in float32, and numbers of its rows, 32 MiB. A chunk has at least _SMALLEST rows anyway.
_LOGITS, _NUMBERS = 1 << 25, 1 << 23
_SMALLEST = 128


def checked_head(table: Any, token_axis: Any) -> tuple[jax.Array, int, Any]:
    """The array of a head, its token axis counted from the front, and its fused head. The last is None for an array."""
    table = unbox(table)
    head = head_of(table)
    array = _floating(table if head is None else head.table, "table", "the head's matrix")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"table must be a matrix, (V, D) or (D, V), got shape {array.shape}; pass one head, without a bias.")
    return array, checked_axis(token_axis, array.shape), head


def check_hidden(hidden: Any, table_shape: tuple[int, ...], token_axis: int) -> jax.Array:
    """The hidden states as an array. Raises unless their last axis has the features of the head."""
    array = _floating(hidden, "hidden", "the hidden states before the head")
    width = table_shape[1 - token_axis]
    if array.ndim == 0 or array.shape[-1] != width:
        other = f", or token_axis={1 - token_axis}" if array.ndim and array.shape[-1] == table_shape[token_axis] else ""
        raise ValueError(
            f"hidden must have {width} features in its last axis for a table of shape {table_shape} with "
            f"token_axis={token_axis}, got shape {array.shape}; pass hidden states of shape (..., {width}){other}."
        )
    return array


def checked_labels(labels: Any, hidden_shape: tuple[int, ...]) -> jax.Array:
    """The labels as an array. Raises unless they are integers, one for each hidden state."""
    dtype = getattr(labels, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        what = shown(labels) if dtype is None else f"{dtype} of shape {jnp.shape(labels)}"
        raise TypeError(f"labels must be an array of integers, got {what}; pass the token ids that are predicted.")
    if jnp.shape(labels) != hidden_shape[:-1]:
        raise ValueError(
            f"labels must have shape {hidden_shape[:-1]}, one for each hidden state of shape {hidden_shape}, got "
            f"{jnp.shape(labels)}; shift or reshape them."
        )
    return jnp.asarray(labels)


def checked_where(where: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """The mask in the shape of the labels, or None."""
    if where is None:
        return None
    if getattr(where, "dtype", None) != jnp.bool_:
        what = f"{where.dtype}" if hasattr(where, "dtype") else shown(where)
        raise TypeError(f"where must be an array of booleans, got {what}; pass for example labels != -100.")
    try:
        return jnp.broadcast_to(where, shape)
    except ValueError:
        raise ValueError(
            f"where has shape {jnp.shape(where)}, which does not broadcast to the labels' {shape}; pass one for each."
        ) from None


def _checked_num_tokens(num_tokens: Any, size: int) -> int:
    """The number of rows of a head that are tokens. The other rows are padding."""
    if num_tokens is None:
        return size
    if not 1 <= (number := checked_integer(num_tokens, "num_tokens", size)) <= size:
        raise ValueError(
            f"num_tokens must be in 1 to {size}, the rows of the table, got {number}; pass the size of the vocabulary without "
            f"padding, or None for all rows."
        )
    return number


def checked_loss(
    token_axis: int,
    size: int,
    num_tokens: Any,
    chunk: Any,
    soft_cap: Any,
    z_loss: Any,
    label_smoothing: Any,
    hidden_states: int,
    width: int,
    layout: Layout | None,
) -> LossOptions:
    """The options of a loss of a head with `size` rows, with a chunk size that fits the hidden states and their width."""
    num_tokens = _checked_num_tokens(num_tokens, size)
    if soft_cap is not None:
        soft_cap = checked_number(soft_cap, "soft_cap", "a number above 0 or None, for example soft_cap=30.0")
        if not soft_cap > 0.0:
            raise ValueError(f"soft_cap must be above zero, got {soft_cap!r}; pass None for no cap.")
    z_loss = checked_number(z_loss, "z_loss", "a number >= 0, for example z_loss=1e-4")
    label_smoothing = checked_number(label_smoothing, "label_smoothing", "a number in [0, 1], for example label_smoothing=0.1")
    if label_smoothing > 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing!r}; pass the share to spread, such as 0.1.")
    hidden_states //= layout.batch_parts if layout else 1
    numbers = token_axis, num_tokens, _checked_chunk(chunk, hidden_states, width), soft_cap, z_loss, label_smoothing
    return LossOptions(*numbers, layout=layout, masks=layout is not None and num_tokens < size)


def _checked_chunk(chunk: Any, hidden_states: int, width: int) -> int:
    if chunk is None:
        most = min(_CHUNK, _LOGITS // max(hidden_states, 1), _NUMBERS // max(width, 1))
        return max(_SMALLEST, most // _SMALLEST * _SMALLEST)
    if (rows := checked_integer(chunk, "chunk", _CHUNK)) < 1:
        raise ValueError(f"chunk must be at least 1, got {rows}; pass None for the default, or a number like {_CHUNK}.")
    return rows


def _floating(array: Any, argument: str, what: str) -> jax.Array:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise TypeError(f"{argument} must be an array, got {shown(array)}; pass {what}.")
    check_array(array, argument, floating=True)
    if jnp.iscomplexobj(array):
        raise TypeError(f"{argument} must be real, got {array.dtype}; pass {what}.")
    return jnp.asarray(array)
