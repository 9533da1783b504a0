"""Flax Linen: `Partitioned` and `LogicallyPartitioned` boxes; an `Embed` for row-sparse steps.

Source: https://flax.readthedocs.io/en/latest/guides/parallel_training/flax_on_pjit.html
"""

from typing import Any

import flax.linen as nn
import jax

from .._row_slice import RowSlice, refuse_attend


def is_box(node: Any) -> bool:
    """Whether a node is a box of Linen's with a name for each axis: `nn.Partitioned` or `nn.LogicallyPartitioned`.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> is_box(nn.Partitioned(jnp.ones((8, 4)), names=("vocab", "embed"))), is_box(jnp.ones(3))
      (True, False)
    """
    return isinstance(node, nn.Partitioned)


def unbox(box: nn.Partitioned) -> Any:
    """The array inside, without applying a sharding constraint.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> unbox(nn.Partitioned(jnp.ones((8, 4)), names=("vocab", "embed"))).shape
      (8, 4)
    """
    return box.value


def rebox(box: nn.Partitioned, value: jax.Array) -> nn.Partitioned:
    """The same box around another array with the same axes.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> rebox(nn.Partitioned(jnp.ones((8, 4)), names=("vocab", "embed")), jnp.zeros((8, 4))).names
      ('vocab', 'embed')
    """
    return box.replace(value=value)


def rebox_axes(box: nn.Partitioned, value: jax.Array, axes: tuple[int, ...]) -> nn.Partitioned:
    """The box around an array that has only the axes `axes` of the boxed parameter, with their names.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> table = nn.Partitioned(jnp.ones((8, 4)), names=("vocab", "embed"))
      >>> rebox_axes(table, jnp.zeros(4), axes=(1,)).names
      ('embed',)
    """
    return box.replace(value=value, names=tuple(box.names[axis] for axis in axes if axis < len(box.names)))


class Embed(nn.Embed):
    """`nn.Embed` whose table may be a `RowSlice`, so that `row_sparse.value_and_grad` can give it compact gradients.

    With an array in it, the base class. Rows of padding are zeros where the table is a `RowSlice`. Fields are those of
    `nn.Embed`.

    Raises:
      TypeError: `attend`, which needs every row, while the table is a `RowSlice`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> model, ids = Embed(1000, 4), jnp.array([5, 9, 5])
      >>> params = model.init(jax.random.key(0), ids)["params"]
      >>> def loss_fn(params, ids):
      ...     return jnp.sum(model.apply({"params": params}, ids) ** 2)
      >>> loss, grads, token_ids = row_sparse.value_and_grad(loss_fn)(params, {"embedding": ids}, ids)
      >>> grads["embedding"].shape
      (3, 4)

    References:
      docs/row_sparse.md
    """

    def setup(self):
        # `self.param` would compare the shapes of what is inside with those of a whole table.
        stored = self.get_variable("params", "embedding")
        table = unbox(stored) if is_box(stored) else stored
        if isinstance(table, RowSlice):
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
