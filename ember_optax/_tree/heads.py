"""What stands in a tree for the gradient and for the update of a fused head: leaves, but no arrays.

They may be multiplied by numbers, which is what schedules and learning rates do. All else, done to each of the arrays that they
hold, would be wrong in silence, and is refused. They live within one trace: no results of `jax.jit`.
"""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from .._math.head_gradient import HeadTap, TouchedRows
from .._math.head_step import HeadStep
from .._math.softmax import HeadLoss

_WHAT = (
    "the gradient of a fused head is never computed as an array. It can be scaled, clipped by row_sparse.clip_by_global_norm, "
    "trained by ember or scale_by_ember and applied by row_sparse.apply_updates, all in one jax.jit."
)


class NoArrayError(TypeError, AttributeError):
    """Something was used as an array that is none. An `AttributeError` too, so that `hasattr` is False for what it lacks."""


class HeadLeaf:
    """Arithmetic of what is linear and has no array."""

    # NumPy's numbers then leave products to `__rmul__`. (With `__jax_array__`, JAX's would not.)
    __array_ufunc__ = None

    name: str
    shape: tuple[int, ...]
    dtype = jnp.dtype(jnp.float32)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def _times(self, number: Any) -> Any:
        raise NotImplementedError

    def _number(self, other: Any) -> jax.Array:
        if np.shape(other) != () or isinstance(other, HeadLeaf):
            self._refuse("it was multiplied with an array")
        return jnp.asarray(other, jnp.float32)

    def __mul__(self, other: Any) -> Any:
        return self._times(self._number(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self._times(1.0 / self._number(other))

    def __neg__(self) -> Any:
        return self._times(jnp.float32(-1.0))

    def astype(self, _: Any) -> Any:
        """Itself: it is computed in float32, whatever the others are cast to."""
        return self

    def _refuse(self, reason: str) -> NoReturn:
        raise NoArrayError(f"{self._place()}: {reason}, but {_WHAT} For anything else leave {self.name!r} out of `heads`.")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_") or name in ("name", "shape"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._refuse(f"its attribute {name!r} was asked for")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("it was used as an array")

    def __add__(self, _: Any) -> NoReturn:
        self._refuse("something was added to it (weight decay belongs into ember, updates go to row_sparse.apply_updates)")

    __radd__ = __sub__ = __rsub__ = __add__

    def __pow__(self, _: Any) -> NoReturn:
        self._refuse("its elements were asked for")

    __rtruediv__ = __matmul__ = __rmatmul__ = __abs__ = __getitem__ = __iter__ = __pow__  # pyright: ignore[reportAssignmentType]
    __lt__ = __le__ = __gt__ = __ge__ = __pow__

    def __repr__(self) -> str:
        # JAX shows it in its own errors.
        return f"{self._place()}: {_WHAT} For anything else leave {self.name!r} out of `heads`"

    def _place(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.shape})"


class HeadGradient(HeadLeaf):
    """The gradient of a head, as `row_sparse.value_and_grad` returns it.

    Attributes:
      name: the table's path.
      table: where the gradient was taken.
      tap: what it is made of.
      touched: rows that a lookup of a tied table touched too; None without one.
      loss: everything else.
      factor: float32, by which it was scaled.
    """

    def __init__(self, name: str, table: jax.Array, tap: HeadTap, touched: TouchedRows | None, loss: HeadLoss, factor: Any = 1.0):
        self.name, self.table, self.tap, self.touched, self.loss = name, table, tap, touched, loss
        self.shape, self.factor = table.shape, jnp.asarray(factor, jnp.float32)

    def _times(self, number: Any) -> "HeadGradient":
        return HeadGradient(self.name, self.table, self.tap, self.touched, self.loss, self.factor * number)

    @property
    def squared_norm(self) -> jax.Array:
        """The sum of the squares of its elements."""
        return jnp.square(self.factor) * jnp.sum(self.tap.token_squares)


class HeadUpdate(HeadLeaf):
    """The update of a head, as `scale_by_ember` makes it of a `HeadGradient`."""

    def __init__(self, gradient: HeadGradient, step: HeadStep):
        self.name, self.shape, self.gradient, self.step = gradient.name, gradient.shape, gradient, step

    def _times(self, number: Any) -> "HeadUpdate":
        if self.step.rounding_key is not None:
            self._refuse("it was scaled after stochastic_rounding, which must come last")
        return HeadUpdate(self.gradient, self.step._replace(scale=self.step.scale * number))

    def rounded(self, key: jax.Array) -> "HeadUpdate":
        """To be rounded stochastically where it is applied."""
        return HeadUpdate(self.gradient, self.step._replace(rounding_key=key))
