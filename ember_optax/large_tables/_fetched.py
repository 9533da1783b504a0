"""`FetchedRows`: the rows of a batch on the device, with what Ember's step needs; and `lookup`, which reads them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from .._math.rows import flat_ids, take_rows
from .._tree.inputs import shown
from ._layouts.places import Places, is_places, received_rows, rows_at


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "places", "ids", "nu_token", "last", "count", "nu_feature", "total_notfinite", "table"],
    meta_fields=["num_rows", "dtype", "b2", "eps", "seed", "mesh"],
)
@dataclasses.dataclass(frozen=True)
class FetchedRows:
    """The rows of one batch, from `HostTable.fetch`. It is a pytree, so it passes through `jax.jit`.

    N is the number of distinct ids, rounded up to one of a few sizes, so that `jax.jit` compiles for a few sizes only.

    Attributes:
      rows: (N, ...), the rows of the distinct ids. Rows of 16 bits are float32 here, so that gradients are added up in float32.
      places: a tree like the ids given to `fetch`, int32: the place of each id in `rows`, N for padding.
      ids: (N,) uint32, the distinct ids in increasing order. Padding has the id V.
      nu_token: (N,) float32, as it was after the step `last`.
      last: (N,) int32, the step that wrote the row, 0 if none did.
      count: steps taken, int32. Skipped batches do not count.
      nu_feature: float32, the shape of a row.
      total_notfinite: batches that were skipped because they were not finite, int32.
      table: the number of the `HostTable` in this process, int32.
      num_rows: V.
      dtype: the dtype of the stored rows.
      b2: as in `HostTable`.
      eps: as in `HostTable`.
      seed: as in `HostTable`.
      mesh: as in `HostTable`. With a mesh, the first axis of `rows`, `ids`, `nu_token` and `last` is split over its devices, each
        device has N of the rows with padding, and `places` are for `lookup` only.

    Example:
      >>> from ember_optax import large_tables
      >>> table = large_tables.HostTable((1000, 4), seed=0)
      >>> fetched = table.fetch(jnp.array([[7, 3, 7]]))
      >>> fetched.ids[:2], fetched.places
      (Array([3, 7], dtype=uint32), Array([[1, 0, 1]], dtype=int32))

    References:
      docs/large_tables.md
    """

    rows: jax.Array
    places: Any
    ids: jax.Array
    nu_token: jax.Array
    last: jax.Array
    count: jax.Array
    nu_feature: jax.Array
    total_notfinite: jax.Array
    table: jax.Array
    num_rows: int
    dtype: Any
    b2: float
    eps: float
    seed: int
    mesh: Mesh | None = None


def lookup(rows: jax.Array, places: Any) -> Any:
    """The fetched rows at some places, with zeros for padding.

    .. math:: x_n = rows_{places_n}

    Differentiate with respect to `rows`. The gradients of equal ids are added up. A bag, which is the sum of several rows at one
    position, is `lookup(rows, places).sum(-2)`.

    Args:
      rows: `fetched.rows`, (N, ...), any floating dtype.
      places: `fetched.places`, or some of its arrays.

    Returns:
      A tree like `places` with arrays of shape `places.shape + rows.shape[1:]` in the dtype of `rows`.

    Raises:
      TypeError: `rows` is not an array of floats, or `places` are not integers.

    Example:
      >>> from ember_optax import large_tables
      >>> table = large_tables.HostTable((1000, 4), seed=0)
      >>> fetched = table.fetch(jnp.array([[7, 3, -1]]))
      >>> large_tables.lookup(fetched.rows, fetched.places).shape
      (1, 3, 4)

    References:
      docs/large_tables.md
    """
    is_array = hasattr(rows, "shape") and jnp.issubdtype(rows.dtype, jnp.floating) and rows.ndim
    if not is_array:
        raise TypeError(f"rows must be the array of floats that fetch returned, got {shown(rows)}: pass fetched.rows.")

    over_mesh = [leaf for leaf in jax.tree.leaves(places, is_leaf=is_places) if is_places(leaf)]
    if over_mesh:  # all arrays of one batch share the exchange
        rows = received_rows(rows, over_mesh[0])

    def one(places: Any) -> jax.Array:
        if isinstance(places, Places):
            return rows_at(rows, places)
        if not jnp.issubdtype(getattr(places, "dtype", jnp.float32), jnp.integer):
            raise TypeError(f"places must be arrays of integers, got {shown(places)}: pass fetched.places.")
        found = take_rows(rows, flat_ids(places, len(rows)), 0)
        return found.reshape(*places.shape, *rows.shape[1:])

    return jax.tree.map(one, places, is_leaf=is_places)
