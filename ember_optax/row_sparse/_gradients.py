"""From a loss to compact gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._math.rows import flat_ids, rows_first, sum_duplicates
from .._tree.boxes import unbox
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.hyperparameters import checked_flag
from .._tree.inputs import check_array, check_tree, shown
from .._tree.tables import Table, read_tree, tables_of
from .._tree.token_ids import check_rows_first, token_ids_by_name
from ._slice import RowSlice, slice_rows


def value_and_grad(
    loss_fn: Callable[..., Any], has_aux: bool = False, *, dimension_numbers: DimensionNumbersLike = AUTO
) -> Callable[..., tuple[Any, Any, dict[str, jax.Array]]]:
    """`jax.value_and_grad` whose gradients of token tables are compact: the V x D gradient of a table never exists.

    The loss gets the parameters with a `RowSlice` in the place of each table that has ids. It reads rows with `table[ids]` or
    `row_sparse.lookup(table, ids)`, as often as it likes, also inside `jax.checkpoint`, `jax.lax.scan` and `jax.vmap`; a cast
    to a compute dtype may come before. All other gradients are dense as ever.

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar, with `has_aux` a pair of it and anything else.
      has_aux: as in `jax.value_and_grad`.
      dimension_numbers: which axis of the tables is the vocabulary, as in `scale_by_ember`.

    Returns:
      A function `(params, token_ids, *args, **kwargs) -> (value, grads, token_ids)`.

      The `token_ids` that go in say which rows each table's lookups may read: a tree like `params`, or a dictionary from paths
      such as `"embed/embedding"`, to arrays of integers of any shape; None, or nothing, for dense leaves. Those that come out
      are a dictionary from paths to the N distinct ids in increasing order, padded with V, where N is the size of the ids that
      went in, but at least 2; or all V ids, if V or more went in. The compact gradients have N in the place of V. Pass both to
      `tx.update`, and these ids, not the first ones, to `row_sparse.apply_updates`.

    Raises:
      TypeError: ids are not integers, a parameter is not floating; the loss is no function, returns no floating scalar, or needs
        a whole table (a tied head, say).
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

    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of params, got {shown(loss_fn)}; pass the function and not what it returns.")
    has_aux = checked_flag(has_aux, "has_aux")

    def value_and_compact_grad(params, token_ids, /, *args, **kwargs):
        check_tree(params, "params")
        ids = token_ids_by_name(token_ids)
        found = tables_of(params, dimension_numbers, "with ids", token_ids=ids, what="the parameters are")
        for table in found.tables:
            check_array(table.box, f"parameter {table.name!r}", floating=True)
        sliced = {t.name: slice_rows(t.array, t.ids, t.axes.token[0]) for t in found.tables if t.ids is not None and t.axes}
        compact = [sliced[table.name][1] if table.name in sliced else table.array for table in found.tables]

        def whole(table: Table, leaf: Any) -> Any:
            if table.axes is None:
                return unbox(leaf)
            token_axis = table.axes.token[0]
            return RowSlice(unbox(leaf), sliced[table.name][0], table.shape[token_axis], token_axis)

        def compact_loss(compact_params, *args, **kwargs):
            leaves = found.treedef.flatten_up_to(compact_params)
            loss = loss_fn(found.rebuild(map(whole, found.tables, leaves)), *args, **kwargs)
            _check_loss(loss, has_aux)
            return loss

        value, grads = jax.value_and_grad(compact_loss, has_aux=has_aux)(found.rebuild(compact), *args, **kwargs)
        return value, grads, {name: distinct for name, (distinct, _) in sliced.items()}

    return value_and_compact_grad


def _check_loss(loss: Any, has_aux: bool) -> None:
    """Raises unless a loss function returned a real floating scalar, with `has_aux` before something else."""
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


def mean_over_micro_batches(grads: Any, token_ids: Any) -> tuple[Any, dict[str, jax.Array]]:
    """The gradient of the mean loss of A micro-batches whose gradients are stacked along a new first axis, as by `jax.lax.scan`.

    Compact gradients are concatenated and divided by A, dense ones averaged; so they are averaged before they are squared.

    Args:
      grads: stacked gradients, (A, ...); compact leaves have their token axis first.
      token_ids: their stacked ids, (A, ...).

    Returns:
      The gradients, and the ids by path.

    Raises:
      TypeError: a gradient is not floating.
      ValueError: ids for a path that is no gradient; gradients are not stacked.

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
    check_tree(grads, "grads")
    ids = token_ids_by_name(token_ids)
    found = read_tree(grads, ids)
    for table in found.tables:
        check_array(table.box, f"the gradient of {table.name!r}", floating=True)
    counts = {table.shape[:1] for table in found.tables}
    if len(counts) > 1 or () in counts or (0,) in counts:
        raise ValueError(
            f"gradients of micro-batches must be stacked along one new first axis, got the shapes "
            f"{ {table.name: table.shape for table in found.tables} }: stack them with jax.lax.scan or jnp.stack."
        )

    def mean(table: Table) -> jax.Array:
        check_rows_first(table.name, table.shape, table.ids)
        return jnp.mean(table.array, 0) if table.ids is None else table.array / table.shape[0]

    return found.rebuild(map(mean, found.tables)), ids


def sum_over_duplicates(updates: Any, token_ids: Any) -> Any:
    """Adds the rows of equal ids up, each sum where its id stands first, zeros elsewhere; dense leaves stay.

    `scale_by_ember` does that itself. For what comes before it and depends on the gradient's norm, such as
    `optax.clip_by_global_norm`, the norm is the dense gradient's only after this. The gradients of `row_sparse.value_and_grad`
    have distinct ids and do not need it.

    Args:
      updates: gradients whose compact leaves have their token axis first.
      token_ids: as in `row_sparse.apply_updates`; but only ids below zero are known as padding, V is not.

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
    check_tree(updates, "updates")
    found = read_tree(updates, token_ids_by_name(token_ids))
    for table in found.tables:
        check_array(table.box, f"the update of {table.name!r}")
    return found.rebuild(map(_sum_rows, found.tables))


def _sum_rows(table: Table) -> Any:
    if table.ids is None:
        return table.array
    check_rows_first(table.name, table.shape, table.ids)
    size = jnp.iinfo(jnp.int32).max  # of the table: no matter, only padding below zero is known here
    array = jnp.asarray(table.array)
    rows_NxF, _ = sum_duplicates(rows_first(array, 0, table.ids.ndim), flat_ids(table.ids, size), size)
    return rows_NxF.astype(array.dtype).reshape(table.shape)
