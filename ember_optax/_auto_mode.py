"""Sorting, lookups and scatters by token ids under a mesh with explicit axes, where JAX asks for each result's sharding."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ._specs import spec_of


def in_auto_mode(function: Callable[..., Any], out_specs: Callable[[], Any], *arrays: Any) -> Any:
    """`function(*arrays)` with the mesh's explicit axes left to the compiler inside; its results have the specs `out_specs()`.

    Without explicit axes, which is nearly always, the call itself.
    """
    meshes = [mesh for leaf in jax.tree.leaves(arrays) if not (mesh := jax.typeof(leaf).sharding.mesh).empty]
    if not any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        return function(*arrays)
    shardings = jax.tree.map(functools.partial(NamedSharding, meshes[0]), out_specs(), is_leaf=_is_spec)
    return jax.sharding.auto_axes(function, out_sharding=shardings)(*arrays)


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)


def spec_entries(array: Any) -> tuple[Any, ...]:
    """One entry for each axis of an array: how its type says it is sharded."""
    spec = tuple(jax.typeof(array).sharding.spec)
    return spec + (None,) * (array.ndim - len(spec))


def spec_like(array: Any) -> PartitionSpec:
    """The spec of an array by its type."""
    return spec_of(spec_entries(array))
