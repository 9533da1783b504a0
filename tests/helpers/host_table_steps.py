"""Random batches for tables on the host, the same steps on them and on the device, and all rows of a table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import NamedSharding, PartitionSpec
from steps import sparse_step

from ember_optax import EmberDimensionNumbers, ember, large_tables

V, D, N, RATE = 300, 12, 48, 1e-2
ALL = np.arange(V)


def over(mesh, array):
    """A global array, whose first axis is split over the mesh. Each process gives its part of it."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def batches(steps=100, row=(D,), seed=0):
    """Ids with duplicates, repeats between neighbours, padding, empty batches and both ends, and gradients."""
    rng, ids = np.random.default_rng(seed), np.zeros(N, np.int64)
    for step in range(steps):
        before, ids = ids, rng.integers(-5, V + 5 if step % 4 else 20, N)
        ids[:8] = before[:8]
        ids[10:12] = [0, V - 1] if step % 3 else ids[10:12]
        if step < 50:
            ids[(ids > 250) & (ids < V - 1)] = -1
        if step % 17 == 3:
            ids[:] = -1
        compact = rng.normal(size=(N, *row)).astype(np.float32)
        if step % 31 == 5:
            ids[20], compact[20] = 7, np.nan
        yield ids, compact


@functools.partial(jax.jit, static_argnames="rate")
def step(fetched, compact, rate=RATE):
    def loss_fn(rows):
        return jnp.sum(large_tables.lookup(rows, fetched.places) * compact)

    return large_tables.update(fetched, jax.grad(loss_fn)(fetched.rows), rate)


def run(table, given, prefetch=False):
    if prefetch:
        for (_, compact), fetched in table.prefetch(given, lambda batch: batch[0]):
            table.write(step(fetched, compact))
        return
    for ids, compact in given:
        table.write(step(table.fetch(ids), compact))


def stored_bytes(table):
    """What the store has of each row, without the checksums of files."""
    return b"".join(np.ascontiguousarray(table._records[name]).tobytes() for name in ("nu_token", "last", "row"))


def rows_of(table, mesh=None):
    """All rows, and `nu_token` as it is now."""
    fetched = table.fetch(ALL if mesh is None else over(mesh, np.append(ALL, np.full(-V % mesh.size, -1))))
    ids, rows, nu_token, last = (
        process_allgather(array, tiled=True) for array in (fetched.ids, fetched.rows, fetched.nu_token, fetched.last)
    )
    order = np.argsort(ids, kind="stable")[:V]
    return rows[order], (nu_token * fetched.b2 ** (table.count - last.astype(np.float64)))[order]


def on_device(start, given, *links):
    tx = optax.chain(ember(RATE, optax.sgd(1.0), tables=EmberDimensionNumbers()), *links)
    state, stepped = tx.init(start), jax.jit(sparse_step(tx))
    for ids, compact in given:
        start, state = stepped(start, state, jnp.asarray(compact), jnp.asarray(ids))
    return start, state
