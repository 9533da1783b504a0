"""Shards the optimizer state like its parameters, for any Optax transformation."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from .._math.mesh import entry_names, is_spec, spec_of
from .._tree.find_states import is_ember
from .._tree.hyperparameters import checked_flag
from .._tree.inputs import shown
from .._tree.paths import path_name
from .origins import AxisOrigin, axis_origins, check_tx_and_params

_PADDED_MULTIPLE = 256


def state_partition_specs(
    tx: optax.GradientTransformation, params: Any, param_specs: Any, *, replicate_ember: bool = False
) -> Any:
    """Partition specs for the whole state of an Optax transformation that may contain Ember anywhere.

    Each axis of a state array gets the spec entry of the parameter axis that it comes from. `nu_token` gets that of the token
    axis, `nu_feature` those of the feature axes, and moments of a body all entries of their parameter. Everything else is
    replicated. Ember's `init` shows the axes of its vectors. For other states, an abstract `init` shows them, in which every axis
    of every parameter has a distinct size. So chains, partitions, masks, `inject_hyperparams`, `MultiSteps`, factored bodies and
    square tables need nothing special.

    Args:
      tx: the transformation whose `init` makes the state.
      params: the parameters, as arrays or `jax.ShapeDtypeStruct`. Nothing is allocated.
      param_specs: a tree of the parameters' structure, or a prefix of it, with `PartitionSpec` leaves.
      replicate_ember: whether to replicate Ember's vectors, as its authors do. They are small, but a sharded table then gathers
        them.

    Returns:
      A tree of the structure of `tx.init(params)` with `PartitionSpec` leaves.

    Raises:
      TypeError: `tx` is not a transformation, `params` are not arrays, or a leaf of `param_specs` is not a `PartitionSpec`.
      ValueError: a spec is longer than its parameter's rank, the structures do not match, or a spec names an axis that the mesh
        of `jax.set_mesh` does not have.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from jax.sharding import PartitionSpec as P
      >>> from ember_optax import ember, state_partition_specs
      >>> params = {"embed": jax.ShapeDtypeStruct((1024, 64), jnp.float32), "mlp": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
      >>> specs = state_partition_specs(ember(1e-2, optax.adamw(1e-3)), params, {"embed": P("fsdp", "tp"), "mlp": P(None, "tp")})
      >>> state = optax.tree.get(specs, "ScaleByEmberState")
      >>> tuple(state.nu_token["embed"]), tuple(state.nu_feature["embed"]), tuple(state.count["embed"])
      (('fsdp',), ('tp',), ())

    References:
      docs/sharding.md
    """
    check_tx_and_params(tx, params)
    replicate_ember = checked_flag(replicate_ember, "replicate_ember")
    specs = _broadcast(param_specs, params, "param_specs")
    _check_specs(params, specs)
    _check_names(params, specs)
    return _state_specs(tx, params, specs, replicate_ember)


def state_shardings(tx: optax.GradientTransformation, params: Any, param_shardings: Any, *, replicate_ember: bool = False) -> Any:
    """Shardings for the whole state of an Optax transformation, for `jax.jit(tx.init, out_shardings=...)`.

    Without them, on a mesh with automatic axes, `init` returns a replicated state and the first step a sharded state. Then the
    second step compiles again.

    Args:
      tx: the transformation whose `init` makes the state.
      params: the parameters, as arrays or `jax.ShapeDtypeStruct`.
      param_shardings: a tree of the parameters' structure, or a prefix of it, with `NamedSharding` leaves of one mesh.
      replicate_ember: as for `state_partition_specs`.

    Returns:
      A tree of the structure of `tx.init(params)` with `NamedSharding` leaves.

    Raises:
      TypeError: a leaf of `param_shardings` is not a `NamedSharding`, or as for `state_partition_specs`.
      ValueError: two leaves have different meshes, the size of an axis does not divide by its devices (the message has the size
        to pad to), or as for `state_partition_specs`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> from ember_optax import ember, state_shardings
      >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> sharding = NamedSharding(mesh, P("fsdp"))
      >>> params = jax.device_put({"embed": jnp.ones((1024, 64))}, sharding)
      >>> tx = ember(1e-2, optax.adamw(1e-3))
      >>> shardings = state_shardings(tx, params, sharding)
      >>> opt_state = jax.jit(tx.init, out_shardings=shardings)(params)

    References:
      docs/sharding.md
    """
    check_tx_and_params(tx, params)
    replicate_ember = checked_flag(replicate_ember, "replicate_ember")
    shardings = _broadcast(param_shardings, params, "param_shardings")
    for name, sharding in zip(_names(params), shardings, strict=True):
        if not isinstance(sharding, NamedSharding):
            raise TypeError(
                f"the sharding of {name!r} must be a NamedSharding, got {shown(sharding)}; "
                f"write NamedSharding(mesh, PartitionSpec(...))."
            )
    meshes = {sharding.mesh for sharding in shardings}
    if len(meshes) != 1:
        raise ValueError(f"param_shardings name {len(meshes)} different meshes: {meshes}; put all parameters on one.")
    check_divisible(zip(_names(params), map(np.shape, jax.tree.leaves(params)), shardings, strict=True))
    specs = [sharding.spec for sharding in shardings]
    _check_specs(params, specs)
    (mesh,) = meshes
    state_specs = _state_specs(tx, params, specs, replicate_ember)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs, is_leaf=is_spec)


def _state_specs(tx: optax.GradientTransformation, params: Any, specs: list[PartitionSpec], replicate_ember: bool) -> Any:
    origins = axis_origins(tx, params)

    def entry(origin: AxisOrigin | None) -> Any:
        if origin is None or origin.axis >= len(specs[origin.parameter]):
            return None
        return specs[origin.parameter][origin.axis]

    state_specs = jax.tree.map(lambda leaf: spec_of(_without_repeated_mesh_axes(map(entry, leaf.axes))), origins)
    if not replicate_ember:
        return state_specs

    def replicated(node: Any) -> Any:
        return jax.tree.map(lambda _: PartitionSpec(), node, is_leaf=is_spec) if is_ember(node) else node

    return jax.tree.map(replicated, state_specs, is_leaf=lambda node: is_ember(node) or is_spec(node))


def _without_repeated_mesh_axes(entries: Iterable[Any]) -> Iterator[Any]:
    """Yields the entries, with None instead of one whose mesh axes were used before. A Shampoo statistic has one axis twice."""
    taken: set[str] = set()
    for entry in entries:
        yield None if taken & set(entry_names(entry)) else entry
        taken |= set(entry_names(entry))


def _check_specs(params: Any, specs: list[Any]) -> None:
    for name, leaf, spec in zip(_names(params), jax.tree.leaves(params), specs, strict=True):
        if not is_spec(spec):
            raise TypeError(f"the spec of {name!r} must be a PartitionSpec, got {shown(spec)}; write PartitionSpec(...).")
        if len(spec) > np.ndim(leaf):
            raise ValueError(
                f"the spec {spec} of {name!r} has {len(spec)} entries, but its shape {np.shape(leaf)} has {np.ndim(leaf)} axes; "
                f"name at most one entry for each axis."
            )
        mesh_axes = [mesh_axis for entry in spec for mesh_axis in entry_names(entry)]
        if not all(isinstance(mesh_axis, str) for mesh_axis in mesh_axes):
            raise TypeError(
                f"the spec {spec} of {name!r} must hold names of mesh axes and None, got {mesh_axes}; write their names."
            )
        if len(set(mesh_axes)) < len(mesh_axes):
            raise ValueError(f"the spec {spec} of {name!r} names a mesh axis twice; it can split one axis of the array only.")


def _check_names(params: Any, specs: list[PartitionSpec]) -> None:
    """Raises if a spec names an axis that the mesh of `jax.set_mesh` does not have."""
    mesh = jax.sharding.get_abstract_mesh()
    for name, spec in zip(_names(params), specs, strict=True):
        for mesh_axis in itertools.chain.from_iterable(map(entry_names, spec)):
            if not mesh.empty and mesh_axis not in mesh.axis_names:
                raise ValueError(
                    f"the spec {spec} of {name!r} names the mesh axis {mesh_axis!r}, but the mesh in use has the axes "
                    f"{mesh.axis_names}; name one of them, or set the mesh that these specs are for with jax.set_mesh."
                )


def check_divisible(arrays: Iterable[tuple[str, tuple[int, ...], NamedSharding]], fix: str = "Pad it with zeros") -> None:
    """Raises if an axis of an array does not divide by the devices of its sharding.

    `arrays` has a name, a shape and a sharding for each array. `fix` says how to change the size of an axis, and the message
    continues with the size.
    """
    for name, shape, sharding in arrays:
        for axis, (size, entry) in enumerate(zip(shape, sharding.spec, strict=False)):
            names = entry_names(entry)
            devices = math.prod(sharding.mesh.shape[mesh_axis] for mesh_axis in names)
            if size % devices:
                multiple = math.lcm(_PADDED_MULTIPLE, devices)
                padded = -(-size // multiple) * multiple
                raise ValueError(
                    f"axis {axis} of {name!r}, of size {size}, does not divide by the {devices} devices of mesh axes {names}. "
                    f"{fix} to {padded}, a multiple of {multiple}: rows without gradient change nothing in Ember, "
                    f"and a size that does not depend on the number of devices lets a checkpoint move."
                )


def _broadcast(prefix: Any, params: Any, argument: str) -> list[Any]:
    """The leaf of a prefix tree for each parameter, in the order of `jax.tree.leaves`."""

    def is_leaf(node: Any) -> bool:
        return isinstance(node, PartitionSpec | jax.sharding.Sharding)

    try:
        spread = jax.tree.map(lambda leaf, part: [leaf] * len(jax.tree.leaves(part)), prefix, params, is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(
            f"{argument}, {shown(prefix)}, do not have the structure of the parameters {_names(params)}: give each one a leaf, "
            f"or a prefix of the tree (replicated is PartitionSpec(), not None): {error}"
        ) from None
    return [leaf for leaves in jax.tree.leaves(spread, is_leaf=lambda x: isinstance(x, list)) for leaf in leaves]


def _names(params: Any) -> list[str]:
    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
