"""Softmax cross entropy of a head, computed from hidden states instead of logits.

An option is added here, in `checked_loss` (`_checks.py`), and in `LossOptions` and its gradient (`_math/softmax.py`), which fused
heads use too.
"""

import functools

import jax
import jax.numpy as jnp

from .._math.mesh import as_varying, in_auto_mode, spec_like, varying_axes
from .._math.parts import over_parts, parts_of
from .._math.rows import flat_ids
from .._math.softmax import LossOptions, token_losses
from .._tree.boxes import unbox
from ._checks import check_hidden, checked_head, checked_labels, checked_loss, checked_where
from ._layout import layout_of


def linear_softmax_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    labels: jax.Array,
    *,
    token_axis: int = 0,
    where: jax.Array | None = None,
    num_tokens: int | None = None,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    token_mesh_axes: str | tuple[str, ...] | None = None,
    batch_mesh_axes: str | tuple[str, ...] | None = None,
) -> jax.Array:
    r"""Softmax cross entropy of each token, in chunks of the vocabulary. The gradient computes the logits of each chunk again.

    .. math::
        x_i &= h \cdot table_i, \quad \text{with a soft cap } x_i \leftarrow c \tanh(x_i / c) \\
        z &= \log \sum_i e^{x_i} \\
        loss &= z - (1 - s) \, x_{label} - s \, \mathrm{mean}_i\, x_i + w z^2

    For N hidden states the largest temporary has N x `chunk` elements. The usual loss has several temporaries of N x V. The
    gradient of the table is V x D, as for any loss. Forward and backward take four products of N x V x D, and the usual loss
    takes three. The loss works under `jax.jit`, `jax.grad`, `jax.vmap`, `jax.checkpoint` and `jax.shard_map`, with any optimizer.
    It does not work in forward mode (`jax.jvp`).

    Products have the wider dtype of `hidden` and `table`, and add up in float32. If both are bfloat16, products run at the speed
    of bfloat16. For a float32 table in mixed precision pass `table.astype(jnp.bfloat16)`.

    Instead of `where`, a loss may be masked afterwards, for example by `jnp.where(labels != -100, losses, 0.0)`. A token whose
    loss does not count adds exactly zero to every gradient, also if its loss is NaN or its hidden state is not finite.
    (`losses * mask` is not enough, because NaN times zero is NaN.)

    Args:
      hidden: hidden states, (..., D), floating.
      table: the head, (V, D), or (D, V) with `token_axis=1`, floating, without a bias.
      labels: integers, (...). A label that is not a token, such as -100, makes its loss NaN. It makes the gradients NaN too,
        unless it is masked.
      token_axis: the axis of `table` that is the vocabulary.
      where: booleans that broadcast to `labels`. Tokens with False have a loss of zero and no gradient, for any label and hidden
        state. None counts all tokens.
      num_tokens: the number of tokens in a table that has rows of padding after them. None for a table without padding. Rows of
        padding have no probability and a gradient of exactly zero, for any content. Their ids are not valid labels.
      soft_cap: the largest absolute logit c, as in Gemma 2; None for no cap.
      z_loss: w, the weight of the squared logsumexp.
      label_smoothing: s, the share of each label that is spread over all tokens, as in `optax.losses.smooth_labels`.
      chunk: the number of rows of the table in one product. None is 2,048, and less for more than 16,384 hidden states or
        4,096 features.
      token_mesh_axes: the mesh axes that split the vocabulary of the table, major to minor. None is what the type of the table
        shows, which is nothing under `jax.jit` with automatic axes and inside `jax.shard_map`: name them there. Each device then
        works on its own rows, and gathers no others. (Without it, XLA gathers the whole table for each chunk.)
      batch_mesh_axes: the mesh axes that split the hidden states, for automatic axes. None is all other axes of the mesh.

    Returns:
      The losses in float32 (float64 for float64), of the shape of `labels`. Average them over the tokens that count:
      `losses.sum() / where.sum()`.

    Raises:
      TypeError: `hidden` or `table` is not a floating array, `labels` are not integers, `where` is not boolean, or an option is
        not a number.
      ValueError: shapes do not fit, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax.losses import linear_softmax_cross_entropy
      >>> hidden, table = jnp.ones((2, 3, 8)), jnp.zeros((1000, 8))
      >>> losses = linear_softmax_cross_entropy(hidden, table, jnp.array([[5, 9, 5], [1, 2, -100]]), where=jnp.arange(3) < 2)
      >>> print(losses.shape, f"{losses[0, 0]:.4f}", losses[1, 2])
      (2, 3) 6.9078 0.0

    References:
      Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", https://arxiv.org/abs/2411.09009; soft cap: Gemma 2,
      https://arxiv.org/abs/2408.00118; z-loss: PaLM, https://arxiv.org/abs/2204.02311; docs/chunked_loss.md
    """
    array, token_axis, head = checked_head(table, token_axis)
    if head is not None and jnp.ndim(hidden):
        head.check_axis(token_axis, jnp.shape(hidden)[-1])
    hidden = check_hidden(hidden, array.shape, token_axis)
    labels = checked_labels(labels, hidden.shape)
    where = checked_where(where, labels.shape)
    layout = layout_of(hidden, array, labels, token_axis, token_mesh_axes, batch_mesh_axes)
    size = array.shape[token_axis] * parts_of(layout)
    loss = checked_loss(
        token_axis, size, num_tokens, chunk, soft_cap, z_loss, label_smoothing, labels.size, hidden.shape[-1], layout
    )
    if where is not None:
        # The gradient does not need this, but `jax_debug_nans` also checks losses that are masked later.
        hidden, labels = jnp.where(where[..., None], hidden, jnp.zeros((), hidden.dtype)), jnp.where(where, labels, 0)
    if head is not None:
        losses = head.losses(hidden, labels, loss, unbox(table).dtype)
    else:
        of_tokens = functools.partial(_losses if layout is None else _losses_of_parts, loss=loss)
        losses = in_auto_mode(of_tokens, functools.partial(spec_like, labels), hidden, array, labels)
    return losses if where is None else jnp.where(where, losses, jnp.zeros((), losses.dtype))


def _losses(hidden: jax.Array, table: jax.Array, labels: jax.Array, *, loss: LossOptions) -> jax.Array:
    hidden_NxD, labels_N = hidden.reshape(labels.size, hidden.shape[-1]), flat_ids(labels, loss.num_tokens)
    # Inside `jax.shard_map` the carry of a loop needs a varying type from the start. The gradient is summed over devices later.
    axes = varying_axes(hidden_NxD) | varying_axes(table) | varying_axes(labels_N)
    hidden_NxD, table = (as_varying(array, axes - varying_axes(array)) for array in (hidden_NxD, table))
    labels_N = as_varying(labels_N, axes - varying_axes(labels_N) - set(loss.layout.token_axes if loss.layout else ()))
    return jnp.reshape(token_losses(hidden_NxD, table, labels_N, loss), labels.shape)


def _losses_of_parts(hidden: jax.Array, table: jax.Array, labels: jax.Array, *, loss: LossOptions) -> jax.Array:
    """`_losses` of a head that is split by tokens. The gradients of hidden states and rows are summed over devices once."""
    assert loss.layout is not None
    flat = loss.layout.flat(hidden, labels)
    specs = loss.layout.specs(loss.token_axis, flat[1].ndim)
    losses = over_parts(functools.partial(_losses, loss=loss), loss.layout, specs, specs[2], flat[0], table, flat[1])
    return losses.reshape(labels.shape)
