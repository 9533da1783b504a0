"""`value_and_grad`: differentiates a loss, with compact gradients for token tables."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from .._fused_heads.calls import Call, calls_of
from .._fused_heads.in_loss import TappedHead, check_head_table, checked_heads, gradient_leaf
from .._fused_heads.scans import heads_in_loss
from .._tree.boxes import unbox
from .._tree.compact_rows import CompactRows
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.hyperparameters import checked_flag
from .._tree.inputs import check_array, check_tree, shown
from .._tree.tables import Leaf, Table, TableTree, read_tree, tables_with_ids
from .._tree.token_ids import token_ids_by_name
from ._slice import RowSlice, slice_rows


def value_and_grad(
    loss_fn: Callable[..., Any],
    has_aux: bool = False,
    *,
    heads: str | Sequence[str] = (),
    tables: DimensionNumbersLike = AUTO,
) -> Callable[..., tuple[Any, Any]]:
    """`jax.value_and_grad` with compact gradients for token tables. The V x D gradient of a table never exists.

    The loss gets the parameters with a `RowSlice` instead of each table that has ids. It may read rows any number of times with
    `table[ids]` or `row_sparse.lookup(table, ids)`, also inside `jax.checkpoint`, `jax.lax.scan` and `jax.vmap`, and it may cast
    the table to a compute dtype first. All other gradients are dense.

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar, or with `has_aux` a pair of a scalar and anything else.
      has_aux: as in `jax.value_and_grad`.
      heads: paths of fused heads, whose gradients are not stored as arrays either. The loss calls
        `losses.linear_softmax_cross_entropy` with each of them. A tied table may be a head and have ids. See
        docs/fused_head.md.
      tables: which axis of the tables is the vocabulary, as in `ember`.

    Returns:
      A function `(params, token_ids, *args, **kwargs) -> (value, grads)`.

      `token_ids` holds the ids that the lookups of each table may read. It is a tree like `params`, or a dictionary from paths
      such as `"embed/embedding"`, with arrays of integers of any shape. Dense leaves have None or no entry.

      The gradient of a table with ids is a `CompactRows`: the N distinct rows and their ids in increasing order, padded with V.
      N is the number of ids, at most V. The gradient of a fused head holds the arrays that it is computed from. Pass the
      gradients to `tx.update(grads, opt_state, params)` and the updates to `optax.apply_updates`, or to a function that calls
      these two, within the same `jax.jit`.

    Raises:
      TypeError: ids are not integers; a parameter is not floating; the loss is not a function, does not return a floating scalar,
        or needs a whole table, as a tied head does.
      ValueError: ids are given for a path that is not a parameter, or for stacked tables.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember, row_sparse
      >>> params = {"embed": {"embedding": jnp.ones((1000, 4))}, "dense": {"kernel": jnp.ones((4, 1))}}
      >>> ids = jnp.array([[5, 9, 5]])
      >>> def loss_fn(params, ids):
      ...     return jnp.mean((params["embed"]["embedding"][ids] @ params["dense"]["kernel"]) ** 2)
      >>> tx = ember(1e-2, optax.adamw(1e-3))
      >>> opt_state = tx.init(params)
      >>> loss, grads = row_sparse.value_and_grad(loss_fn)(params, {"embed/embedding": ids}, ids)
      >>> grads["embed"]["embedding"].ids, grads["embed"]["embedding"].rows.shape
      (Array([   5,    9, 1000], dtype=int32), (3, 4))
      >>> updates, opt_state = tx.update(grads, opt_state, params)
      >>> params = optax.apply_updates(params, updates)

    References:
      docs/row_sparse.md
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of params, got {shown(loss_fn)}; pass the function and not what it returns.")
    has_aux = checked_flag(has_aux, "has_aux")

    def value_and_compact_grad(params, token_ids, /, *args, **kwargs):
        check_tree(params, "params")
        found, of_heads = _compact_tables(params, token_ids, heads, tables)
        sliced = {t.name: slice_rows(t.array, t.ids, t.axes.token[0]) for t in found.tables if t.ids is not None}

        def loss_with(heads_by_name, compact_params, links, *args, **kwargs):
            with heads_in_loss(heads_by_name.values()):
                loss = loss_fn(_parts(found, compact_params, sliced, heads_by_name, links), *args, **kwargs)
            _check_loss(loss, has_aux)
            return loss

        compact = found.rebuild(sliced[t.name][1] if t.name in sliced else t.array for t in found.leaves)
        value, grads, of_calls = _differentiated(loss_with, has_aux, of_heads, compact, args, kwargs)
        leaves = dict(zip(found.names, map(unbox, found.treedef.flatten_up_to(grads)), strict=True))
        for table in of_heads:
            ids, _ = sliced.pop(table.name)
            leaves[table.name] = gradient_leaf(table, *of_calls[table.name], ids, leaves[table.name])
        with_ids = _with_ids(found, leaves, {name: distinct for name, (distinct, _) in sliced.items()})
        return value, found.rebuild(with_ids)

    return value_and_compact_grad


def _differentiated(
    loss_with: Callable[..., Any], has_aux: bool, of_heads: list[Table], compact: Any, args: Any, kwargs: Any
) -> tuple[Any, Any, dict[str, tuple[Any, list[Call], jax.Array]]]:
    """The value, the gradients of `compact`, and for each head its taps, its calls and its link's gradient."""
    links = {table.name: jnp.ones(1, jnp.float32) for table in of_heads}

    def traced(heads_by_name):
        def value(compact_params):
            loss = loss_with(heads_by_name, compact_params, links, *args, **kwargs)
            return loss[0] if has_aux else loss

        return jax.make_jaxpr(value)(compact)

    def loss_of(compact_params, taps, links, *args, **kwargs):
        heads_by_name = {t.name: TappedHead(t, taps[t.name], calls[t.name]) for t in of_heads}
        return loss_with(heads_by_name, compact_params, links, *args, **kwargs)

    calls = calls_of(traced, {t.name: TappedHead(t) for t in of_heads}) if of_heads else {}
    taps = {name: [call.tap for call in of_head] for name, of_head in calls.items()}
    # The gradient of a link shows for each call whether the head's gradient reaches the parameters (see `as_linked`).
    links = {name: jnp.ones(len(of_head), jnp.float32) for name, of_head in calls.items()}
    value, grads = jax.value_and_grad(loss_of, (0, 1, 2), has_aux=has_aux)(compact, taps, links, *args, **kwargs)
    grads, taps, of_links = grads
    return value, grads, {name: (taps[name], calls[name], of_links[name]) for name in calls}


def _compact_tables(params: Any, token_ids: Any, heads: Any, tables: DimensionNumbersLike) -> tuple[TableTree, list[Table]]:
    """The parameters, with axes for tables that have ids or are heads, and the heads. A head without a lookup has no ids."""
    found = read_tree(params, token_ids_by_name(token_ids), what="the parameters are")
    names = checked_heads(heads, found.names)
    for table in found.leaves:
        check_array(table.box, f"parameter {table.name!r}", floating=True)
        if table.name in names:
            check_head_table(table)
    no_ids = jnp.zeros(0, jnp.int32)
    leaves = [replace(leaf, ids=no_ids) if leaf.name in names and leaf.ids is None else leaf for leaf in found.leaves]
    found = tables_with_ids(TableTree(leaves, found.treedef), tables)
    return found, [table for table in found.tables if table.name in names]


def _parts(
    found: TableTree, compact_params: Any, sliced: dict[str, Any], heads: dict[str, TappedHead], links: dict[str, Any]
) -> Any:
    """The tree that the loss function gets instead of the parameters: a `RowSlice` for each table with ids."""

    def part(table: Leaf, leaf: Any) -> Any:
        if not isinstance(table, Table):
            return leaf
        token_axis = table.axes.token[0]
        rows = RowSlice(leaf, sliced[table.name][0], table.shape[token_axis], token_axis).read_as(table.array.dtype)
        return rows.with_head(heads[table.name], links[table.name]) if table.name in heads else rows

    return found.rebuild(map(part, found.leaves, map(unbox, found.treedef.flatten_up_to(compact_params))))


def _with_ids(found: TableTree, leaves: dict[str, Any], ids: dict[str, jax.Array]) -> list[Any]:
    """The leaves of the gradient, with a `CompactRows` for each table with ids."""

    def leaf(table: Leaf) -> Any:
        if table.name not in ids or not isinstance(table, Table):
            return leaves[table.name]
        rows = leaves[table.name].astype(table.array.dtype)
        return CompactRows(rows, ids[table.name], table.shape, table.axes.token[0], table.name)

    return list(map(leaf, found.leaves))


def _check_loss(loss: Any, has_aux: bool) -> None:
    """Raises unless a loss function returned a real floating scalar, or with `has_aux` a pair that begins with one."""
    if has_aux and not (isinstance(loss, tuple) and len(loss) == 2):
        raise TypeError(
            f"loss_fn must return a pair (loss, aux) with has_aux=True, got {shown(loss)}; return both, or leave it out."
        )
    value: Any = loss[0] if has_aux else loss
    if not jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.floating) or jnp.shape(value) != ():
        shape = f" and shape {jnp.shape(value)}" if hasattr(value, "dtype") else ""
        raise TypeError(
            f"loss_fn must return a floating scalar, got {shown(value)}{shape}; average the loss, and pass has_aux=True if it "
            f"returns more."
        )
