"""How an array lies on a mesh, by its type: specs, explicit axes, and the varying axes of `jax.shard_map`."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def spec_of(entries: Iterable[Any]) -> PartitionSpec:
    """The spec with these entries, without trailing None: to the cache of `jax.jit`, P("fsdp", None) and P("fsdp") differ."""
    kept = list(entries)
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


def spec_entries(array: Any) -> tuple[Any, ...]:
    """One entry for each axis of an array: how its type says it is sharded."""
    spec = tuple(jax.typeof(array).sharding.spec)
    return spec + (None,) * (array.ndim - len(spec))


def spec_like(array: Any) -> PartitionSpec:
    """The spec of an array by its type."""
    return spec_of(spec_entries(array))


def spec_without(array: Any, axis: int) -> PartitionSpec:
    """The spec of an array like this one whose `axis` is not split: of a reduction over it that keeps the axis, say."""
    return spec_of(None if a == axis else entry for a, entry in enumerate(spec_entries(array)))


def named_sharding(array: Any) -> NamedSharding | None:
    """How an array lies on a mesh; None where there is none, and while tracing, where that is left to the compiler."""
    sharding = None if isinstance(array, Tracer) else getattr(array, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def in_auto_mode(function: Callable[..., Any], out_specs: Callable[[], Any], *arrays: Any) -> Any:
    """`function(*arrays)` with the mesh's explicit axes left to the compiler inside; its results have the specs `out_specs()`.

    For sorts, lookups and scatters by token ids, of which JAX asks for each result's sharding. Without explicit axes, which is
    nearly always, the call itself.
    """
    meshes = [mesh for leaf in jax.tree.leaves(arrays) if not (mesh := jax.typeof(leaf).sharding.mesh).empty]
    if not any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        return function(*arrays)
    shardings = jax.tree.map(functools.partial(NamedSharding, meshes[0]), out_specs(), is_leaf=is_spec)
    return jax.sharding.auto_axes(function, out_sharding=shardings)(*arrays)


def on_one_device(x: jax.Array) -> bool:
    """Whether the types say nothing of a mesh of several devices. (`jax.jit(in_shardings=...)` alone does not show in them.)"""
    meshes = (jax.typeof(x).sharding.mesh, jax.sharding.get_abstract_mesh())
    return all(mesh.empty or (mesh.size == 1 and mesh.are_all_axes_auto) for mesh in meshes)


def in_shard_map() -> bool:
    """Whether this is traced inside `jax.shard_map`, also where that does not check types and an array tells nothing of it."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def varying_axes(array: Any) -> frozenset[str]:
    """Mesh axes along which an array differs by its type; empty outside of `jax.shard_map`, or if that does not check types."""
    aval = jax.typeof(array)
    manual = getattr(aval, "manual_axis_type", None)  # `vma` in older versions
    return getattr(aval, "vma", frozenset()) if manual is None else manual.varying


def as_varying(array: jax.Array, mesh_axes: Iterable[str]) -> jax.Array:
    """The same values, typed as different along mesh axes, so that `lax.scan` can carry what will be."""
    names = tuple(sorted(mesh_axes))
    if not names:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, names, to="varying")
    return jax.lax.pvary(array, names)  # pyright: ignore[reportAttributeAccessIssue]


def mean_over(mesh_axes: tuple[str, ...], local: jax.Array) -> jax.Array:
    """The mean of equal parts over mesh axes, inside `jax.shard_map`; the array itself without mesh axes."""
    return jax.lax.pmean(local, mesh_axes) if mesh_axes else local


def all_over(mesh_axes: tuple[str, ...], local: jax.Array) -> jax.Array:
    """Whether all parts over mesh axes are true; the array itself without mesh axes."""
    return jax.lax.pmin(local.astype(jnp.int32), mesh_axes) > 0 if mesh_axes else local


def is_spec(node: Any) -> bool:
    """Whether a node of a tree is a partition spec."""
    return isinstance(node, PartitionSpec)


def entry_names(entry: Any) -> tuple[str, ...]:
    """The mesh axes that one entry of a spec names."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return tuple(entry) if isinstance(entry, tuple | list) else (entry,)
