"""Large sums in float32 whose result is narrower: in parts of the first axis, each of which is cast before they are put together.

The whole sum and the whole result are then never in memory at once.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .chunks import behind_barriers

# The numbers of a part: 32 MiB in float32.
PART = 1 << 23
# A TPU's compiler gives a program with 64 parts more memory than one without parts (libtpu 0.0.42).
_MOST_PARTS = 8


def number_of_parts(result: jax.Array, sum_dtype: Any) -> int:
    """In how many parts a sum is made in `sum_dtype` that becomes an array like `result`."""
    parts = -(-result.size // PART) if result.dtype != sum_dtype else 1
    return parts if 0 < parts <= _MOST_PARTS else 1


def in_parts(array: jax.Array, parts: int) -> list[jax.Array]:
    """An array in parts of its first axis, of nearly equal size."""
    return jnp.array_split(array, parts) if parts > 1 else [array]


def together(parts: list[jax.Array]) -> jax.Array:
    """The inverse of `in_parts`, after all parts are made."""
    return jnp.concatenate(behind_barriers(parts)) if len(parts) > 1 else parts[0]
