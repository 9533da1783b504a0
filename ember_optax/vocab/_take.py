"""`take`: prunes, permutes and duplicates tokens. `removed_share` and `unused` help to prune."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from .._math.axes import TableAxes
from .._math.state import kept_axes
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.find_states import ember_moments
from .._tree.hyperparameters import checked_number
from .._tree.inputs import shown
from .._tree.tables import Table
from .._tree.token_ids import integer_ids
from ._change import Changed, change, checked_model
from ._vocabulary import vocabulary_of


def take(
    tx: optax.GradientTransformation | None,
    params: Any,
    opt_state: Any,
    token_ids: Sequence[int] | np.ndarray | jax.Array,
    *,
    tables: DimensionNumbersLike = AUTO,
    names: Sequence[str] | None = None,
    unrelated: Sequence[str] = (),
) -> Changed:
    r"""The model whose token i is the old token `token_ids[i]`. This prunes, permutes or duplicates tokens.

    Tables, state and devices are treated as in `resize`. Rows and their state move bit for bit.

    Pruning a token that never had a gradient is exact. A pruned token that had gradients leaves a share s in
    :math:`\nu^{feature}`, which is an average over all rows. `removed_share` returns s. After n steps its effect is
    :math:`b_2^n` times as large. The profile of a feature is at least 1 - s of its value without the token, so no step is more
    than :math:`1 / \sqrt{1 - s}` times as large.

    Args:
      tx: the transformation whose `init` made `opt_state`; None without an optimizer.
      params: the parameters, a tree of arrays.
      opt_state: the state of `tx`; None without an optimizer.
      token_ids: (W,) old ids in the order of the new vocabulary. An id may occur more than once.
      tables: as for `resize`.
      names: as for `resize`.
      unrelated: as for `resize`.

    Returns:
      `Changed(params, opt_state, new_ids)`. `new_ids[old_id]` is the new id of a token, or -1 if it was removed.

    Raises:
      TypeError: `token_ids` are not concrete integers; as `resize`.
      ValueError: `token_ids` are empty, out of range or have more than one axis; as `resize`.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from ember_optax import ember, vocab
      >>> params = {"embed": {"embedding": jnp.arange(6.0)[:, None] * jnp.ones(4)}}
      >>> tx = ember(1e-2, optax.adamw(1e-3))
      >>> opt_state = tx.init(params)
      >>> gone = vocab.unused(token_counts=[9, 0, 3, 0, 1, 2], keep=[1])
      >>> kept = np.delete(np.arange(6), gone)
      >>> params, opt_state, new_ids = vocab.take(tx, params, opt_state, kept)
      >>> params["embed"]["embedding"][:, 0].tolist(), new_ids.tolist()
      ([0.0, 1.0, 2.0, 4.0, 5.0], [0, 1, 2, -1, 3, 4])

    References:
      docs/vocabulary.md
    """
    model = checked_model(tx, params, opt_state)
    vocabulary = vocabulary_of(params, tables, names, unrelated)
    ids_W = checked_ids(token_ids, vocabulary.size, "token_ids")
    if not ids_W.size:
        raise ValueError("token_ids is empty; name at least one token that stays.")
    return change(model, vocabulary, ids_W)


def removed_share(
    params: Any,
    opt_state: Any,
    kept_ids: Sequence[int] | np.ndarray | jax.Array,
    *,
    tables: DimensionNumbersLike = AUTO,
    names: Sequence[str] | None = None,
    unrelated: Sequence[str] = (),
) -> dict[str, jax.Array]:
    r"""The share of removed tokens in Ember's feature statistic: :math:`s = \sum_{i\ gone} \nu^{token}_i / \sum_i \nu^{token}_i`.

    Args:
      params: the parameters before `take`.
      opt_state: their state, which contains Ember.
      kept_ids: (W,) the ids that stay, which `take` gets as `token_ids`.
      tables: as for `resize`.
      names: as for `resize`.
      unrelated: as for `resize`.

    Returns:
      A dictionary from the path of each table that Ember trains to its share, in [0, 1]. It is float32, in the shape of the
      table's batch axes, or () without batch axes. It is 0 before the first gradient.

    Raises:
      TypeError: `kept_ids` are not concrete integers.
      ValueError: Ember trains none of the tables, or `kept_ids` are out of range; as `resize`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import scale_by_ember, vocab
      >>> tx, params = scale_by_ember(), {"wte": jnp.ones((3, 2))}
      >>> _, state = tx.update({"wte": jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])}, tx.init(params))
      >>> print(vocab.removed_share(params, state, [0, 2])["wte"], vocab.removed_share(params, state, [0, 1])["wte"])
      0.5 0.0

    References:
      docs/vocabulary.md
    """
    vocabulary, moments = vocabulary_of(params, tables, names, unrelated), ember_moments(opt_state)
    ids_W = np.unique(checked_ids(kept_ids, vocabulary.size, "kept_ids"))
    leaves = [vocabulary.leaves[i] for i in vocabulary.axis_of]
    trained = {leaf.name: leaf.axes for leaf in leaves if isinstance(leaf, Table) and leaf.name in moments}
    if not trained:
        raise ValueError(
            f"opt_state has no state of Ember for these tables, got {shown(opt_state)}; pass what tx.init made of them."
        )
    return {name: _share(moments[name].nu_token, ids_W, axes) for name, axes in trained.items()}


def _share(nu_token: jax.Array, ids_W: np.ndarray, axes: TableAxes) -> jax.Array:
    axis = kept_axes(axes).nu_token.index(axes.token[0])
    every = jnp.sum(nu_token, axis)
    return jnp.where(every > 0, jnp.sum(jnp.delete(nu_token, ids_W, axis), axis) / jnp.where(every > 0, every, 1), 0.0)


def unused(token_counts: Any, *, keep: Sequence[int] | np.ndarray | jax.Array = (), below: float = 1) -> np.ndarray:
    """The ids of tokens that a text hardly uses, which may be pruned.

    Args:
      token_counts: (V,) how often each token occurs in the text, not negative.
      keep: ids that stay for any count: special tokens, the bytes of a byte-level vocabulary, pieces that merges need.
      below: a token is unused if its count is less than this.

    Returns:
      The ids of unused tokens in increasing order, int64. Pass `np.delete(np.arange(V), unused(...))` to `take`.

    Raises:
      TypeError: counts are not numbers, or ids are not integers.
      ValueError: counts are negative or not finite, or do not have one axis; ids are out of range.

    Example:
      >>> from ember_optax import vocab
      >>> vocab.unused([5, 0, 0, 1], keep=[1]).tolist()
      [2]

    References:
      docs/vocabulary.md
    """
    counts_V = np.asarray(token_counts)
    if counts_V.dtype.kind not in "iuf":
        raise TypeError(f"token_counts must be numbers, got {shown(token_counts)}; pass np.bincount(ids, minlength=V).")
    if counts_V.ndim != 1 or not counts_V.size:
        raise ValueError(f"token_counts must have shape (V,), got {counts_V.shape}; pass np.bincount(ids, minlength=V).")
    if not np.isfinite(counts_V).all() or (counts_V < 0).any():
        raise ValueError(f"token_counts must be finite and not negative, got {shown(token_counts)}; count the tokens of a text.")
    rare_V = counts_V < checked_number(below, "below", "a number >= 0: 1 is for tokens that never occur")
    rare_V[checked_ids(keep, counts_V.size, "keep")] = False
    return np.flatnonzero(rare_V)


def checked_ids(ids: Any, size: int, argument: str) -> np.ndarray:
    """Concrete ids as a vector of int32. Raises if an id is not in [0, size). The vector may be empty."""
    if isinstance(ids, Tracer):
        raise TypeError(f"{argument} is traced, but decides shapes: pass concrete integers, outside of jax.jit or closed over.")
    ids_W = np.asarray(integer_ids(ids, argument))
    if ids_W.ndim != 1:
        raise ValueError(f"{argument} must have shape (W,), got {ids_W.shape}; pass one id for each token.")
    if (outside := (ids_W < 0) | (ids_W >= size)).any():
        raise ValueError(f"{argument} has {ids_W[outside][0]}, but the vocabulary has the ids 0 to {size - 1}.")
    return ids_W.astype(np.int32)
