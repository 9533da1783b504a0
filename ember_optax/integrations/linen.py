"""Flax Linen: an `Embed` for row-sparse steps."""

from typing import Any

import flax.linen as nn
import jax

from .._tree.linen_boxes import is_box, unbox
from ..row_sparse._slice import RowSlice, refuse_attend

__all__ = ["Embed"]


class Embed(nn.Embed):
    """`nn.Embed` whose table may be a `RowSlice`, so that `row_sparse.value_and_grad` can give it compact gradients.

    With an array as its table, it is the base class. With a `RowSlice`, rows of padding are zeros. It has the fields of
    `nn.Embed`.

    Raises:
      TypeError: `attend`, which needs every row, is called while the table is a `RowSlice`.
      ValueError: the table of the `RowSlice` has another shape.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> model, ids = Embed(1000, 4), jnp.array([5, 9, 5])
      >>> params = model.init(jax.random.key(0), ids)["params"]
      >>> def loss_fn(params, ids):
      ...     return jnp.sum(model.apply({"params": params}, ids) ** 2)
      >>> loss, grads = row_sparse.value_and_grad(loss_fn)(params, {"embedding": ids}, ids)
      >>> grads["embedding"].rows.shape
      (3, 4)

    References:
      docs/row_sparse.md
    """

    def setup(self):
        # `self.param` would compare the shape of the rows with that of the whole table.
        stored = self.get_variable("params", "embedding")
        table = unbox(stored) if is_box(stored) else stored
        if isinstance(table, RowSlice):
            if table.shape != (self.num_embeddings, self.features):
                raise ValueError(
                    f"the table of {self.path} has shape {table.shape}, but this Embed has num_embeddings={self.num_embeddings} "
                    f"and features={self.features}; pass the parameters of this module."
                )
            self.embedding: Any = table
        else:
            super().setup()

    def __call__(self, inputs: jax.Array) -> jax.Array:
        table = self.embedding
        if not isinstance(table, RowSlice):
            return super().__call__(inputs)
        rows: Any = self.promote_dtype(table[inputs], dtype=self.dtype, inexact=False)[0]
        return rows

    def attend(self, query: jax.Array) -> jax.Array:
        refuse_attend(self.embedding)
        return super().attend(query)
