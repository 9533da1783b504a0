"""The checks of the arguments of `RowSlice` and `lookup`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._tree.boxes import unbox
from .._tree.inputs import check_array, checked_integer, shown
from .._tree.token_ids import ids_array, integer_ids


def checked_ids(ids: Any) -> jax.Array:
    """The ids as a JAX array of integers. Raises if they are anything else."""
    return ids_array(integer_ids(ids, "ids"))


def checked_table(table: Any) -> jax.Array:
    """The table as an array. Raises unless it is an array with at least one row."""
    table = unbox(table)
    if not hasattr(table, "shape") or not hasattr(table, "dtype"):
        raise TypeError(f"table must be an array or a RowSlice, got {shown(table)}; pass one leaf of the parameters.")
    check_array(table, "table")
    if 0 in table.shape:
        raise ValueError(f"table has the shape {table.shape} and no rows; pass a table with a vocabulary.")
    return jnp.asarray(table)


def check_tap(tap: Any, shape: tuple[int, ...]) -> None:
    """Raises unless a tap is a floating array of this shape."""
    real = jnp.issubdtype(getattr(tap, "dtype", None) or np.dtype(object), jnp.floating)
    if not hasattr(tap, "shape") or not real:
        raise TypeError(f"tap must be a floating array, got {shown(tap)}; pass jnp.zeros({shape}).")
    if tap.shape != shape:
        raise ValueError(
            f"tap has shape {tap.shape}, but the rows that are looked up have shape {shape}; pass jnp.zeros({shape})."
        )


def check_slice(rows: Any, ids: Any, num_rows: Any, token_axis: Any) -> None:
    """Raises unless the rows and their ids describe some rows of one table."""
    if not hasattr(rows, "ndim") or not hasattr(rows, "dtype"):
        raise TypeError(f"rows must be an array, got {shown(rows)}; pass the rows of the table.")
    check_array(rows, "the array of rows", floating=True)
    if not hasattr(ids, "dtype") or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids must be an array of integers, got {shown(ids)}; pass the ids of the rows, jnp.asarray(ids).")
    if not 0 <= checked_integer(token_axis, "token_axis") < rows.ndim:
        raise ValueError(
            f"token_axis must be in 0 to {rows.ndim - 1} for rows of shape {rows.shape}, got {token_axis}; name the axis of rows."
        )
    if ids.shape != (rows.shape[token_axis],):
        raise ValueError(
            f"ids must have shape ({rows.shape[token_axis]},), one for each of the rows of shape {rows.shape} along axis "
            f"{token_axis}, got {ids.shape}; pass one id for each row."
        )
    if not 0 <= checked_integer(num_rows, "num_rows") <= jnp.iinfo(jnp.int32).max:
        raise ValueError(f"num_rows must be the number of rows of the whole table, got {num_rows}; pass V.")
    if not isinstance(ids, Tracer) and not isinstance(rows, Tracer):
        _check_increasing(np.asarray(ids), num_rows)


def _check_increasing(ids_N: np.ndarray, num_rows: int) -> None:
    """Raises unless the ids increase. A lookup is a binary search, which fails in ids that do not increase."""
    outside = ids_N[(ids_N < 0) | (ids_N > num_rows)]
    if outside.size:
        raise ValueError(f"ids must be in 0 to num_rows, {num_rows} (padding), got {shown(outside.tolist())}; correct the ids.")
    if not np.all((ids_N[1:] > ids_N[:-1]) | (ids_N[1:] == num_rows)):
        raise ValueError(f"ids must increase, padding of {num_rows} last, got {shown(ids_N.tolist())}; sort rows and ids.")
