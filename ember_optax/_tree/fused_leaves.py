"""The gradient and the update of a fused head. They are leaves of a tree, but not arrays."""

from typing import Any

import jax
import jax.numpy as jnp

from .._math.head_gradient import HeadTap, TouchedRows
from .._math.head_step import HeadStep, apply_head_step
from .._math.softmax import HeadLoss
from .linear_leaf import LinearLeaf


class HeadLeaf(LinearLeaf):
    """The common base of the gradient and the update of a fused head."""

    dtype = jnp.dtype(jnp.float32)

    def astype(self, _: Any) -> Any:
        """The leaf itself, because it is computed in float32 in any case."""
        return self

    def what(self) -> str:
        return (
            f"the gradient of a fused head is never computed as an array. It can be scaled, clipped by "
            f"row_sparse.clip_by_global_norm, trained by ember or scale_by_ember and added to the parameters, all in one "
            f"jax.jit. For anything else leave {self.name!r} out of `heads`."
        )


class HeadGradient(HeadLeaf):
    """The gradient of a head, as `row_sparse.value_and_grad` returns it.

    Attributes:
      name: the table's path.
      table: the table at which the gradient was taken.
      tap: the arrays that the gradient is computed from.
      touched: the rows of a tied table that a lookup touched too; None without a lookup.
      loss: the options of the loss.
      factor: the factor by which the gradient was scaled, float32.
    """

    def __init__(self, name: str, table: jax.Array, tap: HeadTap, touched: TouchedRows | None, loss: HeadLoss, factor: Any = 1.0):
        self.name, self.table, self.tap, self.touched, self.loss = name, table, tap, touched, loss
        self.shape, self.factor = table.shape, jnp.asarray(factor, jnp.float32)

    def times(self, number: Any) -> "HeadGradient":
        factor = self.factor * jnp.asarray(number, jnp.float32)
        return HeadGradient(self.name, self.table, self.tap, self.touched, self.loss, factor)

    def added_to(self, param: jax.Array) -> jax.Array:
        del param
        self.refuse("it is still a gradient and was added to the parameters: train it with ember or scale_by_ember first")

    @property
    def squared_norm(self) -> jax.Array:
        """The sum of the squares of the gradient's elements."""
        return jnp.square(self.factor) * jnp.sum(self.tap.token_squares)


class HeadUpdate(HeadLeaf):
    """The update of a head, as `scale_by_ember` makes it of a `HeadGradient`."""

    def __init__(self, gradient: HeadGradient, step: HeadStep):
        self.name, self.shape, self.gradient, self.step = gradient.name, gradient.shape, gradient, step

    def times(self, number: Any) -> "HeadUpdate":
        if self.step.rounding_key is not None:
            self.refuse("it was scaled after stochastic_rounding, which must come last")
        return HeadUpdate(self.gradient, self.step._replace(scale=self.step.scale * jnp.asarray(number, jnp.float32)))

    def added_to(self, param: jax.Array) -> jax.Array:
        gradient = self.gradient
        # If source and parameter are one array, pass it once: XLA would copy the source to overwrite the parameter.
        source = None if gradient.table is param else gradient.table
        return apply_head_step(param, source, gradient.tap, gradient.touched, self.step, loss=gradient.loss)

    def rounded(self, key: jax.Array) -> "HeadUpdate":
        """The same update, which is rounded stochastically with this key when it is applied."""
        return HeadUpdate(self.gradient, self.step._replace(rounding_key=key))
