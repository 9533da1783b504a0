"""`train_only_rows`: trains some rows of a table only, for example new special tokens in fine-tuning."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from .._fused_heads.leaf import FusedLeaf
from .._math.rows import flat_ids
from .._optimizer.checks import check_transformation
from .._tree.boxes import unbox
from .._tree.compact_rows import CompactRows
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.inputs import check_array, check_tree, shown
from .._tree.tables import Leaf, Table, TableTree, read_tree, tables_with_ids
from .._tree.token_ids import check_compact, token_ids_by_name
from .._tree.watching import check_same_axes, watched_tables


def train_only_rows(
    inner: optax.GradientTransformation, token_ids: Any, *, tables: DimensionNumbersLike = AUTO
) -> optax.GradientTransformationExtraArgs:
    """Applies `inner`, but freezes all rows of the named tables that `token_ids` does not name.

    Frozen rows stay bit-identical, also under weight decay. Their gradients count as zero, so they do not change the statistics.
    This works for dense and for row-sparse steps. Parameters that `token_ids` does not name are trained as usual.

    Args:
      inner: the transformation of all parameters, with its learning rate. Its gradients and updates are masked.
      token_ids: the ids of the rows to train, integers of any shape, as a tree like the parameters or a dictionary from paths
        such as `"embed/embedding"`.
      tables: which axis of the tables is the vocabulary, as in `ember`. Pass the same value as to `inner`.

    Returns:
      A `GradientTransformationExtraArgs` with the state of `inner`.

    Raises:
      TypeError: `inner` is not a transformation, or `token_ids` are not integers.
      ValueError: `token_ids` names no row; at init or update, it names a path that is not a parameter, or a row that does not
        exist; at init, an Ember in `inner` takes another axis for the vocabulary.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import ember, row_sparse
      >>> params = {"wte": jnp.ones((100, 4))}
      >>> tx = row_sparse.train_only_rows(ember(1e-2, optax.adamw(1e-3), weight_decay=0.1), {"wte": jnp.array([98, 99])})
      >>> updates, opt_state = tx.update({"wte": jnp.ones((100, 4))}, tx.init(params), params)
      >>> jnp.flatnonzero(updates["wte"].any(1))
      Array([98, 99], dtype=int32)

    References:
      docs/row_sparse.md
    """
    check_transformation(
        inner, "inner", "pass the transformation first, then the rows, for example ember(1e-2, optax.adamw(1e-3))"
    )
    trained = token_ids_by_name(token_ids)
    if not trained:
        raise ValueError(
            f"token_ids must name rows of at least one table, got {shown(token_ids)}; without them use the transformation itself."
        )
    inner = optax.with_extra_args_support(inner)

    def tables_with_rows(tree: Any) -> TableTree:
        return tables_with_ids(read_tree(tree, trained, what="the parameters are"), tables)

    def init_fn(params):
        check_tree(params, "params")
        return _init(inner, params, tables_with_rows(params))

    def update_fn(updates, state, params=None, *, token_ids=None, **extra_args):
        check_tree(updates, "updates", may_be_empty=True)
        check_tree(params, "params", may_be_empty=True, may_be_missing=True)
        of_params = {table.name: table for table in tables_with_rows(updates if params is None else params).leaves}
        given = token_ids_by_name(token_ids)
        found = read_tree(updates, given)
        ids_by_name = _trained_ids(found, trained)
        for table in found.leaves:
            _check_update(table, of_params)
        masked = [table for table in found.leaves if table.name in trained]
        masks = {table.name: _mask(table, ids_by_name.get(table.name), of_params[table.name]) for table in masked}
        beside = {"token_ids": {name: ids_by_name[name] for name in given}} if given else {}
        updates, state = inner.update(_masked(found, masks, ids_by_name, updates, 0.0), state, params, **beside, **extra_args)
        # Frozen rows get the update -0.0, because x + -0.0 is x bit for bit, also for x = -0.0.
        return _masked(found, masks, ids_by_name, updates, -0.0), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _init(inner: optax.GradientTransformation, params: Any, with_rows: TableTree) -> Any:
    """The state of `inner`. Raises if a row does not exist, or if an Ember in `inner` takes another axis for the vocabulary."""
    for table in with_rows.tables:
        _check_rows(table)
    with watched_tables(is_quiet=False) as seen:
        state = inner.init(params)
    ours = {table.name: table.axes.token for table in with_rows.tables}
    check_same_axes(ours, seen, "rows", "inner", "pass the same tables to train_only_rows and to ember")
    return state


def _trained_ids(found: TableTree, trained: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The ids of the compact updates by path, with padding instead of the ids of frozen rows."""
    return {
        table.name: table.ids if (rows := trained.get(table.name)) is None else _padded_ids(table.ids, rows)
        for table in found.leaves
        if table.ids is not None
    }


def _masked(found: TableTree, masks: dict[str, jax.Array], ids_by_name: dict[str, jax.Array], tree: Any, value: float) -> Any:
    """The tree with `value` where the mask of a leaf is False. A `CompactRows` gets its ids of `ids_by_name` too."""

    def masked(table: Leaf, leaf: Any) -> Any:
        inside = unbox(leaf)
        if table.name not in masks:
            return inside
        array = inside.rows if isinstance(inside, CompactRows) else inside
        array = jnp.where(masks[table.name], array, jnp.asarray(value, array.dtype))
        return inside.replaced(array, ids_by_name[table.name]) if isinstance(inside, CompactRows) else array

    return found.rebuild(map(masked, found.leaves, found.treedef.flatten_up_to(tree)))


def _mask(table: Leaf, ids: jax.Array | None, of_params: Leaf) -> jax.Array:
    """A mask of the rows to train, with feature axes of length one. `ids` are those of a compact update, or None."""
    assert isinstance(of_params, Table)
    assert of_params.ids is not None
    (token_axis,) = of_params.axes.token
    if ids is not None:
        of_tokens, rank = ids >= 0, ids.ndim
    else:
        size = of_params.shape[token_axis]
        of_tokens, rank = jnp.zeros(size, bool).at[flat_ids(of_params.ids, size)].set(True, mode="drop"), 1
    ids_axes = range(token_axis, token_axis + rank)
    return jnp.expand_dims(of_tokens, [axis for axis in range(jnp.ndim(table.array)) if axis not in ids_axes])


def _padded_ids(ids: jax.Array, rows: jax.Array) -> jax.Array:
    """The ids, with padding instead of those that are not in `rows`."""
    size = jnp.iinfo(jnp.int32).max  # the table's size does not matter here, because no id in `rows` is beyond it
    flat = flat_ids(ids, size).reshape(ids.shape)
    return jnp.where(jnp.isin(flat, flat_ids(rows, size)), flat, -1)


def _check_update(table: Leaf, of_params: dict[str, Leaf]) -> None:
    """Raises unless an update belongs to a table with rows, dense or compact."""
    check_array(table.box, f"the update of {table.name!r}")
    if table.name not in of_params:
        raise ValueError(f"the parameters have no {table.name!r}, but are {sorted(of_params)}; pass those of these updates.")
    whole = of_params[table.name]
    if not isinstance(whole, Table):
        return
    if isinstance(table.array, FusedLeaf):
        raise TypeError(
            f"token_ids names rows of {table.name!r}, but its update is that of a fused head, which has no array to mask: leave "
            f"{table.name!r} out of the heads of value_and_grad, or out of token_ids."
        )
    if table.ids is not None:
        check_compact(table.name, jnp.shape(table.array), table.ids, whole.shape, whole.axes)
    elif table.shape != whole.shape:
        raise ValueError(
            f"the update of {table.name!r} has shape {table.shape}, but the parameter has {whole.shape}: pass token_ids of "
            f"{table.name!r} if it is compact."
        )


def _check_rows(table: Table) -> None:
    if table.ids is None or isinstance(table.ids, Tracer):
        return
    size = table.shape[table.axes.token[0]]
    outside = [int(row) for row in np.asarray(table.ids).reshape(-1) if not 0 <= row < size]
    if outside:
        raise ValueError(
            f"token_ids of {table.name!r} names {outside}, but the table has the rows 0 to {size - 1}; correct the ids."
        )
