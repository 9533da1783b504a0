"""From a loss to compact gradients, and from compact updates to parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._boxes import rebox, unbox
from ._declared import DimensionNumbersLike, declared_dimension_numbers
from ._dimension_numbers import EmberDimensionNumbers, TableAxes, table_axes
from ._paths import flatten_named
from ._row_slice import RowSlice, slice_rows
from ._rows import flat_ids, rows_first, sum_duplicates, take_rows
from ._token_ids import check_compact, check_known, token_ids_by_name


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
      went in, at most V. The compact gradients have N in the place of V. Pass both to `tx.update`, and the ids to
      `row_sparse.apply_updates`.

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

    def value_and_compact_grad(params, token_ids, *args, **kwargs):
        ids = token_ids_by_name(token_ids)
        names, leaves, treedef = flatten_named(params)
        axes = _axes_of(ids, params, names, leaves, dimension_numbers)
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


def apply_updates(params: Any, updates: Any, token_ids: Any, *, dimension_numbers: DimensionNumbersLike = None) -> Any:
    """`optax.apply_updates` for updates of which some are compact.

    .. math:: p_{ids_n} \\leftarrow p_{ids_n} + u_n

    Only the rows that have ids are read and written, in place where the parameters are donated.

    Args:
      params: the parameters.
      updates: of their structure; where there are ids, of the table's shape with the axes of the ids in place of the token axis.
      token_ids: a tree like `params` or a dictionary from paths, as in `row_sparse.value_and_grad`. The updates of equal ids
        are added up, padding is ignored.
      dimension_numbers: which axis of the tables is the vocabulary, as in `scale_by_ember`; the default is axis 0.

    Returns:
      The parameters after the step, in their dtypes.

    Raises:
      TypeError: ids are not integers.
      ValueError: ids for a path that is no parameter; an update of another shape than its ids ask for.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> params = {"wte": jnp.zeros((4, 2)), "bias": jnp.zeros(1)}
      >>> updates = {"wte": jnp.ones((3, 2)), "bias": jnp.ones(1)}
      >>> row_sparse.apply_updates(params, updates, {"wte": jnp.array([2, -1, 2])})["wte"][:, 0]
      Array([0., 0., 2., 0.], dtype=float32)

    References:
      docs/row_sparse.md
    """
    ids = token_ids_by_name(token_ids)
    names, leaves, treedef = flatten_named(params)
    axes = _axes_of(ids, params, names, leaves, dimension_numbers)
    new = []
    for place, (name, leaf, update) in enumerate(zip(names, leaves, treedef.flatten_up_to(updates), strict=True)):
        p, u = unbox(leaf), unbox(update)
        if u is None:
            new.append(leaf)
        elif place not in axes:
            _check_dense(name, p, u)
            new.append(rebox(leaf, jnp.asarray(p + u).astype(p.dtype)))
        else:
            check_compact(name, u.shape, ids[name], p, axes[place])
            new.append(rebox(leaf, _add_rows(p, u, ids[name], axes[place].token[0])))
    return treedef.unflatten(new)


def sum_over_duplicates(updates: Any, token_ids: Any) -> Any:
    """Adds the rows of equal ids up, each sum where its id stands first, zeros elsewhere; dense leaves stay.

    `scale_by_ember` does that itself. For what comes before it and depends on the gradient's norm, such as
    `optax.clip_by_global_norm`, the norm is the dense gradient's only after this. The gradients of `row_sparse.value_and_grad`
    have distinct ids and do not need it.

    Args:
      updates: gradients whose compact leaves have their token axis first.
      token_ids: as in `row_sparse.apply_updates`.

    Returns:
      The updates, of the same shapes and dtypes.

    Raises:
      ValueError: ids for a path that is no update; an update whose first axes are not those of its ids.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> row_sparse.sum_over_duplicates({"wte": jnp.ones((3, 1))}, {"wte": jnp.array([5, 2, 5])})["wte"][:, 0]
      Array([2., 1., 0.], dtype=float32)

    References:
      docs/row_sparse.md
    """
    ids = token_ids_by_name(token_ids)
    names, leaves, treedef = flatten_named(updates)
    check_known(ids, names)
    return treedef.unflatten([_sum_leaf(name, leaf, ids) for name, leaf in zip(names, leaves, strict=True)])


def _sum_leaf(name: str, leaf: Any, ids: dict[str, jax.Array]) -> Any:
    if name not in ids:
        return leaf
    rows, of = unbox(leaf), ids[name]
    if rows.shape[: of.ndim] != of.shape:
        raise ValueError(
            f"the update of {name!r} has shape {rows.shape}, but its ids have shape {of.shape}: it must begin with one row for "
            f"each id."
        )
    size = jnp.iinfo(jnp.int32).max  # of the table: no matter, only padding below zero is known here
    rows_NxF, _ = sum_duplicates(rows_first(rows, 0, of.ndim), flat_ids(of, size), size)
    return rebox(leaf, rows_NxF.astype(rows.dtype).reshape(rows.shape))


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
        return rebox(leaf, stacked / stacked.shape[0] if name in ids else jnp.mean(stacked, 0))

    return treedef.unflatten([mean(name, leaf) for name, leaf in zip(names, leaves, strict=True)]), ids


def _axes_of(
    ids: dict[str, jax.Array], params: Any, names: list[str], leaves: list[Any], dimension_numbers: DimensionNumbersLike
) -> dict[int, TableAxes]:
    """The axes of the tables that have ids, by their place among the leaves."""
    check_known(ids, names, "the parameters are")
    default = EmberDimensionNumbers()
    declared = [default] * len(names) if dimension_numbers is None else declared_dimension_numbers(dimension_numbers, params)
    axes = {}
    for place, (name, leaf, numbers) in enumerate(zip(names, leaves, declared, strict=True)):
        if name in ids:
            axes[place] = table_axes(numbers or default, unbox(leaf).shape, name)
            if axes[place].batch or not axes[place].token:
                check_compact(name, (), ids[name], unbox(leaf), axes[place])
    return axes


def _check_dense(name: str, param: Any, update: Any) -> None:
    if jnp.shape(update) != jnp.shape(param):
        raise ValueError(
            f"the update of {name!r} has shape {jnp.shape(update)}, but the parameter has {jnp.shape(param)}: if it is compact, "
            f"give token_ids of {name!r}, those that tx.update got."
        )


def _add_rows(table: jax.Array, compact: jax.Array, ids: jax.Array, token_axis: int) -> jax.Array:
    size = table.shape[token_axis]
    ids_N, rows_NxF = flat_ids(ids, size), rows_first(compact, token_axis, ids.ndim)
    at_rows = (slice(None),) * token_axis + (ids_N,)
    if jnp.promote_types(table.dtype, rows_NxF.dtype) == table.dtype:
        rows = jnp.moveaxis(rows_NxF.astype(table.dtype), 0, token_axis)
        return table.at[at_rows].add(rows, mode="drop")
    # A bfloat16 table and float32 updates: added in float32 and rounded once, as optax.apply_updates does.
    summed_NxF, first_N = sum_duplicates(rows_NxF, ids_N, size)
    rows_NxF = (take_rows(table, ids_N, token_axis) + summed_NxF).astype(table.dtype)
    once = (slice(None),) * token_axis + (jnp.where(first_N, ids_N, size),)
    return table.at[once].set(jnp.moveaxis(rows_NxF, 0, token_axis), mode="drop")
