"""A vocabulary that grows, or is cut at its end."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax

from .._math.axes import TableAxes
from .._math.mesh import in_auto_mode, spec_without
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.hyperparameters import checked_number
from .._tree.inputs import checked_integer, checked_key, shown
from ._change import Changed, NewRows, change, check_model, mean_rows
from ._gaussian_rows import gaussian_rows
from ._vocabulary import Vocabulary, vocabulary_of

Initializer = Literal["zeros", "mean", "gaussian"]
INITIALIZERS = ("zeros", "mean", "gaussian")


def resize(
    tx: optax.GradientTransformation | None,
    params: Any,
    opt_state: Any,
    size: int,
    *,
    initializer: Initializer = "mean",
    key: jax.Array | None = None,
    covariance_scale: float = 1e-9,
    pad_to_multiple_of: int | None = None,
    tables: DimensionNumbersLike = AUTO,
    names: Sequence[str] | None = None,
    unrelated: Sequence[str] = (),
) -> Changed:
    r"""Grows a vocabulary by new tokens at its end, or cuts its end off, in every table and in the optimizer's state.

    All tables of the model with this vocabulary change together: input table, head, a head's bias, tied or not, (V, D), (D, V),
    (V, L, P) or stacked; and in the state of `tx` every array along the axis that counts their tokens. A new token's state is
    what `tx.init` gives it: zeros in Ember and in Adam. Ember's :math:`\nu^{feature}` is an average over all V rows, so it
    becomes :math:`V_{old} / V_{new}` times itself and the sums behind it stay. So a run that grows by zeros is the run that had
    the rows from the start, to rounding: rows without a gradient change nothing in Ember. (With `feature_mean="active_rows"` the
    average is over rows with a gradient, and stays.)

    Growing by zeros and cutting back gives the same parameters and state bit for bit, but for `nu_feature`, which the two factors
    leave within one unit in the last place; exactly, if :math:`V_{old} / V_{new}` is a power of two.

    Arrays stay on the devices on which they are. Where these share the rows, parts go round and no device holds a whole table.

    Args:
      tx: the transformation whose `init` made `opt_state`; None without an optimizer.
      params: the parameters, arrays alone. Sizes that a module keeps beside them (`num_embeddings`, say) are yours to change.
      opt_state: the state of `tx`; None without an optimizer.
      size: the new number of tokens, V.
      initializer: of new rows. "zeros"; "mean", the mean of the table's rows, whose logit in a head is the mean of the others'
        (with zeros it is 0, often far above them); "gaussian", drawn with the rows' mean and `covariance_scale` times their
        covariance.
      key: of random rows, `jax.random.key(seed)`.
      covariance_scale: 1e-9 as in Hugging Face's `mean_resizing`, where the draws only tell the new tokens apart; with 1 they are
        spread as the others.
      pad_to_multiple_of: rounds `size` up, to 128 for example; the rows of padding are new tokens.
      tables: which parameters have the vocabulary, and along which axis: as in `ember`. A bias of V numbers beside a table
        belongs to it.
      names: regular expressions for whole paths of the tables of this vocabulary. Needed where it cannot be told: with two input
        tables or two heads of one size (users and items, source and target, three codebooks), or tables of several sizes. All
        other tables stay as they are. An input table and a head of one size need no names.
      unrelated: regular expressions for whole paths of parameters that have an axis of V by coincidence. Any other one that is no
        table is refused: it would be left behind.

    Returns:
      `Changed(params, opt_state, new_ids)`.

    Raises:
      TypeError: `size` or `pad_to_multiple_of` is no integer; `tx` is missing; random rows without a key; arguments of other
        kinds.
      ValueError: `size` below 1; an unknown initializer; a table, or another parameter with an axis of V, that cannot be told; a
        state that does not belong to `tx` and `params`, or that keeps no axis of tokens; devices that cannot share V rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import ember, vocab
      >>> params = {"embed": {"embedding": jnp.ones((6, 4))}, "lm_head": {"kernel": jnp.ones((4, 6))}, "mlp": jnp.ones((4, 4))}
      >>> tx = ember(1e-2, optax.adamw(1e-3))
      >>> params, opt_state, new_ids = vocab.resize(tx, params, tx.init(params), 7, pad_to_multiple_of=4)
      >>> params["embed"]["embedding"].shape, params["lm_head"]["kernel"].shape
      ((8, 4), (4, 8))
      >>> opt_state.inner_states["ember"].inner_state[0].nu_token["lm_head"]["kernel"].shape
      (8,)

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; Hewitt, "Initializing New Word Embeddings for Pretrained
      Language Models" (the Gaussian)
    """
    new_size = padded_size(_at_least_1(size, "size", 50_304), pad_to_multiple_of)
    draw = _checked_initializer(initializer, key, covariance_scale)
    check_model(tx, params, opt_state)
    vocabulary = vocabulary_of(params, tables, names, unrelated)
    old_W = np.arange(new_size)
    ids_W = np.where(old_W < vocabulary.size, old_W, -1)
    count = max(0, new_size - vocabulary.size)
    return change(tx, params, opt_state, vocabulary, ids_W, draw(vocabulary, count))


def _gaussian(vocabulary: Vocabulary, count: int, *, key: jax.Array, covariance_scale: float) -> NewRows:
    def rows(table: jax.Array, axis: int, number: int) -> jax.Array:
        axes = vocabulary.leaves[number].axes or TableAxes((axis,), (), ())
        draw = functools.partial(gaussian_rows, count=count, axes=axes, covariance_scale=covariance_scale)
        return in_auto_mode(jax.jit(draw), lambda: spec_without(table, axis), table, jax.random.fold_in(key, number))

    return rows


def padded_size(size: int, pad_to_multiple_of: Any) -> int:
    """The size, rounded up to a multiple of an argument that may be None."""
    multiple = 1 if pad_to_multiple_of is None else _at_least_1(pad_to_multiple_of, "pad_to_multiple_of", 128)
    return -(-size // multiple) * multiple


def _at_least_1(value: Any, argument: str, example: int) -> int:
    number = checked_integer(value, argument, example)
    if number < 1:
        raise ValueError(f"{argument} must be at least 1, got {number}; pass a number like {example}.")
    return number


def _checked_initializer(initializer: Any, key: Any, covariance_scale: Any):
    if not isinstance(initializer, str) or initializer not in INITIALIZERS:
        raise ValueError(f"initializer must be one of {INITIALIZERS}, got {shown(initializer)}; pass one of these words.")
    fix = "a number >= 0: 1e-9 is the default, 1 the rows' own covariance"
    scale = checked_number(covariance_scale, "covariance_scale", fix)
    if initializer == "gaussian":
        if key is None:
            raise TypeError('key is missing, but initializer="gaussian" draws random rows: pass jax.random.key(seed).')
        return functools.partial(_gaussian, key=checked_key(key), covariance_scale=scale)
    if key is not None:
        raise TypeError(f"key is given, but initializer={initializer!r} draws nothing: leave it out, or pass 'gaussian'.")
    rows = mean_rows if initializer == "mean" else None
    return lambda *_: rows
