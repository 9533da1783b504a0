"""`mean_over_micro_batches`: one step for several batches."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from .._tree.inputs import shown
from ._fetched import FetchedRows
from ._gather import again, gather
from ._host_table import HostTable
from ._layouts.collectives import over_devices
from ._update import check_gradient


def mean_over_micro_batches(table: HostTable, results: Sequence[tuple[FetchedRows, Any]]) -> tuple[FetchedRows, jax.Array]:
    """The rows of several batches and their mean gradient, for one update of the table every k batches.

    .. math:: g_i = \\frac{1}{k} \\sum_{m=1}^{k} g^{(m)}_i

    The gradients are averaged before Ember squares them, as those of one large batch. A batch without a row counts as a gradient
    of zero for it. Only the rows of these batches are held.

    Args:
      table: the table.
      results: for each batch, what `table.fetch` returned and the gradient with respect to its rows. The table is not written
        between them.

    Returns:
      The distinct rows of all batches, without places, and their gradient, for `update`.

    Raises:
      TypeError: an element of `results` is not such a pair.
      ValueError: `results` is empty, a gradient does not have the shape of its rows, or the table was written after a fetch.

    Example:
      >>> import numpy as np
      >>> from ember_optax import large_tables
      >>> table = large_tables.HostTable((1000, 4), seed=0)
      >>> results = [(fetched := table.fetch(np.array(ids)), jnp.ones_like(fetched.rows)) for ids in ([3, 7], [7, 9])]
      >>> fetched, row_grads = large_tables.mean_over_micro_batches(table, results)
      >>> fetched.ids[:3], row_grads[:3, 0]
      (Array([3, 7, 9], dtype=uint32), Array([0.5, 1. , 0.5], dtype=float32))
      >>> table.write(large_tables.update(fetched, row_grads, 0.1))

    References:
      docs/large_tables.md
    """
    if not isinstance(table, HostTable):
        raise TypeError(f"table must be a HostTable, got {shown(table)}: pass the table first, then the results.")
    if not isinstance(results, list | tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in results):
        raise TypeError(f"results must be a list of pairs (fetched, row_grads), got {shown(results)}.")
    if not results:
        raise ValueError("results must hold at least one pair (fetched, row_grads), got none.")
    for fetched, row_grads in results:
        check_gradient(fetched, row_grads)
        if int(fetched.table) != table._number:
            raise ValueError("results are of another table: pass the table that fetched them.")
        steps = int(fetched.count) + int(fetched.total_notfinite)
        if steps != table.count + table.total_notfinite:
            raise ValueError(
                f"results were fetched at step {steps}, but the table is at step {table.count + table.total_notfinite}: write "
                f"the table once for all of them, after the last."
            )
    ids, places_of = again([fetched for fetched, _ in results], table._layout)
    together = table._on_device(gather(table._open_records(), ids, table._layout, table.count))
    row_grads = _mean(together.rows, [row_grads for _, row_grads in results], places_of, together.mesh)
    return together, row_grads


@functools.partial(jax.jit, static_argnames="mesh")
def _mean(rows: jax.Array, grads: list[jax.Array], places: list[jax.Array], mesh: Mesh | None) -> jax.Array:
    def on_each(rows: jax.Array, grads: list[jax.Array], places: list[jax.Array]) -> jax.Array:
        total = jnp.zeros_like(rows)
        for grads_NxF, places_N in zip(grads, places, strict=True):
            total = total.at[places_N].add(grads_NxF.astype(rows.dtype), mode="drop")
        return total / len(grads)

    return over_devices(mesh, on_each)(rows, grads, places)
