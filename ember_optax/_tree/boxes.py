"""Boxes: wrappers of some libraries around a parameter, which say how it is sharded.

Flax Linen's `Partitioned`, NNX's `Variable` and Haliax's `NamedArray` are pytree nodes that carry one axis name for each axis
of the array inside. A state vector has fewer axes than its parameter, so its box must carry fewer names. With the parameter's own
box around it, `nn.get_partition_spec`, `jax.jit(out_shardings=...)` and `hax.shard` fail. The adapter of a library is used only
if the library is already loaded.
"""

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

import jax
import optax

# One module for each library with boxes: `is_box`, `unbox`, `rebox`, `rebox_axes`.
_ADAPTERS = {"flax.linen": ".linen_boxes", "flax.nnx": ".nnx_boxes", "haliax": ".haliax_boxes"}


def is_box(node: Any) -> bool:
    """Whether a node is a box around an array. An empty box, from `optax.masked` or from a filter that leaves None, is not."""
    adapter = _adapter(node)
    return adapter is not None and not isinstance(adapter.unbox(node), optax.MaskedNode | None)


def unbox(leaf: Any) -> Any:
    """The value inside a box. Any other leaf is returned as it is."""
    adapter = _adapter(leaf)
    return leaf if adapter is None else adapter.unbox(leaf)


def rebox(box: Any, value: Any) -> Any:
    """The same box around another value with the same axes. If `box` is not a box, the bare value."""
    adapter = _adapter(box)
    return value if adapter is None else adapter.rebox(box, value)


def rebox_axes(box: Any, value: jax.Array, axes: tuple[int, ...]) -> Any:
    """The box around a value that has only the axes `axes` of the boxed parameter. If `box` is not a box, the bare value."""
    adapter = _adapter(box)
    return value if adapter is None else adapter.rebox_axes(box, value, axes)


def resized(tree: Any, before: list[Any], after: list[Any]) -> Any:
    """The tree with changed sizes in modules that store the sizes of their arrays, where leaves `before` became `after`."""
    return _load(".haliax_boxes").resized(tree, before, after) if "haliax" in sys.modules else tree


def _adapter(node: Any) -> ModuleType | None:
    for library, name in _ADAPTERS.items():
        if library in sys.modules:
            adapter = _load(name)
            if adapter.is_box(node):
                return adapter
    return None


@functools.cache
def _load(name: str) -> ModuleType:
    return importlib.import_module(name, __package__)
