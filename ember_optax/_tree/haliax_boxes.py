"""The boxes of Haliax: a `NamedArray`, which carries one `Axis` with name and size for each axis of the array inside.

Haliax is not imported here. If a tree has a Haliax box, then Haliax is already loaded.

Source: https://haliax.readthedocs.io
"""

import dataclasses
import functools
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
    """A box with the axis names of `box` around another value with the same axes. The sizes are those of the value."""
    return rebox_axes(box, value, tuple(range(len(box.axes))))


def rebox_axes(box: Any, value: jax.Array, axes: tuple[int, ...]) -> Any:
    """A box around an array that has only the axes `axes` of the boxed parameter, with their names and the array's sizes."""
    kept, shape = [box.axes[axis] for axis in axes], np.shape(value) if hasattr(value, "shape") else ()
    if len(shape) == len(kept):
        kept = [axis if axis.size == size else axis.resize(size) for axis, size in zip(kept, shape, strict=True)]
    # The constructor compares shapes, but the value may be a `RowSlice` or a spec instead of an array.
    return type(box).tree_unflatten(tuple(kept), (value,))


def resized(tree: Any, before: list[Any], after: list[Any]) -> Any:
    """The tree with new axes in the fields of modules whose boxed arrays changed their sizes.

    `haliax.nn.Embedding` stores the axis `Vocab` as a field next to the array, and looks up rows along it. A field stays if an
    array of the module still has the old axis.
    """
    boxes = [(old, new) for old, new in zip(before, after, strict=True) if is_box(old)]
    changes = {old: new for pair in boxes for old, new in zip(pair[0].axes, pair[1].axes, strict=True) if old != new}
    return _with_axes(tree, changes, changes) if changes else tree


def _with_axes(node: Any, changes: dict[Any, Any], ours: dict[Any, Any]) -> Any:
    """A node with other axes. `changes` are the changes in the whole tree, `ours` those in the module around the node."""
    if is_box(node) or isinstance(node, type):
        return node
    if isinstance(node, sys.modules["haliax"].Axis):
        return ours.get(node, node)
    changed = functools.partial(_with_axes, changes=changes, ours=ours)
    if hasattr(node, "_make"):
        return node._make(map(changed, node))
    if type(node) in (tuple, list):
        return type(node)(map(changed, node))
    if type(node) is dict:
        return {key: changed(part) for key, part in node.items()}
    return _module_with_axes(node, changes) if dataclasses.is_dataclass(node) else node


def _module_with_axes(module: Any, changes: dict[Any, Any]) -> Any:
    kept = {axis for box in jax.tree.leaves(module, is_leaf=is_box) if is_box(box) for axis in box.axes}
    ours = {old: new for old, new in changes.items() if old not in kept}
    new = object.__new__(type(module))  # a constructor may take other arguments
    for name, value in vars(module).items():
        object.__setattr__(new, name, _with_axes(value, changes, ours))
    return new
