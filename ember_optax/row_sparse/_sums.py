"""Sums of compact gradients: of micro-batches, and of the rows of equal ids."""

from typing import Any

import jax
import jax.numpy as jnp

from .._math.rows import flat_ids, rows_first, sum_duplicates
from .._tree.inputs import check_array, check_tree
from .._tree.tables import Table, read_tree
from .._tree.token_ids import check_rows_first, token_ids_by_name


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
      ...     loss, grads = grad_fn(params, {"wte": ids}, ids)
      ...     return None, row_sparse.split(grads)
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
