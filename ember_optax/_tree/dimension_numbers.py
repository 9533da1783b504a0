"""Which axis of a parameter is the vocabulary; every other axis is a feature or a batch axis."""

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from .._math.axes import TableAxes

TableKind = Literal["input", "head", "tied"]


@dataclasses.dataclass(frozen=True)
class EmberDimensionNumbers:
    """Names the axes of one token table, and its kind.

    A table has one token axis (the vocabulary), optional batch axes (several tables stacked in one
    array, for example one per layer or per codebook) and feature axes: all the axes that remain.
    Each stacked table has its own statistics, step count and guard, as if it were a separate leaf.

    | table                                | dimension numbers                                |
    |--------------------------------------|--------------------------------------------------|
    | `(V, D)` embedding                   | `EmberDimensionNumbers()`                        |
    | `(D, V)` head                        | `EmberDimensionNumbers(token_axis=1)`            |
    | `(V, L, P)` per-layer embedding      | `EmberDimensionNumbers()`: features are `(L, P)` |
    | `(K, V, D)` codebooks, stacked layers| `EmberDimensionNumbers(1, batch_axes=(0,))`      |

    Args:
      token_axis: the axis of length V. Negative values count from the end.
      batch_axes: axes along which independent tables are stacked. Negative values count from the end.
      kind: "input" for an embedding with a separate head, "head" for a head that is not tied, "tied" for an embedding that is
        also the head. With None, the finder decides by the path. `ember` trains heads with `head_learning_rate`.

    Raises:
      TypeError: an axis is not an integer.
      ValueError: an axis is named twice, or `kind` is none of the three.

    Example:
      >>> from ember_optax import EmberDimensionNumbers
      >>> EmberDimensionNumbers(token_axis=-1)
      EmberDimensionNumbers(token_axis=-1, batch_axes=(), kind=None)

    References:
      docs/plain_trees.md
    """

    token_axis: int = 0
    batch_axes: tuple[int, ...] = ()
    kind: TableKind | None = None

    def __post_init__(self):
        object.__setattr__(self, "token_axis", _as_axis(self.token_axis, "token_axis"))
        if isinstance(self.batch_axes, str | bytes | Mapping) or not (
            isinstance(self.batch_axes, Iterable) and getattr(self.batch_axes, "ndim", 1) == 1
        ):
            raise TypeError(
                f"batch_axes must be a tuple of integers, got {self.batch_axes!r}; "
                f"for one axis write batch_axes=({self.batch_axes!r},)."
            )
        object.__setattr__(self, "batch_axes", tuple(_as_axis(axis, "batch_axes") for axis in self.batch_axes))
        named = (self.token_axis, *self.batch_axes)
        if len(set(named)) != len(named):
            raise ValueError(f"{self} names an axis twice; each axis is the token axis, a batch axis or a feature axis.")
        if self.kind is not None and self.kind not in get_args(TableKind):
            raise ValueError(f"kind must be one of {', '.join(map(repr, get_args(TableKind)))} or None, got {self.kind!r}.")


def table_axes(dimension_numbers: EmberDimensionNumbers, shape: tuple[int, ...], name: str) -> TableAxes:
    """The axes of a parameter of this shape. A scalar is a vocabulary of one token without axes.

    Args:
      dimension_numbers: the declared axes.
      shape: the parameter's shape.
      name: the parameter's path, for the error message.

    Returns:
      The axes, each counted from the front and in increasing order.

    Raises:
      ValueError: an axis is out of range for the shape, or two names mean the same axis.
    """
    rank = len(shape)
    if rank == 0 and dimension_numbers.token_axis in (0, -1) and not dimension_numbers.batch_axes:
        return TableAxes((), (), ())
    named = (dimension_numbers.token_axis, *dimension_numbers.batch_axes)
    for axis in named:
        if not -rank <= axis < rank:
            raise ValueError(
                f"{dimension_numbers} does not fit parameter {name!r} of shape {shape}: axis {axis} is out of range, "
                f"use axes from {-rank} to {rank - 1}."
            )
    token, *batch = (axis % rank for axis in named)
    if len({token, *batch}) != len(named):
        raise ValueError(f"{dimension_numbers} names one axis of parameter {name!r} of shape {shape} twice.")
    feature = tuple(axis for axis in range(rank) if axis != token and axis not in batch)
    return TableAxes((token,), feature, tuple(sorted(batch)))


def _as_axis(axis, argument: str) -> int:
    if isinstance(axis, bool):
        raise TypeError(f"{argument} must be made of integers, got {axis!r}; name the axis by its position.")
    try:
        return operator.index(axis)
    except TypeError:
        raise TypeError(f"{argument} must be made of integers, got {axis!r}; name the axis by its position.") from None
