"""Reads and checks `token_ids`, the ids of the rows of compact updates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._math.axes import TableAxes
from .boxes import unbox
from .compact_rows import CompactRows
from .inputs import check_tree, shown
from .paths import check_distinct, flatten_named


def token_ids_by_name(token_ids: Any) -> dict[str, jax.Array]:
    """The ids by the path of their table. A leaf with None, or without an entry, is dense.

    Raises:
      TypeError: ids are not an array of integers.
    """
    if token_ids is None:
        return {}
    check_tree(token_ids, "token_ids", may_be_empty=True)
    if hasattr(token_ids, "shape"):
        token_ids = {"": token_ids}  # a parameter tree that is a single leaf
    names, leaves, _ = flatten_named(token_ids)
    check_distinct(names)
    found = {name: unbox(leaf) for name, leaf in zip(names, leaves, strict=True) if unbox(leaf) is not None}
    for name, ids in found.items():
        dtype = getattr(ids, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
            what = f"of type {type(ids).__name__}" if dtype is None else f"of dtype {dtype}"
            fix = "jnp.flatnonzero(mask) turns a mask into ids" if dtype == np.bool_ else "pass jnp.asarray(ids)"
            raise TypeError(f"token_ids of {name!r} must be an array of integers or None, got one {what}: {fix}.")
    return {name: ids_array(ids) for name, ids in found.items()}


def integer_ids(ids: Any, argument: str) -> np.ndarray | jax.Array:
    """Ids as an array: a JAX array as it is, everything else as NumPy's. An empty list has no ids.

    Raises:
      TypeError: the ids are not integers.
    """
    try:
        array = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array
    if not array.size and not hasattr(ids, "dtype"):
        return array.astype(np.int32)
    what = f"{ids.dtype} of shape {ids.shape}" if hasattr(ids, "dtype") else shown(ids)
    fix = "np.flatnonzero turns a mask into ids" if array.dtype == np.bool_ else "pass a list or an array of token ids"
    raise TypeError(f"{argument} must be integers, got {what}; {fix}.")


def ids_array(ids: Any) -> jax.Array:
    """Ids as a JAX array, with 64-bit ids kept right without x64.

    Without x64, JAX keeps the lower half of a 64-bit id: 2^32 + 5, which is padding, would become row 5. If such ids are
    arguments of `jax.jit`, JAX truncates them before this function sees them.
    """
    if isinstance(ids, np.ndarray | np.generic) and ids.dtype.kind in "iu" and ids.dtype.itemsize == 8:
        smallest = np.asarray(ids) if ids.dtype.kind == "u" else np.maximum(ids, -1)
        ids = np.minimum(smallest, np.iinfo(np.int32).max).astype(np.int32)
    return jnp.asarray(ids)


def check_known(ids: dict[str, jax.Array], names: list[str], what: str) -> None:
    """Raises if ids are given for a leaf that does not exist."""
    unknown = sorted(set(ids) - set(names))
    if unknown:
        raise ValueError(f"token_ids names {unknown}, but {what} {names}; correct the path.")


def check_ids_once(name: str, rows: CompactRows, ids: dict[str, jax.Array]) -> None:
    """Raises if `token_ids` are given for a `CompactRows`, which holds its own ids."""
    if name in ids:
        raise ValueError(
            f"token_ids are given for {name!r}, but its gradient is {type(rows).__name__} and knows its own: leave them out."
        )


def check_same_axis(rows: Any, axes: TableAxes, argument: str) -> None:
    """Raises if compact rows were taken along another axis than the token axis."""
    if isinstance(rows, CompactRows) and axes.token != (rows.token_axis,):
        raise ValueError(
            f"the rows of {rows.name!r} of shape {rows.shape} were taken along axis {rows.token_axis}, but its vocabulary is "
            f"axis {axes.token[0]} here: give value_and_grad and the optimizer the same {argument}."
        )


def check_one_table(name: str, shape: tuple[int, ...], axes: TableAxes) -> None:
    """Raises for stacked tables and for scalars, which have no rows."""
    if 0 in shape:
        raise ValueError(f"token_ids are given for {name!r} of shape {shape}, which is empty; remove it from token_ids.")
    if axes.batch or not axes.token:
        raise ValueError(
            f"token_ids are given for {name!r} of shape {shape}, which has the batch axes {axes.batch}: row-sparse steps are for "
            f"one table with a token axis. Give its updates dense, with None for its ids, or keep the tables apart."
        )


def check_compact(name: str, update_shape: tuple[int, ...], ids: Any, shape: tuple[int, ...], axes: TableAxes) -> None:
    """Raises unless an update has the table's shape with the axes of the ids instead of the token axis."""
    token = axes.token[0]
    expected = (*shape[:token], *ids.shape, *shape[token + 1 :])
    if update_shape == expected:
        return
    if update_shape == shape:
        raise ValueError(
            f"the update of {name!r} is dense, of shape {update_shape}, but token_ids gives it ids of shape {ids.shape}: ids "
            f"belong to compact updates of shape {expected}. A table that is tied to the head, or a head of all tokens, has a "
            f"gradient in every row and cannot be row-sparse: leave its ids None. An input table next to a head of its own can."
        )
    raise ValueError(
        f"the update of {name!r} has shape {update_shape}, but with ids of shape {ids.shape} and a table of shape {shape} "
        f"it must have shape {expected}: one row for each id."
    )
