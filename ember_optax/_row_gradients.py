"""From a loss to compact gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._boxes import rebox, unbox
from ._declared import DimensionNumbersLike
from ._paths import flatten_named
from ._row_slice import RowSlice, slice_rows
from ._row_tables import axes_by_place
from ._token_ids import check_known, check_rows_first, token_ids_by_name


def value_and_grad(
    loss_fn: Callable[..., Any], has_aux: bool = False, *, dimension_numbers: DimensionNumbersLike = None
) -> Callable[..., tuple[Any, Any, dict[str, jax.Array]]]:
    """`jax.value_and_grad` whose gradients of token tables are compact: the V x D gradient of a table never exists.

    The loss gets the parameters with a `RowSlice` in the place of each table that has ids. It reads rows with `table[ids]` or
    `row_sparse.lookup(table, ids)`, as often as it likes, also inside `jax.checkpoint`, `jax.lax.scan` and `jax.vmap`; a cast
    to a compute dtype may come before. All other gradients are dense as ever.

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar, with `has_aux` a pair of it and anything else.
      has_aux: as in `jax.value_and_grad`.
      dimension_numbers: which axis of the tables is the vocabulary, as in `scale_by_ember`; the default is axis 0.

    Returns:
      A function `(params, token_ids, *args, **kwargs) -> (value, grads, token_ids)`.

      The `token_ids` that go in say which rows each table's lookups may read: a tree like `params`, or a dictionary from paths
      such as `"embed/embedding"`, to arrays of integers of any shape; None, or nothing, for dense leaves. Those that come out
      are a dictionary from paths to the N distinct ids in increasing order, padded with V, where N is the size of the ids that
      went in; or all V ids, if V or more went in. The compact gradients have N in the place of V. Pass both to `tx.update`,
      and these ids, not the first ones, to `row_sparse.apply_updates`.

    Raises:
      TypeError: ids are not integers; the loss needs a whole table (a tied head, say).
      ValueError: ids for a path that is no parameter, or for stacked tables.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember, row_sparse
      >>> params = {"embed": {"embedding": jnp.ones((1000, 4))}, "dense": {"kernel": jnp.ones((4, 1))}}
      >>> ids = jnp.array([[5, 9, 5]])
      >>> def loss_fn(params, ids):
      ...     return jnp.mean((params["embed"]["embedding"][ids] @ params["dense"]["kernel"]) ** 2)
      >>> tx = ember(1e-3)
      >>> opt_state = tx.init(params)
      >>> loss, grads, token_ids = row_sparse.value_and_grad(loss_fn)(params, {"embed/embedding": ids}, ids)
      >>> token_ids["embed/embedding"], grads["embed"]["embedding"].shape
      (Array([   5,    9, 1000], dtype=int32), (3, 4))
      >>> updates, opt_state = tx.update(grads, opt_state, params, token_ids=token_ids)
      >>> params = row_sparse.apply_updates(params, updates, token_ids)

    References:
      docs/row_sparse.md
    """

    def value_and_compact_grad(params, token_ids, /, *args, **kwargs):
        ids = token_ids_by_name(token_ids)
        names, leaves, treedef = flatten_named(params)
        axes = axes_by_place(ids, params, names, leaves, dimension_numbers)
        distinct, compact = {}, list(leaves)
        for place, table in axes.items():
            name, leaf = names[place], leaves[place]
            distinct[name], rows = slice_rows(unbox(leaf), ids[name], table.token[0])
            compact[place] = rebox(leaf, rows)

        def compact_loss(compact_params, *args, **kwargs):
            seen = treedef.flatten_up_to(compact_params)
            for place, table in axes.items():
                name, size = names[place], unbox(leaves[place]).shape[table.token[0]]
                seen[place] = rebox(seen[place], RowSlice(unbox(seen[place]), distinct[name], size, table.token[0]))
            return loss_fn(treedef.unflatten(seen), *args, **kwargs)

        value, grads = jax.value_and_grad(compact_loss, has_aux=has_aux)(treedef.unflatten(compact), *args, **kwargs)
        return value, grads, distinct

    return value_and_compact_grad


def mean_over_micro_batches(grads: Any, token_ids: Any) -> tuple[Any, dict[str, jax.Array]]:
    """The gradient of the mean loss of A micro-batches whose gradients are stacked along a new first axis, as by `jax.lax.scan`.

    Compact gradients are concatenated and divided by A, dense ones averaged; so they are averaged before they are squared.

    Args:
      grads: stacked gradients, (A, ...); compact leaves have their token axis first.
      token_ids: their stacked ids, (A, ...).

    Returns:
      The gradients, and the ids by path.

    Raises:
      ValueError: ids for a path that is no gradient.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> params, batches = {"wte": jnp.ones((100, 4))}, jnp.array([[3, 7], [7, 8]])
      >>> grad_fn = row_sparse.value_and_grad(lambda params, ids: jnp.sum(params["wte"][ids] ** 2))
      >>> def micro_batch(_, ids):
      ...     loss, grads, token_ids = grad_fn(params, {"wte": ids}, ids)
      ...     return None, (grads, token_ids)
      >>> grads, token_ids = row_sparse.mean_over_micro_batches(*jax.lax.scan(micro_batch, None, batches)[1])
      >>> grads["wte"].shape, token_ids["wte"].shape
      ((2, 2, 4), (2, 2))

    References:
      docs/row_sparse.md
    """
    ids = token_ids_by_name(token_ids)
    names, leaves, treedef = flatten_named(grads)
    check_known(ids, names)

    def mean(name: str, leaf: Any) -> Any:
        stacked = unbox(leaf)
        check_rows_first(name, stacked.shape, ids)
        return rebox(leaf, stacked / stacked.shape[0] if name in ids else jnp.mean(stacked, 0))

    return treedef.unflatten([mean(name, leaf) for name, leaf in zip(names, leaves, strict=True)]), ids
