"""Reading `token_ids`: which leaves of the updates are compact, and of which rows."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from ._boxes import unbox
from ._dimension_numbers import TableAxes
from ._paths import flatten_named


def token_ids_by_name(token_ids: Any) -> dict[str, jax.Array]:
    """The ids by the path of their table; leaves that are None, or absent, are dense.

    Raises:
      TypeError: ids are not an array of integers.
    """
    if token_ids is None:
        return {}
    if hasattr(token_ids, "shape"):
        token_ids = {"": token_ids}  # a parameter tree that is a single leaf
    names, leaves, _ = flatten_named(token_ids)
    check_distinct(names, names)
    found = {name: unbox(leaf) for name, leaf in zip(names, leaves, strict=True) if unbox(leaf) is not None}
    for name, ids in found.items():
        dtype = getattr(ids, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
            what = f"of type {type(ids).__name__}" if dtype is None else f"of dtype {dtype}"
            raise TypeError(
                f"token_ids of {name!r} must be an array of integers or None, got one {what}: pass the ids looked up."
            )
    return {name: jnp.asarray(ids) for name, ids in found.items()}


def check_known(ids: dict[str, jax.Array], names: list[str], what: str = "the updates have") -> None:
    """Raises where ids are given for a leaf that does not exist."""
    unknown = sorted(set(ids) - set(names))
    if unknown:
        raise ValueError(f"token_ids names {unknown}, but {what} {names}; correct the path.")


def check_distinct(wanted: Collection[str], names: list[str]) -> None:
    """Raises where a path that has ids stands for several leaves."""
    several = sorted({name for name in names if name in wanted and names.count(name) > 1})
    if several:
        raise ValueError(
            f"token_ids are given for {several}, which stand for more than one leaf each (a leading 'params' is dropped, and "
            f"'a/b' is also the b in a); rename the keys."
        )


def check_rows_first(name: str, shape: tuple[int, ...], ids: dict[str, jax.Array]) -> None:
    """Raises unless an array begins with the axes of its ids, if it has any."""
    if name in ids and shape[: ids[name].ndim] != ids[name].shape:
        raise ValueError(
            f"the update of {name!r} has shape {shape}, but its ids have shape {ids[name].shape}: it must begin with one row for "
            f"each id."
        )


def check_one_table(name: str, shape: tuple[int, ...], axes: TableAxes) -> None:
    """Raises for stacked tables and for scalars, which have no rows."""
    if axes.batch or not axes.token:
        raise ValueError(
            f"token_ids are given for {name!r} of shape {shape}, which has the batch axes {axes.batch}: row-sparse steps are for "
            f"one table with a token axis. Give its updates dense, with None for its ids, or keep the tables apart."
        )


def check_compact(name: str, update_shape: tuple[int, ...], ids: jax.Array, table: Any, axes: TableAxes) -> None:
    """Raises unless an update has the table's shape with the axes of the ids in the place of the token axis."""
    check_one_table(name, table.shape, axes)
    token = axes.token[0]
    expected = (*table.shape[:token], *ids.shape, *table.shape[token + 1 :])
    if update_shape == expected:
        return
    if update_shape == table.shape:
        raise ValueError(
            f"the update of {name!r} is dense, of shape {update_shape}, but token_ids gives it ids of shape {ids.shape}: ids "
            f"belong to compact updates of shape {expected}. A table that is tied to the head, or a head of all tokens, has a "
            f"gradient in every row and cannot be row-sparse: leave its ids None. An input table next to a head of its own can."
        )
    raise ValueError(
        f"the update of {name!r} has shape {update_shape}, but with ids of shape {ids.shape} and a table of shape {table.shape} "
        f"it must have shape {expected}: one row for each id."
    )
