"""From compact updates to parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .._math.mesh import in_auto_mode, spec_like
from .._math.rows import flat_ids, rows_first, sum_duplicates, take_rows
from .._tree.boxes import unbox
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.inputs import check_array, check_tree, shown
from .._tree.tables import Table, TableTree, tables_of
from .._tree.token_ids import check_compact, token_ids_by_name


def apply_updates(params: Any, updates: Any, token_ids: Any, *, dimension_numbers: DimensionNumbersLike = AUTO) -> Any:
    """`optax.apply_updates` for updates of which some are compact.

    .. math:: p_{ids_n} \\leftarrow p_{ids_n} + u_n

    Only the rows that have ids are read and written, in place where the parameters are donated.

    Args:
      params: the parameters.
      updates: of their structure; where there are ids, of the table's shape with the axes of the ids in place of the token axis.
      token_ids: a tree like `params` or a dictionary from paths, as in `row_sparse.value_and_grad`. The updates of equal ids
        are added up, padding is ignored. (Those of `tx.update` are zero where an id stands again. Others, of a 16-bit table, are
        rounded after each addition where the platform adds them one by one: all but a bfloat16 table on a CPU.)
      dimension_numbers: which axis of the tables is the vocabulary, as in `scale_by_ember`.

    Returns:
      The parameters after the step, in their dtypes.

    Raises:
      TypeError: ids are not integers; a leaf is no array.
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
    check_tree(params, "params")
    check_tree(updates, "updates", may_be_empty=True)
    ids = token_ids_by_name(token_ids)
    found = tables_of(params, dimension_numbers, "with ids", token_ids=ids, what="the parameters are")
    new = [_apply(table, unbox(update)) for table, update in zip(found.tables, _updates_of(found, updates), strict=True)]
    return found.rebuild(new)


def _updates_of(found: TableTree, updates: Any) -> list[Any]:
    try:
        return found.treedef.flatten_up_to(updates)
    except ValueError as error:
        raise ValueError(
            f"updates must have the structure of params, with the leaves {found.names}, got {shown(updates)}: {error}"
        ) from None


def _apply(table: Table, update: Any) -> Any:
    if update is None:
        return table.array
    check_array(table.box, f"parameter {table.name!r}")
    check_array(update, f"the update of {table.name!r}")
    p = jnp.asarray(table.array)
    if jnp.iscomplexobj(update) and not jnp.iscomplexobj(p):
        raise TypeError(
            f"the update of {table.name!r} is complex, of dtype {update.dtype}, but the parameter is {p.dtype}: "
            f"pass the real part."
        )
    if table.ids is None or table.axes is None:
        _check_dense(table.name, p, update)
        return jnp.asarray(p + update).astype(p.dtype)
    check_compact(table.name, jnp.shape(update), table.ids, p.shape, table.axes)
    add_rows = functools.partial(_add_rows, token_axis=table.axes.token[0])
    return in_auto_mode(add_rows, functools.partial(spec_like, p), p, jnp.asarray(update), table.ids)


def _check_dense(name: str, param: Any, update: Any) -> None:
    if jnp.shape(update) != jnp.shape(param):
        raise ValueError(
            f"the update of {name!r} has shape {jnp.shape(update)}, but the parameter has {jnp.shape(param)}: if it is compact, "
            f"give token_ids of {name!r}, those that tx.update got."
        )


def _add_rows(table: jax.Array, compact: jax.Array, ids: jax.Array, token_axis: int) -> jax.Array:
    """Adds compact updates to rows of a table, in place where it is donated.

    Scatters into 16 bits copy nothing on TPU and GPU, where those of the bits as integers would copy the table. On a CPU it is
    the other way round, but for one copy: there XLA (jax 0.10.2) scatters bfloat16 by way of float32 copies of the whole table.
    docs/speed.md has the figures.
    """
    size = table.shape[token_axis]
    ids_N, rows_NxF = flat_ids(ids, size), rows_first(compact, token_axis, ids.ndim)
    add, add_once, add_bits = (
        functools.partial(form, ids_N=ids_N, token_axis=token_axis) for form in (_scatter_add, _add_once, _add_once_as_bits)
    )
    wider = jnp.promote_types(table.dtype, rows_NxF.dtype) != table.dtype
    if wider or table.dtype == jnp.bfloat16:
        return jax.lax.platform_dependent(table, rows_NxF, cpu=add_bits, default=add_once if wider else add)
    return add(table, rows_NxF)


def _scatter_add(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    """Updates of the table's dtype: those of equal ids are added one after the other."""
    return table.at[_at(ids_N, token_axis)].add(jnp.moveaxis(rows_NxF.astype(table.dtype), 0, token_axis), mode="drop")


def _add_once(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    """Updates of another dtype: those of equal ids are added up, to their own dtype, and then as in `optax.apply_updates`."""
    once_N, new = _new_rows(table, rows_NxF, ids_N, token_axis)
    return table.at[_at(once_N, token_axis)].set(new, mode="drop", unique_indices=True)


def _add_once_as_bits(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    """`_add_once` by a scatter of integers, for a CPU."""
    once_N, new = _new_rows(table, rows_NxF, ids_N, token_axis)
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[table.dtype.itemsize]
    in_bits = jax.lax.bitcast_convert_type(table, bits)
    in_bits = in_bits.at[_at(once_N, token_axis)].set(jax.lax.bitcast_convert_type(new, bits), mode="drop", unique_indices=True)
    return jax.lax.bitcast_convert_type(in_bits, table.dtype)


def _new_rows(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> tuple[jax.Array, jax.Array]:
    """The rows with their updates, and their ids, each once: the places of an id that stands again have one beyond the table."""
    size = table.shape[token_axis]
    summed_NxF, first_N = sum_duplicates(rows_NxF, ids_N, size)
    new_NxF = (take_rows(table, ids_N, token_axis) + summed_NxF.astype(rows_NxF.dtype)).astype(table.dtype)
    once_N = jnp.where(first_N, ids_N, size + jnp.arange(ids_N.size, dtype=ids_N.dtype))
    return once_N, jnp.moveaxis(new_NxF, 0, token_axis)


def _at(ids_N: jax.Array, token_axis: int) -> tuple[Any, ...]:
    return (slice(None),) * token_axis + (ids_N,)
