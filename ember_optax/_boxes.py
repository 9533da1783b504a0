"""Boxes: what some libraries put around a parameter to say how it is sharded.

Flax Linen's `Partitioned` and NNX's `Variable` are pytree nodes that carry one axis name for each axis of the array inside.
A state vector has fewer axes than its parameter, so its box must carry fewer names; with the parameter's own box around it
`nn.get_partition_spec` and `jax.jit(out_shardings=...)` fail. A library is asked only if it is loaded already.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import jax
import optax

_INTEGRATIONS = {"flax.linen": "ember_optax.integrations.linen", "flax.nnx": "ember_optax.integrations.nnx"}


def is_box(node: Any) -> bool:
    """Whether a node is a box around an array. A box emptied by `optax.masked` is none: there is no parameter in it."""
    integration = _integration(node)
    return integration is not None and not isinstance(integration.unbox(node), optax.MaskedNode)


def unbox(leaf: Any) -> Any:
    """What is inside a box; any other leaf as it is."""
    integration = _integration(leaf)
    return leaf if integration is None else integration.unbox(leaf)


def rebox(box: Any, value: Any) -> Any:
    """The same box around another value of the same axes; the bare value where `box` is no box."""
    integration = _integration(box)
    return value if integration is None else integration.rebox(box, value)


def rebox_axes(box: Any, value: jax.Array, axes: tuple[int, ...]) -> Any:
    """The box around a value that has only some axes of the boxed parameter; the bare value where `box` is no box."""
    integration = _integration(box)
    return value if integration is None else integration.rebox_axes(box, value, axes)


def _integration(node: Any) -> ModuleType | None:
    for library, name in _INTEGRATIONS.items():
        if library in sys.modules:
            integration = sys.modules.get(name) or importlib.import_module(name)
            if integration.is_box(node):
                return integration
    return None
