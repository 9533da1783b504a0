"""`CompactRows`: a gradient or an update of some rows of a token table, with their ids."""

from typing import Any

import jax

from .._math.mesh import in_auto_mode, spec_like
from .._math.row_writes import add_rows
from .linear_leaf import LinearLeaf


class CompactRows(LinearLeaf):
    """Some rows of a (V, D) gradient or update that is zero in all other rows.

    `row_sparse.value_and_grad` returns one for each table that has ids. It is a leaf of the gradients, and passes through
    `tx.update`, `optax.apply_updates`, `TrainState.apply_gradients` and `nnx.Optimizer.update` like any other leaf. It can be
    multiplied by numbers, and `table + leaf` is the table with these rows added. Every other operation raises with the table's
    path, because it would treat the rows as a whole table. A `CompactRows` cannot leave the `jax.jit` that made it.
    `row_sparse.split` returns its arrays, for example for `jax.lax.scan`.

    Args:
      rows: an array of the table's shape with the axes of `ids` instead of the token axis.
      ids: the ids of the rows, integers of any shape. Rows of equal ids add up. Ids below zero, or V and above, are padding.
      shape: the table's shape.
      token_axis: the axis of the table that is the vocabulary.
      name: the table's path, for messages.

    Raises:
      TypeError: an operation is neither a product with a number nor a sum with the table.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import row_sparse
      >>> leaf = row_sparse.CompactRows(jnp.ones((2, 4)), jnp.array([7, 3]), shape=(100, 4), token_axis=0, name="wte")
      >>> table = optax.apply_updates({"wte": jnp.zeros((100, 4))}, {"wte": -0.5 * leaf})["wte"]
      >>> print(table[7], table.sum())
      [-0.5 -0.5 -0.5 -0.5] -4.0

    References:
      docs/row_sparse.md
    """

    def __init__(self, rows: jax.Array, ids: jax.Array, shape: tuple[int, ...], token_axis: int, name: str):
        self.rows, self.ids, self.shape, self.token_axis, self.name = rows, ids, tuple(shape), token_axis, name

    @property
    def dtype(self) -> Any:
        return self.rows.dtype

    def replaced(self, rows: jax.Array, ids: jax.Array | None = None) -> "CompactRows":
        """A `CompactRows` of the same table with other rows, and with other ids if they are given."""
        return CompactRows(rows, self.ids if ids is None else ids, self.shape, self.token_axis, self.name)

    def astype(self, dtype: Any) -> "CompactRows":
        return self.replaced(self.rows.astype(dtype))

    def times(self, number: Any) -> "CompactRows":
        return self.replaced(self.rows * number)

    def added_to(self, param: jax.Array) -> jax.Array:
        def add(table, rows, ids):
            return add_rows(table, rows, ids, self.token_axis)

        return in_auto_mode(add, lambda: spec_like(param), param, self.rows, self.ids)

    def what(self) -> str:
        return (
            f"only {self.ids.size} rows of this table's gradient exist. They can be scaled, clipped by "
            f"row_sparse.clip_by_global_norm, trained by ember or scale_by_ember and added to the parameters, all in one "
            f"jax.jit. For anything else declare no ids for {self.name!r}."
        )
