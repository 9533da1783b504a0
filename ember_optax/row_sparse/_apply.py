"""`apply_updates`: adds compact updates, whose ids are a separate argument, to parameters."""

import functools
from typing import Any

import jax.numpy as jnp

from .._math.mesh import in_auto_mode, spec_like
from .._math.row_writes import add_rows
from .._tree.boxes import unbox
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.inputs import check_array, check_tree, shown
from .._tree.linear_leaf import LinearLeaf
from .._tree.tables import Leaf, Table, TableTree, read_tree, tables_with_ids
from .._tree.token_ids import check_compact, token_ids_by_name


def apply_updates(params: Any, updates: Any, token_ids: Any, *, tables: DimensionNumbersLike = AUTO) -> Any:
    """`optax.apply_updates` for compact updates that are plain arrays, with their ids as a separate argument.

    .. math:: p_{ids_n} \\leftarrow p_{ids_n} + u_n

    Only the rows with ids are read and written, in place if the parameters are donated. The updates of
    `row_sparse.value_and_grad` hold their ids, and `optax.apply_updates` does the same for them.

    Args:
      params: the parameters.
      updates: a tree with the structure of `params`. An update with ids has the shape of its table, with the axes of the ids
        instead of the token axis.
      token_ids: the ids that `tx.update` got, as a tree like `params` or a dictionary from paths. The updates of equal ids are
        added up, and padding is ignored.
      tables: which axis of the tables is the vocabulary, as in `ember`.

    Returns:
      The parameters after the step, in their dtypes.

    Raises:
      TypeError: ids are not integers, or a leaf is not an array.
      ValueError: ids are given for a path that is not a parameter, or an update does not have the shape that its ids imply.

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
    check_tree(params, "params")
    check_tree(updates, "updates", may_be_empty=True)
    ids = token_ids_by_name(token_ids)
    found = tables_with_ids(read_tree(params, ids, what="the parameters are"), tables)
    new = [_apply(table, unbox(update)) for table, update in zip(found.leaves, _updates_of(found, updates), strict=True)]
    return found.rebuild(new)


def _updates_of(found: TableTree, updates: Any) -> list[Any]:
    try:
        return found.treedef.flatten_up_to(updates)
    except ValueError as error:
        raise ValueError(
            f"updates must have the structure of params, with the leaves {found.names}, got {shown(updates)}: {error}"
        ) from None


def _apply(table: Leaf, update: Any) -> Any:
    if update is None:
        return table.array
    check_array(table.box, f"parameter {table.name!r}")
    p = jnp.asarray(table.array)
    if isinstance(update, LinearLeaf):
        if table.ids is not None:
            raise ValueError(
                f"token_ids are given for {table.name!r}, but its update holds its ids: leave them out. It is {update!r}"
            )
        return p + update
    check_array(update, f"the update of {table.name!r}")
    if jnp.iscomplexobj(update) and not jnp.iscomplexobj(p):
        raise TypeError(
            f"the update of {table.name!r} is complex, of dtype {update.dtype}, but the parameter is {p.dtype}: "
            f"pass the real part."
        )
    if table.ids is None or not isinstance(table, Table):
        _check_dense(table.name, p, update)
        return jnp.asarray(p + update).astype(p.dtype)
    check_compact(table.name, jnp.shape(update), table.ids, p.shape, table.axes)
    add = functools.partial(add_rows, token_axis=table.axes.token[0])
    return in_auto_mode(add, functools.partial(spec_like, p), p, jnp.asarray(update), table.ids)


def _check_dense(name: str, param: Any, update: Any) -> None:
    if jnp.shape(update) != jnp.shape(param):
        raise ValueError(
            f"the update of {name!r} has shape {jnp.shape(update)}, but the parameter has {jnp.shape(param)}: if it is compact, "
            f"give token_ids of {name!r}, those that tx.update got."
        )
