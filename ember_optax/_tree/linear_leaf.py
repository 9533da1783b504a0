"""`LinearLeaf`: a gradient or an update that is a leaf of a tree, but not an array.

It can be multiplied by numbers, which is all that schedules and learning rates do. `parameter + leaf` is the parameter after the
step, which is all that `optax.apply_updates` computes. Any other operation would silently treat the leaf's content as a dense
array, so it raises with the parameter's path. A leaf belongs to one trace, and `jax.jit` cannot return it.
"""

import abc
import math
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np


class NoArrayError(TypeError, AttributeError):
    """A leaf was used as an array. It is an `AttributeError` too, so that `hasattr` is False for attributes of arrays."""


class LinearLeaf(abc.ABC):
    """The arithmetic of a linear leaf. Subclasses say what it holds.

    Attributes:
      name: the parameter's path.
      shape: the shape of the parameter.
      dtype: the dtype of the numbers.
    """

    # With this, NumPy scalars leave products to `__rmul__`. (JAX scalars would not, if `__jax_array__` existed.)
    __array_ufunc__ = None

    name: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @abc.abstractmethod
    def times(self, number: Any) -> Any:
        """The leaf multiplied by a scalar."""

    @abc.abstractmethod
    def added_to(self, param: jax.Array) -> jax.Array:
        """The parameter after the step."""

    @abc.abstractmethod
    def what(self) -> str:
        """The text of an error: what the leaf is, and which operations it has."""

    def _number(self, other: Any) -> Any:
        if isinstance(other, LinearLeaf) or np.shape(other) != ():
            self.refuse("it was multiplied with an array")
        return other

    def __mul__(self, other: Any) -> Any:
        return self.times(self._number(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self.times(1.0 / self._number(other))

    def __neg__(self) -> Any:
        return self.times(-1.0)

    def __radd__(self, param: Any) -> jax.Array:
        if not hasattr(param, "dtype") or np.shape(param) != self.shape:
            raise ValueError(
                f"{self._place()}: it was added to a parameter of shape {np.shape(param)}; pass the parameters at which "
                f"row_sparse.value_and_grad took the gradients."
            )
        if not jnp.issubdtype(param.dtype, jnp.floating):
            self.refuse(f"it was added to numbers of dtype {param.dtype}")
        return self.added_to(jnp.asarray(param))

    def refuse(self, reason: str) -> NoReturn:
        """Raises with the parameter's path and the reason."""
        raise NoArrayError(f"{self._place()}: {reason}, but {self.what()}")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_") or name in ("name", "shape", "dtype"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.refuse(f"its attribute {name!r} was asked for")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.refuse("it was used as an array")

    def __add__(self, _: Any) -> NoReturn:
        self.refuse("something was added to it (weight decay belongs into ember; momentum does not fit)")

    __sub__ = __rsub__ = __add__

    def __pow__(self, _: Any) -> NoReturn:
        self.refuse("its elements were asked for")

    __rtruediv__ = __matmul__ = __rmatmul__ = __abs__ = __getitem__ = __iter__ = __pow__  # pyright: ignore[reportAssignmentType]
    __lt__ = __le__ = __gt__ = __ge__ = __pow__

    def __repr__(self) -> str:
        # JAX shows this in its own errors.
        return f"{self._place()}: {self.what()}"

    def _place(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.shape})"
