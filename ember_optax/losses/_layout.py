"""How a head is split by tokens over a mesh: what the types of the arrays show, and what the caller says."""

import math
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from .._math.mesh import entry_names, named_sharding, spec_entries, spec_of, varying_axes
from .._math.parts import Layout
from .._optimizer.checks import mesh_names


def layout_of(
    hidden: jax.Array, table: jax.Array, labels: jax.Array, token_axis: int, token_mesh_axes: Any, batch_mesh_axes: Any
) -> Layout | None:
    """The layout of a head that is split by tokens, or None for one that is not.

    Raises:
      TypeError: mesh axes are not names.
      ValueError: a mesh axis does not exist, or does not split what it is said to split.
    """
    given = None if token_mesh_axes is None else mesh_names(token_mesh_axes, "token_mesh_axes")
    batch = None if batch_mesh_axes is None else mesh_names(batch_mesh_axes, "batch_mesh_axes")
    mesh = _mesh_of(hidden, table)
    types = {} if mesh is None else dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    names = _visible(table, token_axis, types) if given is None else given
    if not names:
        return None
    if unknown := [name for name in names + (batch or ()) if name not in types]:
        raise ValueError(
            f"token_mesh_axes or batch_mesh_axes name {unknown}, but the mesh has the axes {list(types)}: name its axes, and "
            f"call the loss inside jax.set_mesh(mesh), or with arrays that are sharded over the mesh."
        )
    if twice := set(names) & set(batch or ()):
        raise ValueError(
            f"{sorted(twice)} are in token_mesh_axes and in batch_mesh_axes: one mesh axis splits either the vocabulary of the "
            f"table or the hidden states."
        )
    if AxisType.Manual in types.values():
        _check_manual(hidden, table, labels, names, batch, types)
        return Layout(names, mesh=mesh, is_manual=True)
    _check_table(table, token_axis, names, types, mesh)
    if AxisType.Explicit in types.values():
        # Hidden states that are split over the axes of the vocabulary too are gathered over these.
        return Layout(names, spec_of(_without(entry, names) for entry in spec_entries(hidden)[:-1]), mesh)
    if batch is None:
        batch = tuple(name for name, kind in types.items() if kind == AxisType.Auto and name not in names)
    return Layout(names, PartitionSpec(_dividing(batch, mesh, math.prod(hidden.shape[:-1])) or None), mesh)


def _mesh_of(*arrays: Any) -> Any:
    """The mesh of the context, or of the arrays. None if there is no mesh."""
    context = jax.sharding.get_abstract_mesh()
    shardings = [sharding for array in arrays if (sharding := named_sharding(array)) is not None]
    meshes = [context, *(sharding.mesh for sharding in shardings), *(jax.typeof(array).sharding.mesh for array in arrays)]
    return next((mesh for mesh in meshes if not mesh.empty), None)


def _visible(table: jax.Array, token_axis: int, types: dict[str, AxisType]) -> tuple[str, ...]:
    """The mesh axes that split the vocabulary, by the type of the table or the sharding of an array that is not traced."""
    sharding = named_sharding(table)
    spec = spec_entries(table) if sharding is None else (*sharding.spec, *(None,) * table.ndim)
    names = entry_names(spec[token_axis])
    return tuple(name for name in names if types.get(name) in (AxisType.Auto, AxisType.Explicit))


def _without(entry: Any, names: tuple[str, ...]) -> Any:
    return tuple(name for name in entry_names(entry) if name not in names) or None


def _dividing(names: tuple[str, ...], mesh: Any, tokens: int) -> tuple[str, ...]:
    """The mesh axes, from the first on, that divide the number of hidden states."""
    found = ()
    for name in names:
        if tokens % (math.prod(mesh.shape[one] for one in found) * mesh.shape[name]) == 0:
            found += (name,)
    return found


def _check_manual(hidden: Any, table: Any, labels: Any, names: Any, batch: Any, types: dict[str, AxisType]) -> None:
    """Raises if the axes cannot be those of the caller's `jax.shard_map`."""
    if batch:
        raise ValueError(
            f"batch_mesh_axes names {list(batch)} inside of jax.shard_map, where hidden states are parts already: leave it out."
        )
    if automatic := [name for name in names if types[name] != AxisType.Manual]:
        raise ValueError(
            f"token_mesh_axes names {list(names)}, but {automatic} are not axes of the jax.shard_map around the loss: name them "
            f"in its axis_names, and split the table over them in its in_specs."
        )
    if not varying_axes(jax.lax.axis_index(names)):  # with check_vma=False types show nothing
        return
    if whole := [name for name in names if name not in varying_axes(table)]:
        raise ValueError(
            f"token_mesh_axes names {whole}, along which the table is the same on all devices: split the table over them in "
            f"in_specs, or leave them out."
        )
    for what, array in (("hidden states", hidden), ("labels", labels)):
        if split := [name for name in names if name in varying_axes(array)]:
            raise ValueError(
                f"{what} differ along {split}, which token_mesh_axes says to split the vocabulary: along these axes all devices "
                f"need the same {what}. Split them over other axes, or gather them with jax.lax.all_gather(..., to='invarying')."
            )
    of_hidden, of_labels = varying_axes(hidden), varying_axes(labels)
    if of_hidden - of_labels and of_labels - of_hidden:
        raise ValueError(
            f"hidden states are split over {sorted(of_hidden)}, but labels over {sorted(of_labels)}: give both the same axes in "
            f"in_specs, or labels of other hidden states are used."
        )


def _check_table(table: Any, token_axis: int, names: tuple[str, ...], types: dict[str, AxisType], mesh: Any) -> None:
    """Raises if the axes do not split the vocabulary of the table."""
    by_type = entry_names(spec_entries(table)[token_axis])
    if AxisType.Explicit in types.values() and by_type != names:
        raise ValueError(
            f"token_mesh_axes names {list(names)}, but by its type the vocabulary of the table is split over {list(by_type)}: "
            f"leave token_mesh_axes out, or shard the table over them with jax.reshard."
        )
    devices = math.prod(mesh.shape[name] for name in names)
    if table.shape[token_axis] % devices:
        raise ValueError(
            f"token_mesh_axes names {list(names)}, which are {devices} devices, but the table of shape {table.shape} has "
            f"{table.shape[token_axis]} tokens: pad it to {-(-table.shape[token_axis] // devices) * devices} rows, and pass "
            f"num_tokens={table.shape[token_axis]}."
        )
