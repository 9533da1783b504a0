"""What processes tell each other outside of the train step, as jitted programs over all devices of a mesh.

Every process calls them in the same order, and from its main thread: JAX would not order those of two threads.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec


def over_devices(mesh: Mesh | None, function: Callable[..., Any], in_specs: Any = None, out_specs: Any = None) -> Any:
    """`function` on the part of each device, by default of arrays whose first axis is split; without a mesh, the function.

    JAX cannot infer which results are equal on all devices, so `check_vma` is off.
    """
    if mesh is None:
        return function
    split = PartitionSpec(mesh.axis_names)
    in_specs, out_specs = (split if specs is None else specs for specs in (in_specs, out_specs))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def to_owners(parts: jax.Array, mesh: Mesh) -> jax.Array:
    """An all-to-all inside `over_devices`: entry d of this device becomes entry (this device) of device d."""
    return jax.lax.all_to_all(parts, mesh.axis_names, 0, 0, tiled=True)


@functools.partial(jax.jit, static_argnames="mesh")
def gathered(rows: jax.Array, mesh: Mesh) -> jax.Array:
    """All rows on all devices."""
    gather = functools.partial(jax.lax.all_gather, axis_name=mesh.axis_names, tiled=True)
    return over_devices(mesh, gather, out_specs=PartitionSpec())(rows)


@functools.partial(jax.jit, static_argnames="mesh")
def exchanged(ids: jax.Array, mesh: Mesh) -> jax.Array:
    """The ids that others want from each device; (devices, m) for each device, before and after."""
    return over_devices(mesh, functools.partial(to_owners, mesh=mesh))(ids)
