"""Flax NNX: a `Variable` is a box whose metadata may name the axes of the array inside; an `Embed` for row-sparse steps.

Source: https://flax.readthedocs.io/en/latest/guides/flax_gspmd.html
"""

from typing import Any

import jax
from flax import nnx

from .._row_slice import RowSlice, refuse_attend

# One name for each axis: `out_sharding` from Flax 0.12 on, `sharding_names` before; NNX adds `sharding` to some copies.
_NAMES = ("out_sharding", "sharding_names", "sharding", "optimizer_sharding")


def is_box(node: Any) -> bool:
    """Whether a node is a `Variable`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> is_box(nnx.Param(jnp.ones((8, 4)))), is_box(jnp.ones(3))
      (True, False)
    """
    return isinstance(node, nnx.Variable)


def unbox(box: nnx.Variable) -> Any:
    """The array inside, as it is stored.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> unbox(nnx.Param(jnp.ones((8, 4)))).shape
      (8, 4)
    """
    return box.get_raw_value() if hasattr(box, "get_raw_value") else box.raw_value


def rebox(box: nnx.Variable, value: jax.Array) -> nnx.Variable:
    """The same kind of variable with the same metadata around another array with the same axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> type(rebox(nnx.Param(jnp.ones((8, 4))), jnp.zeros((8, 4)))).__name__
      'Param'
    """
    return type(box).from_metadata(value, dict(box.get_metadata()))


def rebox_axes(box: nnx.Variable, value: jax.Array, axes: tuple[int, ...]) -> nnx.Variable:
    """The variable around an array that has only the axes `axes` of the boxed parameter, with their names.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> table = nnx.Param(jnp.ones((8, 4)), out_sharding=("vocab", "embed"), eager_sharding=False)
      >>> rebox_axes(table, jnp.zeros(4), axes=(1,)).get_metadata()["out_sharding"]
      ('embed',)
    """
    metadata = dict(box.get_metadata())
    for key in _NAMES:
        if metadata.get(key):
            names = tuple(metadata[key])
            metadata[key] = tuple(names[axis] for axis in axes if axis < len(names))
    return type(box).from_metadata(value, metadata)


class Embed(nnx.Embed):
    """`nnx.Embed` whose table may be a `RowSlice`, so that `row_sparse.value_and_grad` can give it compact gradients.

    With an array in it, the base class. Rows of padding are zeros where the table is a `RowSlice`.

    Args:
      num_embeddings: V.
      features: D.
      **options: those of `nnx.Embed`.

    Raises:
      TypeError: `attend`, which needs every row, while the table is a `RowSlice`.

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
      >>> loss, grads, token_ids = row_sparse.value_and_grad(loss_fn)(params, {"embedding": ids}, ids)
      >>> grads["embedding"].shape
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
