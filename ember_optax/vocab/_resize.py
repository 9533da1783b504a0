"""`resize`: adds new tokens at the end of a vocabulary, or removes its last tokens."""

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
from .._tree.tables import Table
from ._change import Changed, NewRows, change, checked_model, mean_rows
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
    r"""Adds new tokens at the end of a vocabulary, or removes its last tokens, in every table and in the optimizer's state.

    All tables of the model with this vocabulary change together: input table, head and the bias of a head, tied or not, (V, D),
    (D, V), (V, L, P) or stacked. In the state of `tx`, every array changes along its token axis. The state of a new token is that
    of `tx.init`, which is zero in Ember and in Adam. Ember's :math:`\nu^{feature}` is an average over all V rows, so it is
    multiplied by :math:`V_{old} / V_{new}`, and the sum over the rows stays the same. Rows without a gradient change nothing in
    Ember. So a run that grows by rows of zeros equals a run that had these rows from the start, up to rounding. (With
    `feature_mean="active_rows"` the average is over rows with a gradient, and does not change.)

    Growing by zeros and cutting back gives the same parameters and state bit for bit, except for `nu_feature`. It is within one
    unit in the last place, and exact if :math:`V_{old} / V_{new}` is a power of two.

    Arrays stay on their devices. If the rows are sharded, shards visit the devices in turn, and no device holds a whole table.

    Args:
      tx: the transformation whose `init` made `opt_state`; None without an optimizer.
      params: the parameters, a tree of arrays. Change sizes that a module stores (for example `num_embeddings`) yourself.
      opt_state: the state of `tx`; None without an optimizer.
      size: the new number of tokens, V.
      initializer: the initial value of new rows: "zeros", "mean" or "gaussian". "mean" is the mean of the table's rows. In a
        head, the new tokens then have the mean of the other logits, while with "zeros" they have a logit of 0, which is often far
        above the others. "gaussian" draws rows with the mean of the table's rows and `covariance_scale` times their covariance.
      key: the key of random rows, for example `jax.random.key(seed)`.
      covariance_scale: the factor of the covariance. 1e-9 is that of Hugging Face's `mean_resizing`, which makes the new rows
        different, but hardly. With 1, new rows vary as much as the old ones.
      pad_to_multiple_of: rounds `size` up to a multiple of this, for example 128. Rows of padding are new tokens.
      tables: which parameters are tables, and along which axis, as in `ember`. A bias of V numbers next to a table changes with
        it.
      names: regular expressions for whole paths of the tables of this vocabulary. They are needed if there are two input tables
        or two heads of one size (users and items, source and target, three codebooks), or tables of several sizes. All other
        tables do not change. An input table and a head of one size need no names.
      unrelated: regular expressions for whole paths of parameters that have an axis of length V by coincidence. Any other
        parameter with such an axis that is not a table raises, because it would keep the old size.

    Returns:
      `Changed(params, opt_state, new_ids)`.

    Raises:
      TypeError: `size` or `pad_to_multiple_of` is not an integer, `tx` is missing, random rows have no key, or an argument has
        another type.
      ValueError: `size` is below 1; the initializer is unknown; it is unclear which tables, or other parameters with an axis of
        length V, have the vocabulary; the state does not belong to `tx` and `params`, or has no token axis; V rows do not divide
        by the devices.

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
      Hewitt, "Initializing New Word Embeddings for Pretrained Language Models" (the Gaussian); docs/vocabulary.md
    """
    new_size = padded_size(_at_least_1(size, "size", 50_304), pad_to_multiple_of)
    draw = _checked_initializer(initializer, key, covariance_scale)
    model = checked_model(tx, params, opt_state)
    vocabulary = vocabulary_of(params, tables, names, unrelated)
    old_W = np.arange(new_size)
    ids_W = np.where(old_W < vocabulary.size, old_W, -1)
    count = max(0, new_size - vocabulary.size)
    return change(model, vocabulary, ids_W, draw(vocabulary, count))


def _gaussian_new_rows(vocabulary: Vocabulary, count: int, *, key: jax.Array, covariance_scale: float) -> NewRows:
    def rows(table: jax.Array, axis: int, number: int) -> jax.Array:
        leaf = vocabulary.leaves[number]
        axes = leaf.axes if isinstance(leaf, Table) else TableAxes((axis,), (), ())
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
        return functools.partial(_gaussian_new_rows, key=checked_key(key), covariance_scale=scale)
    if key is not None:
        raise TypeError(f"key is given, but initializer={initializer!r} draws nothing: leave it out, or pass 'gaussian'.")
    rows = mean_rows if initializer == "mean" else None
    return lambda *_: rows
