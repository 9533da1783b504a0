"""Stochastic rounding to 16 bits, with counter-based random bits instead of a stream. Arrays only.

The bits of an element are a hash of a key and of its index in the whole array. So they are the same for every part of the array
(rows of a batch, one device's shard, a chunk). Nothing is stored, and the order of the draws does not matter.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .platform_forms import not_fused

# NumPy scalars, because JAX arrays would start a backend on import.
_EXPONENT = np.uint32(0x7F800000)
_UPPER = np.uint32(0xFFFF0000)


def mixed(x: jax.Array) -> jax.Array:
    """A bijection of uint32. Each bit of the argument changes each bit of the result with a probability near 1/2.

    The multipliers are those of "lowbias32", found by search: C. Wellons, "Prospecting for Hash Functions", 2018.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def key_of(*words: jax.Array | int) -> jax.Array:
    """One uint32 word that depends on all words and on their order."""
    key = jnp.uint32(0x9E3779B9)
    for word in words:
        key = mixed(key ^ mixed(jnp.asarray(word, jnp.uint32)) + jnp.uint32(0x85EBCA6B))
    return key


def bits_at(key: jax.Array, places: Sequence[tuple[int, jax.Array]]) -> jax.Array:
    """32 bits for each element of an array.

    Args:
      key: uint32.
      places: for each axis of the whole array its number and the indices of the elements along it. The indices are integers in a
        shape that broadcasts to the result's.

    Returns:
      uint32, of the shape to which the indices broadcast.
    """
    # One hash for each index along an axis, and for each element a hash of the sum of these.
    hashes = [mixed(places_along.astype(jnp.uint32) ^ key_of(key, axis)) for axis, places_along in places]
    return mixed(sum((not_fused(h) if h.ndim > 1 and h.size == h.shape[-1] else h for h in hashes), key))


def places_of(shape: tuple[int, ...], rank: int | None = None) -> list[tuple[int, jax.Array]]:
    """The indices of all elements of an array, in the form that `bits_at` takes."""
    rank = len(shape) if rank is None else rank
    return [(axis, places_along(axis, size, rank)) for axis, size in enumerate(shape)]


def places_along(axis: int, size: int, rank: int) -> jax.Array:
    """0 to size - 1 along one axis of an array of rank `rank`, whose other axes have length one."""
    return jax.lax.broadcasted_iota(jnp.int32, tuple(size if a == axis else 1 for a in range(rank)), axis)


def can_round_to(dtype: jnp.dtype) -> bool:
    """Whether `rounded` supports a dtype."""
    return dtype in (jnp.bfloat16, jnp.float16)


def rounded(x: jax.Array, bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """One of the two neighbours of each number in a dtype. The nearer neighbour has the higher probability.

        P(upper) = (x - lower) / (upper - lower)

    So a number that the dtype represents does not change, and the mean over `bits` is `x`. A number above the largest number of
    the dtype, but below the next power of two, becomes the largest number. From that power of two on, the result is infinite, as
    for a cast.

    Args:
      x: float32, finite. The result is not defined for other values.
      bits: uint32, of the same shape.
      dtype: bfloat16 or float16.

    Returns:
      float32 numbers that the dtype represents.
    """
    return _to_bfloat16(x, bits) if dtype == jnp.bfloat16 else _to_float16(x, bits)


def _to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Adds 16 random bits to the 16 bits that are cut off. A carry is a step to the next number, for any exponent and sign."""
    word = jax.lax.bitcast_convert_type(x, jnp.uint32)
    up = (word + (bits >> 16)) & _UPPER
    up = jnp.where((up & _EXPONENT) == _EXPONENT, word & _UPPER, up)
    return jax.lax.bitcast_convert_type(up, jnp.float32)


def _to_float16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Rounds in units of the last place. The unit is constant below the smallest normal number, 2^-14."""
    size = jnp.abs(x)
    power = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(size, jnp.uint32) & _EXPONENT, jnp.float32)
    unit = jnp.maximum(power, jnp.float32(2.0**-14)) * jnp.float32(2.0**-10)
    lower = jnp.floor(size / unit)
    uniform = (bits >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)
    new = (lower + (uniform < size / unit - lower).astype(jnp.float32)) * unit
    new = jnp.where((new == 65536.0) & (size < 65536.0), jnp.float32(65504.0), new)
    return jnp.copysign(new, x)


def rounded_update(update: jax.Array, param: jax.Array, bits: jax.Array) -> jax.Array:
    """The float32 update for which `(param + update).astype(param.dtype)` is the stochastically rounded sum.

    This sum is exact. If the result is not 2^16 times smaller than the parameter, then their difference is a float32 number, or
    its rounding error is far below the last place of the result. If the result is that much smaller, then the float32 sum has no
    digits to round, and the returned update is the given one. An update of zero does not change, also -0. An update whose sum is
    infinite or NaN does not change either, because the difference is not finite then.
    """
    update, wide = update.astype(jnp.float32), param.astype(jnp.float32)
    landing = rounded(wide + update, bits, param.dtype) - wide
    return jnp.where((update == 0) | ~jnp.isfinite(landing), update, landing)
