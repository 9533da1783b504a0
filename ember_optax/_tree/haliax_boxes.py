"""The boxes of Haliax: a `NamedArray`, which carries one `Axis` with name and size for each axis of the array inside.

Haliax is not imported here: whoever has a box has it, and its module says what a box is.

Source: https://haliax.readthedocs.io
"""

import sys
from typing import Any

import jax
import numpy as np


def is_box(node: Any) -> bool:
    """Whether a node is a `NamedArray`."""
    return isinstance(node, sys.modules["haliax"].NamedArray)


def unbox(box: Any) -> Any:
    """The array inside."""
    return box.array


def rebox(box: Any, value: Any) -> Any:
    """The names of a box around another value with the same axes; their sizes are those of the value."""
    return rebox_axes(box, value, tuple(range(len(box.axes))))


def rebox_axes(box: Any, value: jax.Array, axes: tuple[int, ...]) -> Any:
    """The names of the axes `axes` of the boxed parameter around an array that has only these; sizes are those of the array."""
    kept, shape = [box.axes[axis] for axis in axes], np.shape(value) if hasattr(value, "shape") else ()
    if len(shape) == len(kept):
        kept = [axis if axis.size == size else axis.resize(size) for axis, size in zip(kept, shape, strict=True)]
    # Not by the constructor, which compares shapes: a `RowSlice` or a spec may stand for the array.
    return type(box).tree_unflatten(tuple(kept), (value,))
