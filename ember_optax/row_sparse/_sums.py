"""Sums of compact gradients: over micro-batches, and over the rows of equal ids."""

from typing import Any

import jax
import jax.numpy as jnp

from .._math.rows import flat_ids, rows_back, rows_first, sum_duplicates
from .._tree.boxes import unbox
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.inputs import check_array, check_tree
from .._tree.linear_leaf import LinearLeaf
from .._tree.tables import Leaf, read_tree
from .._tree.token_ids import token_ids_by_name
from ._vocabularies import Vocabulary, vocabularies


def mean_over_micro_batches(
    grads: Any, token_ids: Any, params: Any = None, *, tables: DimensionNumbersLike = AUTO
) -> tuple[Any, dict[str, jax.Array]]:
    """The gradient of the mean loss of A micro-batches, from gradients that `jax.lax.scan` stacked along a new first axis.

    Compact gradients are concatenated and divided by A, and dense gradients are averaged. So they are averaged before they are
    squared.

    Args:
      grads: stacked gradients, (A, ...), as arrays, for example from `row_sparse.split`.
      token_ids: their stacked ids, (A, ...).
      params: the parameters, which show the token axes. They may be None if there are no ids.
      tables: which axis of the tables is the vocabulary, as in `ember`.

    Returns:
      The gradients and the ids by path. Compact gradients have the axes of the stacked ids instead of the token axis.

    Raises:
      TypeError: a gradient is not floating.
      ValueError: ids are given for a path that is not a gradient, or without the parameters; gradients are not stacked, or do
        not fit.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> params, batches = {"wte": jnp.ones((100, 4))}, jnp.array([[3, 7], [7, 8]])
      >>> grad_fn = row_sparse.value_and_grad(lambda params, ids: jnp.sum(params["wte"][ids] ** 2))
      >>> def micro_batch(_, ids):
      ...     loss, grads = grad_fn(params, {"wte": ids}, ids)
      ...     return None, row_sparse.split(grads)
      >>> grads, token_ids = row_sparse.mean_over_micro_batches(*jax.lax.scan(micro_batch, None, batches)[1], params)
      >>> grads["wte"].shape, token_ids["wte"].shape
      ((2, 2, 4), (2, 2))

    References:
      docs/row_sparse.md
    """
    check_tree(grads, "grads")
    ids = token_ids_by_name(token_ids)
    found = read_tree(grads, ids)
    for table in found.leaves:
        check_array(table.box, f"the gradient of {table.name!r}", floating=True)
        if isinstance(unbox(table.box), LinearLeaf):
            raise TypeError(f"the gradient of {table.name!r} is no array: pass the arrays that row_sparse.split returns.")
    counts = {table.shape[:1] for table in found.leaves}
    counts |= {table.ids.shape[:1] for table in found.leaves if table.ids is not None}
    if len(counts) > 1 or () in counts or (0,) in counts:
        raise ValueError(
            f"gradients of micro-batches must be stacked along one new first axis, got the shapes "
            f"{ {table.name: table.shape for table in found.leaves} }: stack them with jax.lax.scan or jnp.stack."
        )

    known = vocabularies(found, ids, params, tables, stacked=1)

    def mean(table: Leaf) -> jax.Array:
        if table.ids is None:
            return jnp.mean(table.array, 0)
        return jnp.moveaxis(table.array, 0, known[table.name].token_axis) / table.shape[0]

    return found.rebuild(map(mean, found.leaves)), ids


def sum_over_duplicates(updates: Any, token_ids: Any = None, params: Any = None, *, tables: DimensionNumbersLike = AUTO) -> Any:
    """Adds up the rows of equal ids. The first occurrence of an id has the sum, later occurrences and padding have zeros.

    `scale_by_ember` does this itself. A transformation before it that needs the gradient's norm, such as
    `optax.clip_by_global_norm`, sees the norm of the dense gradient only after this. The gradients of
    `row_sparse.value_and_grad` have distinct ids and do not need it. Sums are computed in float32 and rounded once. Dense leaves
    do not change.

    Args:
      updates: gradients.
      token_ids: the ids of the compact arrays, as in `row_sparse.apply_updates`.
      params: the parameters, which show the token axes and V. They may be None without `token_ids`.
      tables: which axis of the tables is the vocabulary, as in `ember`.

    Returns:
      The updates, of the same shapes and dtypes.

    Raises:
      ValueError: ids are given for a path that is not an update, or without the parameters; an update does not fit its ids.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> params, ids = {"wte": jnp.zeros((8, 1))}, jnp.array([5, 2, 5])
      >>> row_sparse.sum_over_duplicates({"wte": jnp.ones((3, 1))}, {"wte": ids}, params)["wte"][:, 0]
      Array([2., 1., 0.], dtype=float32)

    References:
      docs/row_sparse.md
    """
    check_tree(updates, "updates")
    ids = token_ids_by_name(token_ids)
    found = read_tree(updates, ids)
    for table in found.leaves:
        check_array(table.box, f"the update of {table.name!r}")
    known = vocabularies(found, ids, params, tables)
    return found.rebuild(_sum_rows(table, known.get(table.name)) for table in found.leaves)


def _sum_rows(table: Leaf, vocabulary: Vocabulary | None) -> Any:
    if table.ids is None or vocabulary is None:
        return table.array
    (token_axis, size), array = vocabulary, jnp.asarray(table.array)
    rows_NxF, _ = sum_duplicates(rows_first(array, token_axis, table.ids.ndim), flat_ids(table.ids, size), size)
    return rows_back(rows_NxF.astype(array.dtype), array.shape, token_axis, table.ids.ndim)
