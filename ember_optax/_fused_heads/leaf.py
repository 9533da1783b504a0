"""`FusedLeaf`: the gradient or the update of a fused head. It is a leaf of a tree, but not an array."""

from typing import Any

import jax
import jax.numpy as jnp

from .._math.softmax import LossOptions
from .._tree.linear_leaf import LinearLeaf
from .step import Preconditioner, apply_head_step
from .taps import Tap


class FusedLeaf(LinearLeaf):
    """The gradient of a head, as `row_sparse.value_and_grad` returns it, or its update, as `scale_by_ember` returns it.

    Attributes:
      name: the table's path.
      table: the table at which the gradient was taken.
      tap: the arrays that the gradient is computed from.
      touched: the ids and the gradient of the rows of a tied table that a lookup touched too; None without a lookup.
      loss: the options of the loss.
      factor: the factor by which the gradient was scaled, float32.
      preconditioner: what makes the update of the gradient; None for the gradient.
    """

    dtype = jnp.dtype(jnp.float32)

    def __init__(
        self,
        name: str,
        table: jax.Array,
        tap: Tap,
        touched: tuple[jax.Array, jax.Array] | None,
        loss: LossOptions,
        factor: Any = 1.0,
        preconditioner: Preconditioner | None = None,
    ):
        self.name, self.table, self.tap, self.touched, self.loss = name, table, tap, touched, loss
        self.shape, self.factor, self.preconditioner = table.shape, jnp.asarray(factor, jnp.float32), preconditioner

    def times(self, number: Any) -> "FusedLeaf":
        number, made = jnp.asarray(number, jnp.float32), self.preconditioner
        if made is None:
            return FusedLeaf(self.name, self.table, self.tap, self.touched, self.loss, self.factor * number)
        if made.rounding_key is not None:
            self.refuse("it was scaled after stochastic_rounding, which must come last")
        return self.update(made._replace(scale=made.scale * number))

    def update(self, preconditioner: Preconditioner) -> "FusedLeaf":
        """The update that a preconditioner makes of this gradient."""
        return FusedLeaf(self.name, self.table, self.tap, self.touched, self.loss, self.factor, preconditioner)

    def added_to(self, param: jax.Array) -> jax.Array:
        if self.preconditioner is None:
            self.refuse("it is still a gradient and was added to the parameters: train it with ember or scale_by_ember first")
        # If source and parameter are one array, pass it once: XLA would copy the source to overwrite the parameter.
        source = None if self.table is param else self.table
        return apply_head_step(param, source, self.tap, self.touched, self.preconditioner, loss=self.loss)

    @property
    def squared_norm(self) -> jax.Array:
        """The sum of the squares of the gradient's elements."""
        layout = self.loss.layout
        # Inside of the caller's own `jax.shard_map` this device has the tokens of its rows alone.
        squares = self.tap.feature_squares if layout and layout.is_manual else self.tap.token_squares
        return jnp.square(self.factor) * jnp.sum(squares)

    def astype(self, _: Any) -> "FusedLeaf":
        """The leaf itself, because it is computed in float32 in any case."""
        return self

    def what(self) -> str:
        return (
            f"the gradient of a fused head is never computed as an array. It can be scaled, clipped by "
            f"row_sparse.clip_by_global_norm, trained by ember or scale_by_ember and added to the parameters, all in one "
            f"jax.jit. For anything else leave {self.name!r} out of `heads`."
        )
