"""`Places`: which rows the devices of a mesh send each other for a batch, and where the rows are used."""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from ..._math.rows import flat_ids, take_rows
from .collectives import over_devices, to_owners


@functools.partial(jax.tree_util.register_dataclass, data_fields=["slots", "send"], meta_fields=["mesh", "spec"])
@dataclasses.dataclass(frozen=True)
class Places:
    """The places of an array of ids over a mesh, a leaf of `FetchedRows.places` for `lookup`.

    Attributes:
      slots: the shape and sharding of the ids, int32: the place of each id among the rows that its device receives.
      send: (devices, m) for each device, int32: the places of the rows that it sends to each device.
      mesh: the mesh.
      spec: the partition spec of the ids.
    """

    slots: jax.Array
    send: jax.Array
    mesh: Mesh
    spec: PartitionSpec


def is_places(node: Any) -> bool:
    """Whether a node of a tree is `Places`."""
    return isinstance(node, Places)


def received_rows(rows: jax.Array, places: Places) -> jax.Array:
    """The rows that each device needs, from the devices that have them. The gradient goes the same way back, and is added up."""

    def on_each(rows_NxF: jax.Array, send: jax.Array) -> jax.Array:
        sent = take_rows(rows_NxF, flat_ids(send, len(rows_NxF)), 0).reshape(*send.shape, *rows_NxF.shape[1:])
        received = to_owners(sent, places.mesh)
        return received.reshape(-1, *rows_NxF.shape[1:])

    return over_devices(places.mesh, on_each)(rows, places.send)


def rows_at(received: jax.Array, places: Places) -> jax.Array:
    """The rows of each id, `slots.shape + row shape`, split as the ids."""

    def on_each(received: jax.Array, slots: jax.Array) -> jax.Array:
        found = take_rows(received, flat_ids(slots, len(received)), 0)
        return found.reshape(*slots.shape, *received.shape[1:])

    split = PartitionSpec(places.mesh.axis_names)
    # A device that has the same ids as others gets its share of the cotangent, and the owner of a row adds up the shares.
    return over_devices(places.mesh, on_each, (split, places.spec), places.spec)(received, places.slots)
