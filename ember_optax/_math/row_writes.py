"""Writes of rows into a table, in place if the table is donated. Arrays only."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .rows import distinct_ids, flat_ids, is_narrow, rows_first, sum_duplicates, take_rows


def add_rows(table: jax.Array, compact: jax.Array, ids: jax.Array, token_axis: int) -> jax.Array:
    """The table with compact updates added to its rows, in place if the table is donated.

    For a table of 16 bits, the updates of equal ids are added up first, so that their sum is rounded once.

    On TPU and GPU, a scatter into a table of 16 bits copies nothing, while a scatter of the bits as integers would copy the
    table. On CPU, XLA (jax 0.10.2) makes two float32 copies of the whole table to scatter bfloat16, and one copy in 16 bits to
    scatter the bits. docs/speed.md has the figures.
    """
    size = table.shape[token_axis]
    ids_N, rows_NxF = flat_ids(ids, size), rows_first(compact, token_axis, ids.ndim)
    once, as_bits = (functools.partial(form, ids_N=ids_N, token_axis=token_axis) for form in (add_once, add_once_as_bits))
    if table.dtype == jnp.bfloat16:
        return jax.lax.platform_dependent(table, rows_NxF, cpu=as_bits, default=once)
    if is_narrow(table) or jnp.promote_types(table.dtype, rows_NxF.dtype) != table.dtype:
        return once(table, rows_NxF)
    return scatter_add(table, rows_NxF, ids_N, token_axis)


def scatter_add(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    """The table with the updates of equal ids added one after the other, for tables of 32 bits and more."""
    return table.at[_at(ids_N, token_axis)].add(jnp.moveaxis(rows_NxF.astype(table.dtype), 0, token_axis), mode="drop")


def add_once(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    """The table with the updates added once for each id.

    The updates of equal ids are added up and rounded to their own dtype. The sum is then added as in `optax.apply_updates`.
    """
    once_N, new = _new_rows(table, rows_NxF, ids_N, token_axis)
    return _set(table, new, once_N, token_axis)


def add_once_as_bits(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    """`add_once` by a scatter of integers, for CPU."""
    once_N, new = _new_rows(table, rows_NxF, ids_N, token_axis)
    return _set_as_bits(table, new, once_N, token_axis)


def set_rows(table: jax.Array, rows: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    """The table with other rows, (N, ...) and of its dtype, at distinct ids. Rows with the id of padding, V, are dropped."""
    once_N = distinct_ids(ids_N, jnp.ones(ids_N.shape, bool), table.shape[token_axis])
    new = jnp.moveaxis(rows, 0, token_axis)
    put, put_bits = (functools.partial(form, ids_N=once_N, token_axis=token_axis) for form in (_set, _set_as_bits))
    if table.dtype == jnp.bfloat16:
        return jax.lax.platform_dependent(table, new, cpu=put_bits, default=put)
    return put(table, new)


def _set(table: jax.Array, new: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    return table.at[_at(ids_N, token_axis)].set(new, mode="drop", unique_indices=True)


def _set_as_bits(table: jax.Array, new: jax.Array, ids_N: jax.Array, token_axis: int) -> jax.Array:
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[table.dtype.itemsize]
    in_bits = jax.lax.bitcast_convert_type(table, bits)
    in_bits = _set(in_bits, jax.lax.bitcast_convert_type(new, bits), ids_N, token_axis)
    return jax.lax.bitcast_convert_type(in_bits, table.dtype)


def _new_rows(table: jax.Array, rows_NxF: jax.Array, ids_N: jax.Array, token_axis: int) -> tuple[jax.Array, jax.Array]:
    """The ids, each once, and the rows with their updates. An id that occurs again is replaced by one beyond the table."""
    size = table.shape[token_axis]
    summed_NxF, first_N = sum_duplicates(rows_NxF, ids_N, size)
    new_NxF = (take_rows(table, ids_N, token_axis) + summed_NxF.astype(rows_NxF.dtype)).astype(table.dtype)
    return distinct_ids(ids_N, first_N, size), jnp.moveaxis(new_NxF, 0, token_axis)


def _at(ids_N: jax.Array, token_axis: int) -> tuple[Any, ...]:
    return (slice(None),) * token_axis + (ids_N,)
