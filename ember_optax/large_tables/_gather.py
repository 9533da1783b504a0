"""From the records on the host to the rows of a batch on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _records
from ._checks import Options
from ._fetched import FetchedRows
from ._initial_rows import read_rows
from ._layouts import Layout
from ._layouts.batch_ids import BatchIds, distinct_ids, padded_size


class Gathered(NamedTuple):
    """The ids of a batch, and a copy of the records that this process has of them, with padding for each device."""

    ids: BatchIds
    records: np.ndarray


def gather(records: np.ndarray, ids: BatchIds, layout: Layout, newest: int) -> Gathered:
    """The records of a batch, which no step after `newest` wrote."""
    found = _records.aligned_zeros(layout.devices_here * ids.size, records.dtype)
    for device, distinct in enumerate(ids.distinct):
        into = found[device * ids.size :][: len(distinct)]
        _records.take_checked(records, layout.index_of(distinct), newest, into)
    return Gathered(ids, found)


def refresh(gathered: Gathered, records: np.ndarray, written: np.ndarray, layout: Layout, newest: int) -> None:
    """Reads the records of the ids that were written after `gather` again."""
    for device, distinct in enumerate(gathered.ids.distinct):
        shared = np.flatnonzero(np.isin(distinct, written, assume_unique=True))
        found = _records.take_checked(records, layout.index_of(distinct[shared]), newest)
        gathered.records[device * gathered.ids.size + shared] = found


def to_device(
    gathered: Gathered, options: Options, layout: Layout, nu_feature: jax.Array, table: int, count: int, total_notfinite: int
) -> FetchedRows:
    """The rows on the device, with padding, and with initial values where no step has written them."""
    distinct, places, size = gathered.ids
    ids = np.full((layout.devices_here, size), options.shape[0], np.uint32)
    for of_device, of_batch in zip(ids, distinct, strict=True):
        of_device[: len(of_batch)] = of_batch
    ids = layout.put(ids.reshape(-1))
    words = layout.put(_records.words_of(gathered.records))
    rows, nu_token, last = read_rows(words, ids, options=options, mesh=layout.mesh)
    return FetchedRows(
        rows=rows,
        places=jax.tree.map(jnp.asarray, places),
        ids=ids,
        nu_token=nu_token,
        last=last,
        count=layout.put_everywhere(np.int32(count)),
        nu_feature=jnp.array(nu_feature),  # a copy, which a jitted function may take over
        total_notfinite=layout.put_everywhere(np.int32(total_notfinite)),
        table=layout.put_everywhere(np.int32(table)),
        num_rows=options.shape[0],
        dtype=options.dtype,
        b2=options.b2,
        eps=options.eps,
        seed=options.seed,
        mesh=layout.mesh,
    )


def again(batches: list[FetchedRows], layout: Layout) -> tuple[BatchIds, list[jax.Array]]:
    """The distinct ids of several batches, and the places of each batch's rows among them."""
    num_rows, num_devices = batches[0].num_rows, layout.devices_here
    ids_of = [layout.read(batch.ids).reshape(num_devices, -1) for batch in batches]
    distinct = [distinct_ids([ids[device] for ids in ids_of], num_rows)[0] for device in range(num_devices)]
    size = padded_size(layout.largest(max(map(len, distinct))))

    def places(ids: np.ndarray) -> jax.Array:
        found = [np.searchsorted(of_all, of_batch) for of_all, of_batch in zip(distinct, ids, strict=True)]
        return layout.put(np.where(ids < num_rows, np.stack(found), size).astype(np.int32).reshape(-1))

    return BatchIds(distinct, (), size), [places(ids) for ids in ids_of]
