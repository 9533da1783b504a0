"""The distinct ids of a batch, on the host."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from ..._tree.inputs import shown
from ..._tree.token_ids import integer_ids

_FEWEST = 64


class BatchIds(NamedTuple):
    """The distinct ids of a batch, and the places of all ids in them.

    Attributes:
      distinct: for each device of this process its rows' ids in increasing order.
      places: a tree like the ids.
      size: the number of rows of each device, with padding.
    """

    distinct: list[np.ndarray]
    places: Any
    size: int


def batch_ids(ids: Any, num_rows: int) -> BatchIds:
    """The ids of a batch in one process. Raises as `leaves_of`."""
    leaves, treedef = leaves_of(ids)
    arrays = [np.asarray(leaf) for leaf in leaves]
    distinct, places = distinct_ids(arrays, num_rows)
    size = padded_size(len(distinct))
    places = np.where(places == len(distinct), size, places).astype(np.int32)
    return BatchIds([distinct], jax.tree.unflatten(treedef, shaped_like(arrays, places)), size)


def leaves_of(ids: Any) -> tuple[list[Any], Any]:
    """The arrays of ids, and the structure of their tree.

    Raises:
      TypeError: a leaf of `ids` is not an array of integers, or it is traced.
      ValueError: there is no leaf.
    """
    leaves, treedef = jax.tree.flatten(ids)
    if not leaves:
        raise ValueError(f"ids must hold at least one array, got {shown(ids)}; an array of shape (0,) is an empty batch.")
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise TypeError(
            "ids are traced, so the rows of the host cannot be read: call fetch outside of jax.jit, and pass its result to the "
            "jitted step."
        )
    return [integer_ids(leaf, "ids") for leaf in leaves], treedef


def distinct_ids(arrays: list[np.ndarray], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids in increasing order without padding, and the place of each id, which for padding is their number."""
    flat = np.concatenate([a.astype(np.int64).reshape(-1) for a in arrays])  # first: V is not an int8, and 2^63 becomes negative
    flat[(flat < 0) | (flat >= num_rows)] = num_rows
    distinct, places = np.unique(flat, return_inverse=True)
    return distinct[: np.searchsorted(distinct, num_rows)], places.reshape(-1)


def shaped_like(arrays: list[np.ndarray], flat: np.ndarray) -> list[np.ndarray]:
    """The parts of a flat array, in the shapes of some arrays."""
    parts = np.split(flat, np.cumsum([a.size for a in arrays])[:-1])
    return [part.reshape(a.shape) for part, a in zip(parts, arrays, strict=True)]


def padded_size(count: int, fewest: int = _FEWEST) -> int:
    """The smallest of 64, 96, 128, 192, 256, ... that is not below `count`. So a third of the places is padding at most.

    `fewest` is a power of two instead of 64.
    """
    power = 1 << max(count - 1, fewest - 1).bit_length()
    return max(power * 3 // 4 if count <= power * 3 // 4 else power, fewest)
