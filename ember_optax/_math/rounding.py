"""Stochastic rounding to 16 bits, with bits from a counter in the place of a stream: arrays only.

The bits of an element are a hash of a key and of its place in the whole array. So they are the same in whatever part of an array
an element is seen (rows of a batch, one device's part, a chunk), and nothing is stored or drawn in an order.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# NumPy's, because arrays of JAX would start a backend on import.
_EXPONENT = np.uint32(0x7F800000)
_UPPER = np.uint32(0xFFFF0000)


def mixed(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which each bit of the argument changes each bit of the result with a probability near 1/2.

    The multipliers of "lowbias32", found by search: C. Wellons, "Prospecting for Hash Functions", 2018.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def key_of(*words: jax.Array | int) -> jax.Array:
    """One word of uint32 from several, in their order."""
    key = jnp.uint32(0x9E3779B9)
    for word in words:
        key = mixed(key ^ mixed(jnp.asarray(word, jnp.uint32)) + jnp.uint32(0x85EBCA6B))
    return key


def bits_at(key: jax.Array, places: Sequence[tuple[int, jax.Array]]) -> jax.Array:
    """32 bits for each element of an array.

    Args:
      key: uint32.
      places: for each axis of the whole array its number and the places of the elements along it, integers in a shape that
        broadcasts to the result's.

    Returns:
      uint32, of the shape to which the places broadcast.
    """
    # One hash for each place along an axis, and one for each element, of their sum.
    hashes = [mixed(places_along.astype(jnp.uint32) ^ key_of(key, axis)) for axis, places_along in places]
    return mixed(sum((_apart(h) if h.ndim > 1 and h.size == h.shape[-1] else h for h in hashes), key))


def _apart(hashes: jax.Array) -> jax.Array:
    """The same, as an array of its own: XLA does not join a reduction with what follows, as it does whatever is behind a barrier.

    The innermost loop would hash its place again for every element: on a CPU 2.5 times the time of an update to the nearest, and
    so 1.6 times (65536 x 640 in bfloat16). The hashes of other axes are hoisted out of it.
    """
    return jnp.sum(jnp.stack([hashes, jnp.zeros_like(hashes)]), 0, dtype=jnp.uint32)


def places_of(shape: tuple[int, ...], rank: int | None = None) -> list[tuple[int, jax.Array]]:
    """The places of all elements of an array, for `bits_at`."""
    rank = len(shape) if rank is None else rank
    return [(axis, places_along(axis, size, rank)) for axis, size in enumerate(shape)]


def places_along(axis: int, size: int, rank: int) -> jax.Array:
    """0 to size - 1 along one axis of `rank`, with length one along all others."""
    return jax.lax.broadcasted_iota(jnp.int32, tuple(size if a == axis else 1 for a in range(rank)), axis)


def can_round_to(dtype: jnp.dtype) -> bool:
    """Whether `rounded` knows a dtype."""
    return dtype in (jnp.bfloat16, jnp.float16)


def rounded(x: jax.Array, bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """One of the two neighbours of each number that have this dtype, the nearer one with the higher probability.

        P(upper) = (x - lower) / (upper - lower)

    So a number of this dtype stays, and the mean over `bits` is `x`. A number beyond the largest of the dtype, but below the
    power of two that would follow it, becomes the largest. From there on it is what a cast makes of it, infinite.

    Args:
      x: float32, finite (of others the result is not defined).
      bits: uint32, of the same shape.
      dtype: bfloat16 or float16.

    Returns:
      Numbers of this dtype, in float32.
    """
    return _to_bfloat16(x, bits) if dtype == jnp.bfloat16 else _to_float16(x, bits)


def _to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Adds 16 random bits below the 16 that remain: a carry is the step to the next number, whatever the exponent or the sign."""
    word = jax.lax.bitcast_convert_type(x, jnp.uint32)
    up = (word + (bits >> 16)) & _UPPER
    up = jnp.where((up & _EXPONENT) == _EXPONENT, word & _UPPER, up)
    return jax.lax.bitcast_convert_type(up, jnp.float32)


def _to_float16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """In units of the last place, which below the smallest normal number, 2^-14, remains the same."""
    size = jnp.abs(x)
    power = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(size, jnp.uint32) & _EXPONENT, jnp.float32)
    unit = jnp.maximum(power, jnp.float32(2.0**-14)) * jnp.float32(2.0**-10)
    lower = jnp.floor(size / unit)
    uniform = (bits >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)
    new = (lower + (uniform < size / unit - lower).astype(jnp.float32)) * unit
    new = jnp.where((new == 65536.0) & (size < 65536.0), jnp.float32(65504.0), new)
    return jnp.copysign(new, x)


def rounded_update(update: jax.Array, param: jax.Array, bits: jax.Array) -> jax.Array:
    """The update, in float32, with which `(param + update).astype(param.dtype)` is the sum rounded stochastically.

    It lands exactly. Where the result is not 2^16 times smaller than the parameter, the difference of both is a float32, or is
    rounded far below the last place of the result. Where it is, the sum of a float32 and the parameter has no digits left to be
    rounded, and the update is the one that was given. An update of zero stays what it is, also -0, and so does one whose sum is
    infinite or NaN, for then the difference is.
    """
    update, wide = update.astype(jnp.float32), param.astype(jnp.float32)
    landing = rounded(wide + update, bits, param.dtype) - wide
    return jnp.where((update == 0) | ~jnp.isfinite(landing), update, landing)
