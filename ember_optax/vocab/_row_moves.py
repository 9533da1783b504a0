"""Rows of a table moved to other positions of a new table, also if the rows are sharded over devices."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .._math.mean_square import compute_dtype
from .._math.mesh import entry_names, in_auto_mode, named_sharding, spec_like, spec_without


def moved_rows(array: jax.Array, ids_W: np.ndarray, axis: int) -> jax.Array:
    """An array whose row i along `axis` is the row `ids_W[i]` of the given array, bit for bit. Rows with the id -1 are zeros.

    The result has the sharding of the given array. If the rows are sharded, every shard visits every device once, and each device
    picks its own rows from it. No device holds more than a few shards at a time: three in addition to its own shard and its
    result, according to the compiler for eight TPU v5e.

    Args:
      array: (..., V, ...).
      ids_W: (W,) of int32, -1 or in [0, V).
      axis: the axis of the rows.

    Returns:
      (..., W, ...), of the given array's dtype.
    """
    ids_W = np.asarray(ids_W, np.int32)
    if (sharding := named_sharding(array)) is None:
        return _take_rows(array, ids_W, axis)
    names = entry_names(sharding.spec[axis]) if axis < len(sharding.spec) else ()
    return _move_sharded_rows(
        array, jax.device_put(ids_W, NamedSharding(sharding.mesh, PartitionSpec(names or None))), axis, names, sharding
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _move_sharded_rows(
    array: jax.Array, ids_W: jax.Array, axis: int, names: tuple[str, ...], sharding: NamedSharding
) -> jax.Array:
    if names:
        take = functools.partial(_take_from_passing_shards, axis=axis, mesh_axes=names, devices=sharding.mesh)
        specs = sharding.spec, PartitionSpec(names)
        return jax.shard_map(take, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False)(array, ids_W)
    moved = in_auto_mode(functools.partial(_take_rows, axis=axis), lambda: spec_like(array), array, ids_W)
    return jax.lax.with_sharding_constraint(moved, sharding) if sharding.mesh.are_all_axes_auto else moved


def _take_rows(array: jax.Array, ids_W: Any, axis: int) -> jax.Array:
    size = array.shape[axis]
    return jnp.take(array, jnp.where(ids_W < 0, size, ids_W), axis, mode="fill", fill_value=0)


def _take_from_passing_shards(
    part: jax.Array, ids: jax.Array, *, axis: int, mesh_axes: tuple[str, ...], devices: Any
) -> jax.Array:
    """On each device, the rows `ids` of the whole array, picked from the shards that visit the device one after the other."""
    count = math.prod(devices.shape[name] for name in mesh_axes)
    size = part.shape[axis]
    onward = [(i, (i - 1) % count) for i in range(count)]
    like_rows = _shape_of_rows(part, axis)

    def pick(_, carry):
        visiting, owner, found = carry
        local = jnp.where(ids < 0, -1, ids - owner * size)
        here = (local >= 0) & (local < size)
        rows = _take_rows(visiting, jnp.where(here, local, -1), axis)
        # The owner's index travels with its shard, so that the order in which JAX counts several mesh axes does not matter.
        visiting, owner = jax.lax.ppermute((visiting, owner), mesh_axes, onward)
        return visiting, owner, jnp.where(here.reshape(like_rows), rows, found)

    empty = jnp.zeros((*part.shape[:axis], ids.size, *part.shape[axis + 1 :]), part.dtype)
    return jax.lax.fori_loop(0, count, pick, (part, jax.lax.axis_index(mesh_axes), empty))[2]


def filled_rows(array: jax.Array, rows: jax.Array, is_new_W: np.ndarray, axis: int) -> jax.Array:
    """The array with other rows at the new positions.

    Args:
      array: (..., W, ...).
      rows: one row for each new position, in their order; or one row for all of them; or W rows, which are used at the new
        positions only.
      is_new_W: (W,) of bool, True at the new positions.
      axis: the axis of the rows.
    """
    is_new = is_new_W.reshape(_shape_of_rows(array, axis))
    places_W = np.cumsum(is_new_W) - 1 if rows.shape[axis] == is_new_W.sum() else None

    def fill(array: jax.Array, rows: jax.Array) -> jax.Array:
        if places_W is not None:
            rows = jnp.take(rows, np.maximum(places_W, 0), axis)
        return jnp.where(is_new, rows.astype(array.dtype), array)

    return _sharded_like(array, fill, array, rows)


def mean_row(array: jax.Array, axis: int) -> jax.Array:
    """The mean of the rows in float32 (or float64). The axis is kept with length one."""
    mean = functools.partial(jnp.mean, axis=axis, keepdims=True, dtype=compute_dtype(array))
    return in_auto_mode(mean, lambda: spec_without(array, axis), array)


def mean_of_rows(array: jax.Array, ids_WxP: np.ndarray, axis: int, without: jax.Array) -> jax.Array:
    """An array whose row i is the mean of the rows `ids_WxP[i]`, in float32 (or float64).

    Ids of -1 are ignored. A row without any other id is `without`, which is a single row.
    """
    wide = array.astype(compute_dtype(array))
    counts = (ids_WxP >= 0).sum(1).reshape(_shape_of_rows(array, axis))
    total = functools.reduce(jnp.add, (moved_rows(wide, ids_W, axis) for ids_W in ids_WxP.T))

    def mean(total: jax.Array, without: jax.Array) -> jax.Array:
        return jnp.where(counts > 0, total / jnp.maximum(counts, 1).astype(total.dtype), without)

    return _sharded_like(total, mean, total, without)


def _sharded_like(array: jax.Array, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`function(*arrays)` with the sharding of `array`, which has the result's shape, on automatic and explicit axes alike."""
    sharding = named_sharding(array)
    in_auto = functools.partial(in_auto_mode, function, lambda: spec_like(array))
    if sharding is not None and sharding.mesh.are_all_axes_auto:
        return jax.jit(in_auto, out_shardings=sharding)(*arrays)
    return in_auto(*arrays)


def _shape_of_rows(array: jax.Array, axis: int) -> tuple[int, ...]:
    """The shape that broadcasts a vector of one number for each row over the array."""
    return tuple(-1 if a == axis else 1 for a in range(array.ndim))
