"""Writes of rows into a table, in place if the table is donated. Arrays only."""

from typing import Any

import jax
import jax.numpy as jnp

from .platform_forms import read_as, write_in_place
from .rows import distinct_ids, flat_ids, is_narrow, rows_first, sum_duplicates, take_rows


def add_rows(table: jax.Array, compact: jax.Array, ids: jax.Array, token_axis: int) -> jax.Array:
    """The table with compact updates added to its rows, in place if the table is donated.

    For a table of 16 bits, the updates of equal ids are added up first, so that their sum is rounded once.
    """
    size = table.shape[token_axis]
    ids_N, rows_NxF = flat_ids(ids, size), rows_first(compact, token_axis, ids.ndim)
    if is_narrow(table) or jnp.promote_types(table.dtype, rows_NxF.dtype) != table.dtype:
        return add_once(table, rows_NxF, ids_N, token_axis)
    return scatter_add(table, rows_NxF, ids_N, token_axis)


def scatter_add(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    """The table with the updates of equal ids added one after the other, for tables of 32 bits and more."""
    return table.at[_at(ids_N, token_axis)].add(jnp.moveaxis(rows_NxF.astype(table.dtype), 0, token_axis), mode="drop")


def add_once(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    """The table with the updates added once for each id.

    The updates of equal ids are added up and rounded to their own dtype. The sum is then added as in `optax.apply_updates`.
    """
    summed_NxF, first_N = sum_duplicates(rows_NxF, ids_N, table.shape[token_axis])
    new_NxF = (take_rows(table, ids_N, token_axis) + summed_NxF.astype(rows_NxF.dtype)).astype(table.dtype)
    return set_rows(table, new_NxF, ids_N, token_axis, first_N)


def set_rows(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int, first_N: Any = True) -> jax.Array:
    """The table with other rows of its dtype at some ids. Padding, of id V, and rows that are not first are dropped.

    `first_N` is a mask of the first occurrence of each id. Without it the ids are distinct.
    """
    at = _at(distinct_ids(ids_N, first_N, table.shape[token_axis]), token_axis)
    new = jnp.moveaxis(rows_NxF, 0, token_axis)

    def write(stored: jax.Array) -> jax.Array:
        return stored.at[at].set(read_as(new, stored.dtype), mode="drop", unique_indices=True)

    return write_in_place(write, table)


def _at(ids_N: jax.Array, token_axis: int) -> tuple[Any, ...]:
    return (slice(None),) * token_axis + (ids_N,)
