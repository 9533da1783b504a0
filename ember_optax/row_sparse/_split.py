"""`split`: compact gradients as plain arrays, which a jitted function may return."""

from typing import Any

import jax

from .._fused_heads.leaf import FusedLeaf
from .._tree.boxes import rebox
from .._tree.inputs import check_tree
from .._tree.tables import read_tree


def split(grads: Any) -> tuple[Any, dict[str, jax.Array]]:
    """The rows of compact gradients, and their ids, as arrays.

    A `CompactRows` cannot leave the `jax.jit` that made it. Its arrays can be returned, or stacked by `jax.lax.scan` over
    micro-batches. Pass them to `tx.update(..., token_ids=token_ids)` and `row_sparse.apply_updates(params, updates, token_ids)`.

    Args:
      grads: gradients of `row_sparse.value_and_grad`, or their updates.

    Returns:
      The same tree with an array of rows, (N, D), instead of each `CompactRows`, and a dictionary from paths to ids, (N,).

    Raises:
      TypeError: a gradient is that of a fused head, which has no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> loss_fn = lambda params, ids: jnp.sum(params["wte"][ids] ** 2)
      >>> params, ids = {"wte": jnp.ones((100, 4))}, jnp.array([7, 3])
      >>> _, grads = row_sparse.value_and_grad(loss_fn)(params, {"wte": ids}, ids)
      >>> rows, token_ids = row_sparse.split(grads)
      >>> rows["wte"].shape, token_ids["wte"]
      ((2, 4), Array([3, 7], dtype=int32))

    References:
      docs/row_sparse.md
    """
    check_tree(grads, "grads")
    found = read_tree(grads)
    for table in found.leaves:
        if isinstance(table.array, FusedLeaf):
            table.array.refuse("its arrays were asked for")
    rows = found.treedef.unflatten([rebox(table.box, table.array) for table in found.leaves])
    return rows, {table.name: table.ids for table in found.leaves if table.ids is not None}
