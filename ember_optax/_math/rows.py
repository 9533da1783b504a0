"""Some rows of a table and their ids. Arrays only.

A compact array holds N rows of a (V, D) table instead of all V. Ids below zero and ids of V and above are padding. The same id
may occur more than once. Sums over equal ids are computed in float32 and rounded once, because a sum of ones in bfloat16, which
has 8 bits, stops at 256.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .mean_square import compute_dtype
from .mesh import as_varying, varying_axes


def flat_ids(ids: jax.Array, size: int) -> jax.Array:
    """The ids as int32 of shape (N,). Padding becomes `size`, which scatters drop."""
    ids_N = ids.reshape(-1)
    if jnp.iinfo(ids_N.dtype).bits < 32:
        ids_N = ids_N.astype(jnp.int32)  # int8 cannot be compared with a size above 127
    return jnp.where((ids_N < 0) | (ids_N >= size), size, ids_N).astype(jnp.int32)


def shifted_ids(ids: jax.Array, part: jax.Array, size: int) -> jax.Array:
    """The ids relative to shard number `part` of a row-sharded table, int32. Ids of other shards become -1.

    `size` is the number of rows of one shard.
    """
    # 64-bit ids beyond int32 would wrap around to rows that exist.
    beyond = (ids < 0) | (ids > jnp.asarray(min(jnp.iinfo(ids.dtype).max, jnp.iinfo(jnp.int32).max), ids.dtype))
    moved = jnp.where(beyond, -1, ids).astype(jnp.int32) - part * size
    return jnp.where((moved >= 0) & (moved < size), moved, -1)


def rows_first(compact: jax.Array, token_axis: int, ids_rank: int) -> jax.Array:
    """A compact array as (N, ...): the axes of the ids, which replace the token axis, become one first axis."""
    moved = jnp.moveaxis(compact, range(token_axis, token_axis + ids_rank), range(ids_rank))
    return moved.reshape(math.prod(moved.shape[:ids_rank]), *moved.shape[ids_rank:])


def rows_back(rows_NxF: jax.Array, shape: tuple[int, ...], token_axis: int, ids_rank: int) -> jax.Array:
    """The inverse of `rows_first`: a compact array of this shape."""
    ids_shape = shape[token_axis : token_axis + ids_rank]
    moved = rows_NxF.reshape(*ids_shape, *rows_NxF.shape[1:])
    return jnp.moveaxis(moved, range(ids_rank), range(token_axis, token_axis + ids_rank))


def take_rows(table: jax.Array, ids_N: jax.Array, token_axis: int, fill_value: float = 0.0) -> jax.Array:
    """The rows `ids_N` of a table, (N, ...), with `fill_value` for padding.

    The gradients of equal ids are added up in float32 and rounded once.
    """
    take = _take_narrow if is_narrow(table) else _take
    return jnp.moveaxis(take(table, ids_N, token_axis, fill_value), token_axis, 0)


def _take(table: jax.Array, ids_N: jax.Array, token_axis: int, fill_value: float) -> jax.Array:
    return jnp.take(table, ids_N, token_axis, mode="fill", fill_value=fill_value)


# A custom JVP, so that both modes, `jax.vmap` and second derivatives work. JAX derives the transpose, a sum in float32.
_take_narrow = jax.custom_jvp(_take, nondiff_argnums=(2, 3))


@_take_narrow.defjvp
def _take_narrow_jvp(token_axis: int, fill_value: float, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (table, ids_N), (tangent, _) = primals, tangents
    of_rows = _take(tangent.astype(jnp.float32), ids_N, token_axis, 0.0)
    return _take_narrow(table, ids_N, token_axis, fill_value), of_rows.astype(table.dtype)


def is_narrow(array: jax.Array) -> bool:
    """Whether an array has a floating dtype of fewer than 32 bits, so that sums need a wider one."""
    return jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4


def sum_duplicates(rows_NxF: jax.Array, ids_N: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Adds up the rows of equal ids.

    Args:
      rows_NxF: rows of any floating dtype, added in float32.
      ids_N: their ids, as `flat_ids` returns them.
      size: the number of rows of the table.

    Returns:
      The sums, (N, ...) in float32. The first occurrence of an id has the sum, later occurrences and padding have zeros. And a
      mask of the first occurrences, (N,).
    """
    dtype = compute_dtype(rows_NxF)
    rows_NxF = as_varying(rows_NxF, varying_axes(ids_N) - varying_axes(rows_NxF))
    valid_N = ids_N < size
    increasing = jnp.all((ids_N[1:] > ids_N[:-1]) | ~valid_N[1:])
    # `row_sparse.value_and_grad` returns increasing ids. Then there is no sort, and without padding no copy of the rows either.
    way = jnp.where(increasing, jnp.where(jnp.all(valid_N), 0, 1), 2)
    return jax.lax.switch(
        way,
        [
            lambda rows: (rows.astype(dtype), valid_N),
            lambda rows: (jnp.where(like_rows(valid_N, rows), rows.astype(dtype), jnp.zeros((), dtype)), valid_N),
            lambda rows: _add_up(rows.astype(dtype), ids_N, valid_N),
        ],
        rows_NxF,
    )


def _add_up(rows_NxF: jax.Array, ids_N: jax.Array, valid_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of the rows of equal ids at the first occurrence of each id, and a mask of these."""
    first_place_N, first_N = first_places(ids_N)
    # The scatter drops padding. To write zeros into its rows first would be one more write of all rows.
    sums_NxF = jnp.zeros_like(rows_NxF).at[jnp.where(valid_N, first_place_N, ids_N.size)].add(rows_NxF, mode="drop")
    return sums_NxF, first_N & valid_N


def places_among(ids_M: jax.Array, increasing_N: jax.Array) -> jax.Array:
    """For each id the number of lower ids in `increasing_N`, (M,) int32, by binary search.

    `jnp.searchsorted` of jax 0.10.2 fails in a `jax.shard_map` over some axes of a mesh.
    """

    def halve(_, bounds):
        low_M, high_M = bounds
        middle_M = (low_M + high_M) // 2
        is_lower_M = jnp.take(increasing_N, middle_M, mode="clip") < ids_M
        return jnp.where(is_lower_M, middle_M, low_M), jnp.where(is_lower_M, high_M, middle_M)

    if not (size := increasing_N.size):
        return jnp.zeros_like(ids_M)
    low_M = as_varying(jnp.zeros_like(ids_M), varying_axes(increasing_N) - varying_axes(ids_M))
    return jax.lax.fori_loop(0, size.bit_length(), halve, (low_M, jnp.full_like(low_M, size)))[1]


def first_places(ids_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each position the first position with the same id, int32, and a mask of the positions that are first."""
    places_N = jnp.arange(ids_N.size, dtype=jnp.int32)
    sorted_N, order_N = jax.lax.sort((ids_N, places_N), num_keys=1)  # stable, so equal ids keep the order of their positions
    starts_N = jnp.concatenate([jnp.ones_like(sorted_N[:1], bool), sorted_N[1:] != sorted_N[:-1]])
    first_place_N = order_N[jax.lax.cummax(jnp.where(starts_N, places_N, 0))]
    first_place_N = jnp.zeros_like(order_N).at[order_N].set(first_place_N, unique_indices=True)
    return first_place_N, first_place_N == places_N


def distinct_ids(ids_N: jax.Array, first_N: jax.Array, size: int) -> jax.Array:
    """The ids, each once. Padding and later occurrences of an id become distinct ids of `size` and above."""
    return jnp.where(first_N & (ids_N < size), ids_N, size + jnp.arange(ids_N.size, dtype=ids_N.dtype))


def like_rows(vector_N: jax.Array, rows_NxF: jax.Array) -> jax.Array:
    """A vector with trailing axes of length one, so that it broadcasts over the rows."""
    return vector_N.reshape(-1, *(1 for _ in rows_NxF.shape[1:]))
