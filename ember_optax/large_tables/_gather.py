"""From the records on the host to the rows of a batch on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _records
from ._checks import Options
from ._fetched import FetchedRows
from ._initial_rows import with_initial_rows
from ._layouts import Layout
from ._layouts.batch_ids import BatchIds, distinct_ids, padded_size


class Gathered(NamedTuple):
    """The ids of a batch, and a copy of the records that this process has of them."""

    ids: BatchIds
    records: np.ndarray


def gather(records: np.ndarray, ids: BatchIds, layout: Layout, newest: int) -> Gathered:
    """The records of a batch, which no step after `newest` wrote."""
    return Gathered(ids, _records.take_checked(records, layout.index_of(_flat(ids)), newest))


def refresh(gathered: Gathered, records: np.ndarray, written: np.ndarray, layout: Layout, newest: int) -> None:
    """Reads the records of the ids that were written after `gather` again."""
    ids = _flat(gathered.ids)
    shared = np.isin(ids, written, assume_unique=True)
    gathered.records[shared] = _records.take_checked(records, layout.index_of(ids[shared]), newest)


def to_device(
    gathered: Gathered, options: Options, layout: Layout, nu_feature: jax.Array, table: int, count: int, total_notfinite: int
) -> FetchedRows:
    """The rows on the device, with padding, and with initial values where no step has written them."""
    (distinct, places, size), records = gathered
    used = np.concatenate([np.arange(len(part)) + device * size for device, part in enumerate(distinct)])

    def put(of_records: np.ndarray, padding: int = 0) -> jax.Array:
        padded = np.full((layout.devices_here * size, *of_records.shape[1:]), padding, of_records.dtype)
        padded[used] = of_records
        return layout.put(padded)

    ids = put(_flat(gathered.ids).astype(np.uint32), options.shape[0])
    nu_token, last, rows = map(put, (records["nu_token"], records["last"], _records.rows_in(records, options.dtype)))
    return FetchedRows(
        rows=with_initial_rows(rows, ids, last, seed=options.seed, std=options.std, dtype=options.dtype, mesh=layout.mesh),
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


def _flat(ids: BatchIds) -> np.ndarray:
    return np.concatenate(ids.distinct)
