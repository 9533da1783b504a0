"""Flax NNX: an `Embed` for row-sparse steps."""

from typing import Any

import jax
from flax import nnx

from .._tree.nnx_boxes import unbox
from ..row_sparse._slice import RowSlice, refuse_attend

__all__ = ["Embed"]


class Embed(nnx.Embed):
    """`nnx.Embed` whose table may be a `RowSlice`, so that `row_sparse.value_and_grad` can give it compact gradients.

    With an array as its table, it is the base class. With a `RowSlice`, rows of padding are zeros.

    Args:
      num_embeddings: V.
      features: D.
      **options: those of `nnx.Embed`.

    Raises:
      TypeError: `attend`, which needs every row, is called while the table is a `RowSlice`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from ember_optax import row_sparse
      >>> graph, state = nnx.split(Embed(1000, 4, rngs=nnx.Rngs(0)))
      >>> def loss_fn(params, ids):
      ...     model_state = nnx.split(nnx.merge(graph, state))[1]
      ...     nnx.replace_by_pure_dict(model_state, params)
      ...     return jnp.sum(nnx.merge(graph, model_state)(ids) ** 2)
      >>> ids = jnp.array([5, 9, 5])
      >>> params = nnx.to_pure_dict(state)
      >>> loss, grads = row_sparse.value_and_grad(loss_fn)(params, {"embedding": ids}, ids)
      >>> grads["embedding"].rows.shape
      (3, 4)

    References:
      docs/row_sparse.md
    """

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        table = unbox(self.embedding)
        if not isinstance(table, RowSlice):
            options = {} if out_sharding is None else {"out_sharding": out_sharding}  # Flax 0.11 has no such argument
            return super().__call__(inputs, **options)
        (rows,) = self.promote_dtype((table[inputs],), dtype=self.dtype, inexact=False)
        if out_sharding is None:
            return rows
        place: Any = jax.sharding.auto_axes(lambda x: x, out_sharding=out_sharding)
        return place(rows)

    def attend(self, query: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
        refuse_attend(unbox(self.embedding))
        return super().attend(query, *arguments, **options)
