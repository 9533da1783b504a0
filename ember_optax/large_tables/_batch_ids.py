"""The distinct ids of a batch, on the host."""

from typing import Any, NamedTuple

import jax
import numpy as np

from .._tree.inputs import shown
from .._tree.token_ids import integer_ids

_FEWEST = 64


class BatchIds(NamedTuple):
    """The distinct ids of a batch in increasing order, and the places of all ids in them, in the structure that was given."""

    distinct: np.ndarray
    places: Any
    size: int  # the number of places, with padding


def batch_ids(ids: Any, num_rows: int) -> BatchIds:
    """Raises TypeError if a leaf of `ids` is not an array of integers."""
    leaves, treedef = jax.tree.flatten(ids)
    arrays = [np.asarray(integer_ids(leaf, "ids")) for leaf in leaves]
    if not arrays:
        raise ValueError(f"ids must hold at least one array, got {shown(ids)}; an array of shape (0,) is an empty batch.")
    flat = np.concatenate([np.where((a < 0) | (a >= num_rows), num_rows, a).astype(np.int64).reshape(-1) for a in arrays])
    distinct, places = np.unique(flat, return_inverse=True)
    if len(distinct) and distinct[-1] == num_rows:
        distinct = distinct[:-1]
    size = padded_size(len(distinct))
    places = np.where(places == len(distinct), size, places).astype(np.int32).reshape(-1)
    parts = np.split(places, np.cumsum([a.size for a in arrays])[:-1])
    shaped = [part.reshape(a.shape) for part, a in zip(parts, arrays, strict=True)]
    return BatchIds(distinct, jax.tree.unflatten(treedef, shaped), size)


def padded_size(count: int) -> int:
    """The smallest of 64, 96, 128, 192, 256, ... that is not below `count`. So a third of the places is padding at most."""
    power = 1 << max(count - 1, _FEWEST - 1).bit_length()
    return max(power * 3 // 4 if count <= power * 3 // 4 else power, _FEWEST)
