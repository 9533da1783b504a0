"""From the records on the host to the rows of a batch on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _records
from ._batch_ids import BatchIds, batch_ids
from ._checks import Options
from ._fetched import FetchedRows
from ._initial_rows import with_initial_rows


class Gathered(NamedTuple):
    """The ids of a batch, and a copy of their records."""

    ids: BatchIds
    records: np.ndarray


def gather(records: np.ndarray, ids: Any, num_rows: int) -> Gathered:
    """The distinct ids of a batch and their records."""
    of_batch = batch_ids(ids, num_rows)
    return Gathered(of_batch, _records.take(records, of_batch.distinct))


def refresh(gathered: Gathered, records: np.ndarray, written: np.ndarray) -> None:
    """Reads the records of the ids that were written after `gather` again."""
    shared = np.isin(gathered.ids.distinct, written, assume_unique=True)
    gathered.records[shared] = _records.take(records, gathered.ids.distinct[shared])


def to_device(gathered: Gathered, options: Options, nu_feature: jax.Array, count: int, total_notfinite: int) -> FetchedRows:
    """The rows on the device, with padding, and with initial values where no step has written them."""
    (distinct, places, size), records = gathered
    padded = np.zeros(size, records.dtype)
    padded[: len(distinct)] = records
    ids = np.full(size, options.shape[0], np.uint32)
    ids[: len(distinct)] = distinct
    ids, nu_token, last = (jnp.asarray(np.ascontiguousarray(array)) for array in (ids, padded["nu_token"], padded["last"]))
    rows = jnp.asarray(_records.rows_in(padded, options.dtype))
    return FetchedRows(
        rows=with_initial_rows(rows, ids, last, seed=options.seed, std=options.std, dtype=options.dtype),
        places=jax.tree.map(jnp.asarray, places),
        ids=ids,
        nu_token=nu_token,
        last=last,
        count=jnp.asarray(count, jnp.int32),
        nu_feature=nu_feature,
        total_notfinite=jnp.asarray(total_notfinite, jnp.int32),
        num_rows=options.shape[0],
        dtype=options.dtype,
        b2=options.b2,
        eps=options.eps,
        seed=options.seed,
    )
