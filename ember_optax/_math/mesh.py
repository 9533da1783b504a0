"""How an array is sharded over a mesh, according to its type: specs, explicit axes, and the varying axes of `jax.shard_map`."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import AbstractValue, Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def spec_of(entries: Iterable[Any]) -> PartitionSpec:
    """The spec with these entries, without trailing None. `jax.jit` caches P("fsdp", None) and P("fsdp") separately."""
    kept = list(entries)
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


def spec_entries(array: Any) -> tuple[Any, ...]:
    """The entries of an array's spec according to its type, one for each axis."""
    spec = tuple(jax.typeof(array).sharding.spec)
    return spec + (None,) * (array.ndim - len(spec))


def spec_like(array: Any) -> PartitionSpec:
    """The spec of an array according to its type."""
    return spec_of(spec_entries(array))


def spec_without(array: Any, axis: int) -> PartitionSpec:
    """The spec of an array without the sharding of `axis`, for example of a reduction over this axis that keeps it."""
    return spec_of(None if a == axis else entry for a, entry in enumerate(spec_entries(array)))


def named_sharding(array: Any) -> NamedSharding | None:
    """The `NamedSharding` of an array. None if it has another sharding, and while tracing, where the compiler decides."""
    sharding = None if isinstance(array, Tracer) else getattr(array, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def in_auto_mode(function: Callable[..., Any], out_specs: Callable[[], Any], *arrays: Any) -> Any:
    """`function(*arrays)` with the mesh's explicit axes automatic inside it. The results have the specs `out_specs()`.

    On explicit axes, JAX wants the sharding of each result of a sort, lookup or scatter by token ids. Without explicit axes,
    which is the usual case, this is the plain call.
    """
    meshes = [mesh for leaf in jax.tree.leaves(arrays) if not (mesh := jax.typeof(leaf).sharding.mesh).empty]
    if not any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        return function(*arrays)
    shardings = jax.tree.map(functools.partial(NamedSharding, meshes[0]), out_specs(), is_leaf=is_spec)
    explicit = axes_of_type(meshes[0], AxisType.Explicit)  # the axes of a `jax.shard_map` around this cannot be made automatic
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=shardings)(*arrays)


def axes_of_type(mesh: Any, kind: AxisType) -> tuple[str, ...]:
    """The axes of a mesh that are of one type, in their order."""
    return tuple(name for name, of in zip(mesh.axis_names, mesh.axis_types, strict=True) if of == kind)


def on_one_device(x: jax.Array) -> bool:
    """Whether no type or context names a mesh of several devices. (They do not show `jax.jit(in_shardings=...)` alone.)"""
    meshes = (jax.typeof(x).sharding.mesh, jax.sharding.get_abstract_mesh())
    return all(mesh.empty or (mesh.size == 1 and mesh.are_all_axes_auto) for mesh in meshes)


def in_shard_map() -> bool:
    """Whether this is traced inside `jax.shard_map`, also with `check_vma=False`, where the types of arrays do not show it."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def varying_axes(array: Any) -> frozenset[str]:
    """The mesh axes over which an array or a type varies. Empty outside `jax.shard_map` and with `check_vma=False`."""
    aval = array if isinstance(array, AbstractValue) else jax.typeof(array)
    manual = getattr(aval, "manual_axis_type", None)  # `vma` in older versions
    return getattr(aval, "vma", frozenset()) if manual is None else manual.varying


def as_varying(array: jax.Array, mesh_axes: Iterable[str]) -> jax.Array:
    """The same values, typed as varying over mesh axes, so that `lax.scan` can carry values that will vary."""
    names = tuple(sorted(mesh_axes))
    if not names:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, names, to="varying")
    return jax.lax.pvary(array, names)  # pyright: ignore[reportAttributeAccessIssue]


def varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """The same values, each typed as varying over all mesh axes over which one of them varies."""
    axes = frozenset().union(*map(varying_axes, arrays))
    return [as_varying(array, axes - varying_axes(array)) for array in arrays]


def gathered_over(mesh_axes: tuple[str, ...], part: jax.Array, axis: int) -> jax.Array:
    """The parts of all devices along mesh axes, one after the other. By its type the result is the same on all of them."""
    if hasattr(jax.lax, "all_gather_invariant"):  # before jax 0.8.2
        return jax.lax.all_gather_invariant(part, mesh_axes, axis=axis, tiled=True)  # pyright: ignore[reportAttributeAccessIssue]
    return jax.lax.all_gather(part, mesh_axes, axis=axis, tiled=True, to="invarying")


def mean_over(mesh_axes: tuple[str, ...], local: jax.Array) -> jax.Array:
    """The mean over mesh axes inside `jax.shard_map`, for shards of equal size. The array itself without mesh axes."""
    return jax.lax.pmean(local, mesh_axes) if mesh_axes else local


def all_over(mesh_axes: tuple[str, ...], local: jax.Array) -> jax.Array:
    """Whether a flag is true on all devices along mesh axes. The array itself without mesh axes."""
    return jax.lax.pmin(local.astype(jnp.int32), mesh_axes) > 0 if mesh_axes else local


def is_spec(node: Any) -> bool:
    """Whether a node of a tree is a partition spec."""
    return isinstance(node, PartitionSpec)


def entry_names(entry: Any) -> tuple[str, ...]:
    """The mesh axes that one entry of a spec names."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return tuple(entry) if isinstance(entry, tuple | list) else (entry,)
