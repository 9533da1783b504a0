"""The layout over a mesh: rows are split by id over the processes, and within a process over its devices."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..._tree.inputs import shown
from .batch_ids import BatchIds, distinct_ids, leaves_of, padded_size
from .collectives import exchanged, gathered
from .places import Places

# Places for the rows that one device sends to another. There are as many as pairs of devices, so the fewest are few.
_FEWEST_SENT = 8


class _OfDevice(NamedTuple):
    """What one device of this process reads: distinct ids by owner, and for each place of the batch one of these or padding."""

    ids: np.ndarray
    owners: np.ndarray
    counts: np.ndarray  # (devices,)
    places: np.ndarray


class Requests(NamedTuple):
    """What the devices of this process read. `leaves` are the ids, and `treedef` is their structure."""

    leaves: list[Any]
    treedef: Any
    of_device: list[_OfDevice]


class OverMesh:
    """Process `id % parts` has the row `id`. Rows, ids and gradients travel by all-to-all between devices.

    The row number `i` of a process is on the device `i % devices_here` of the process. The files of a process do not depend on
    its devices.
    """

    def __init__(self, mesh: Any):
        if not isinstance(mesh, Mesh):
            raise TypeError(f"mesh must be a jax.sharding.Mesh, got {shown(mesh)}; pass jax.make_mesh(...), or leave it out.")
        devices = list(mesh.devices.flat)
        self.mesh: Mesh = mesh
        self.part, self.parts = jax.process_index(), jax.process_count()
        of_process = [[n for n, d in enumerate(devices) if d.process_index == p] for p in range(self.parts)]
        if len({len(numbers) for numbers in of_process}) > 1:
            counts = [len(numbers) for numbers in of_process]
            raise ValueError(f"mesh has {counts} devices of the processes, but needs as many of each: make it of jax.devices().")
        self._number, self._here = np.array(of_process), [devices[n] for n in of_process[self.part]]
        self.devices_here, self._num_devices = len(self._here), len(devices)
        self._split, self._whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec(mesh.axis_names), PartitionSpec()))

    def requests(self, ids: Any, num_rows: int) -> Requests:
        """What the devices of this process read, without communication."""
        leaves, treedef = leaves_of(ids)
        for leaf in leaves:
            self._check(leaf)
        parts = [{shard.device: np.asarray(shard.data) for shard in leaf.addressable_shards} for leaf in leaves]
        found = [self._of_device([part[device] for part in parts], num_rows) for device in self._here]
        return Requests(leaves, treedef, found)

    def _check(self, leaf: Any) -> None:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            where = shown(leaf) if sharding is None else f"an array with {sharding}"
            raise ValueError(
                f"ids must be arrays over the table's mesh, got {where}: pass jax.make_array_from_process_local_data("
                f"NamedSharding(mesh, PartitionSpec({self.mesh.axis_names[0]!r})), ids) of the ids of this process."
            )
        if sharding.mesh != self.mesh:
            raise ValueError(f"ids are over the mesh {sharding.mesh}, but the table is over {self.mesh}: use one mesh for both.")

    def _of_device(self, arrays: list[np.ndarray], num_rows: int) -> _OfDevice:
        distinct, places = distinct_ids(arrays, num_rows)
        owners = self._number[distinct % self.parts, distinct // self.parts % self.devices_here]
        order = np.argsort(owners, kind="stable")
        of_sorted = np.empty(len(order) + 1, np.int64)
        of_sorted[order], of_sorted[-1] = np.arange(len(order)), len(order)
        counts = np.bincount(owners, minlength=self._num_devices)
        return _OfDevice(distinct[order], owners[order], counts, of_sorted[places])

    def agreed(self, requests: Any, steps: int, num_rows: int) -> Any:
        """The rows that all devices read, after the exchange of ids. None if no process has a batch."""
        idle = [np.zeros(self._num_devices, np.int64)] * self.devices_here
        counts = [found.counts for found in requests.of_device] if requests else idle
        told = self._gather(np.array([[*of_device, requests is not None, steps] for of_device in counts], np.int32))
        self._check_told(told)
        if requests is None:
            return None
        most = padded_size(int(told[:, : self._num_devices].max()), _FEWEST_SENT)
        sent = np.full((self.devices_here, self._num_devices, most), num_rows, np.uint32)
        slots = []
        for part, (ids, owners, _, places) in zip(sent, requests.of_device, strict=True):
            # The ids of one owner are neighbours, and at most `most`. So their places among those of the owner are distinct.
            among = np.arange(len(ids)) % most
            part[owners, among] = ids
            slots.append(np.append(owners * most + among, self._num_devices * most)[places].astype(np.int32))
        wanted = self.read(exchanged(self.put(sent.reshape(-1, most)), self.mesh)).reshape(sent.shape).astype(np.int64)
        distinct = [distinct_ids([of_device], num_rows)[0] for of_device in wanted]
        size = padded_size(self.largest(max(map(len, distinct))))
        send = [np.where(w < num_rows, np.searchsorted(d, w), size) for w, d in zip(wanted, distinct, strict=True)]
        return BatchIds(distinct, self._places(requests, slots, self.put(np.concatenate(send).astype(np.int32))), size)

    def _check_told(self, told: np.ndarray) -> None:
        has_batch, steps = told[:, -2], told[:, -1]
        if len(set(steps)) > 1:
            raise ValueError(f"processes are at different steps, {sorted(set(steps.tolist()))}: write each step in all of them.")
        if len(set(has_batch)) > 1:
            without = sorted({d.process_index for d, has in zip(self.mesh.devices.flat, has_batch, strict=True) if not has})
            raise ValueError(
                f"batches end in process {without[0]}, and others have more: give every process as many. An empty batch has ids "
                f"of -1."
            )

    def _places(self, requests: Requests, slots: list[np.ndarray], send: jax.Array) -> Any:
        """The places in the structure of the ids, each with the sharding of its ids."""
        made = []
        for number, leaf in enumerate(requests.leaves):
            shape = leaf.sharding.shard_shape(leaf.shape)
            starts = sum(int(np.prod(before.sharding.shard_shape(before.shape))) for before in requests.leaves[:number])
            parts = [of_device[starts : starts + int(np.prod(shape))].reshape(shape) for of_device in slots]
            array = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, jax.device_put(parts, self._here))
            made.append(Places(array, send, self.mesh, leaf.sharding.spec))
        return jax.tree.unflatten(requests.treedef, made)

    def rows_here(self, num_rows: int) -> int:
        """The number of rows in the store of this process."""
        return len(range(self.part, num_rows, self.parts))

    def index_of(self, ids: np.ndarray) -> np.ndarray:
        """The index of each id in the store of this process."""
        return ids // self.parts

    def put(self, array: np.ndarray) -> jax.Array:
        """An array whose first axis is split over the devices. `array` is this process's part of it."""
        parts = np.split(array, self.devices_here)
        shape = (self._num_devices * len(parts[0]), *array.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, self._split, jax.device_put(parts, self._here))

    def put_everywhere(self, array: Any) -> jax.Array:
        """An array that each device has whole."""
        array = np.asarray(array)
        copies = jax.device_put([array] * self.devices_here, self._here)
        return jax.make_array_from_single_device_arrays(array.shape, self._whole, copies)

    def read(self, array: jax.Array) -> np.ndarray:
        """The inverse of `put`."""
        if not array.sharding.is_equivalent_to(self._split, array.ndim):
            array = jax.device_put(array, self._split)
        shards = {shard.device: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(shards[device]) for device in self._here])

    def read_used(self, fetched: Any) -> list[np.ndarray]:
        """The ids of fetched rows without padding, their rows, `nu_token` and `last`, of this process."""
        ids = self.read(fetched.ids)
        used = np.flatnonzero(ids < fetched.num_rows)
        return [ids[used], *(self.read(of)[used] for of in (fetched.rows, fetched.nu_token, fetched.last))]

    def largest(self, count: int) -> int:
        """The largest count of any process."""
        return int(self.gather([count]).max())

    def gather(self, numbers: Any) -> np.ndarray:
        """The numbers of all processes, (parts, n) int32."""
        told = self._gather(np.tile(np.asarray(numbers, np.int32), (self.devices_here, 1)))
        return told[self._number[:, 0]]

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(gathered(self.put(rows), self.mesh))
