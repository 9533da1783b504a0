"""Clipping by the norm of all gradients, including compact gradients and those of fused heads."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._fused_heads.leaf import FusedLeaf
from .._math.rows import flat_ids, rows_first, sum_duplicates
from .._tree.declared import AUTO, DimensionNumbersLike, check_declaration
from .._tree.hyperparameters import checked_max_norm
from .._tree.inputs import check_array, check_tree
from .._tree.tables import Leaf, read_tree
from .._tree.token_ids import token_ids_by_name
from ._vocabularies import Vocabulary, vocabularies


def clip_by_global_norm(
    max_norm: jax.typing.ArrayLike, *, tables: DimensionNumbersLike = AUTO
) -> optax.GradientTransformationExtraArgs:
    r"""`optax.clip_by_global_norm` for compact gradients, whose rows of equal ids it sums before it squares, and for fused heads.

    .. math:: g \leftarrow g \, \min(1, max\_norm / \lVert g \rVert), \qquad \lVert g \rVert^2 = \sum_{leaves} \sum_i g_i^2

    The norm is that of the dense gradients. Rows of padding do not count. The backward pass of a fused head computes its norm.

    Args:
      max_norm: the largest norm that is allowed.
      tables: which axis of the tables is the vocabulary, as in `ember`. It is used only if `update` gets `token_ids`.

    Returns:
      A `GradientTransformationExtraArgs` without a state. Its `update` takes `token_ids`, and then needs the parameters.

    Raises:
      TypeError: `max_norm` is not a real number; at update, a leaf is not an array.
      ValueError: `max_norm` is not positive or not finite; at update, ids do not fit, or are given without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember, row_sparse
      >>> tx = optax.chain(row_sparse.clip_by_global_norm(1.0), ember(1e-2, optax.adamw(1e-3)))
      >>> clipped, _ = row_sparse.clip_by_global_norm(1.0).update({"w": jnp.full((4,), 3.0)}, optax.EmptyState())
      >>> print(clipped["w"])
      [0.5 0.5 0.5 0.5]

    References:
      docs/fused_head.md
    """
    max_norm = checked_max_norm(max_norm)
    check_declaration(tables, "tables")

    def init_fn(params):
        check_tree(params, "params", may_be_empty=True)
        return optax.EmptyState()

    def update_fn(updates, state, params=None, *, token_ids=None, **extra_args):
        del extra_args
        check_tree(updates, "updates", may_be_empty=True)
        ids = token_ids_by_name(token_ids)
        found = read_tree(updates, ids)
        for table in found.leaves:
            check_array(table.box, f"the gradient of {table.name!r}")
        known = vocabularies(found, ids, params, tables)
        norm = jnp.sqrt(sum((_squared_norm(table, known.get(table.name)) for table in found.leaves), jnp.float32(0)))
        small, limit = norm < max_norm, jnp.asarray(max_norm, jnp.float32)

        def clip(table: Leaf) -> Any:
            if isinstance(table.array, FusedLeaf):
                return table.array * jnp.where(small, 1.0, limit / norm)
            g = jnp.asarray(table.array)
            return jnp.where(small, g, g / norm.astype(g.dtype) * limit.astype(g.dtype))

        return found.rebuild(map(clip, found.leaves)), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _squared_norm(table: Leaf, vocabulary: Vocabulary | None) -> jax.Array:
    if isinstance(table.array, FusedLeaf):
        if table.array.preconditioner is not None:
            raise TypeError(f"the update of {table.name!r} has no norm: clip the gradients, before ember or scale_by_ember.")
        return table.array.squared_norm
    g = jnp.asarray(table.array)
    if table.ids is not None and vocabulary is not None:
        ids_N = flat_ids(table.ids, vocabulary.num_rows)
        g, _ = sum_duplicates(rows_first(g, vocabulary.token_axis, table.ids.ndim), ids_N, vocabulary.num_rows)
    wide = jnp.promote_types(g.dtype, jnp.float32)
    return jnp.sum(jnp.square(jnp.abs(g.astype(wide)))).astype(jnp.float32)
