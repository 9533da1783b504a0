"""The mean of squares over some axes of an array. It is the only reduction over a whole table, and it takes most of the time.

XLA fuses the square into the reduction. On a CPU, XLA reduces over leading axes at a fraction of memory speed, and longer rows
are slower: it reduces a 1024 x 131072 gradient over its first axis in 0.7 s, while a read takes 0.02 s (jax 0.10.2, two cores).
A sum of blocks of rows runs at memory speed for every shape. Over a long last axis XLA uses one core. A sum over parts of the
rows uses all cores. benchmarks/README.md has the figures.
"""

import math

import jax
import jax.numpy as jnp

from .mesh import on_one_device

# Elements of one block, so that the accumulator stays in the cache. 2^16 to 2^18 were equally fast within the noise.
_BLOCK = 1 << 17
# A block is at most 1 / _PART of the array, so that the temporaries stay below 1 % of it.
_PART = 512
# One step of the loop adds this many blocks pairwise. It rounds less and passes over the accumulator less often than one by one.
_UNROLLED = 8
# A smaller array fits into the cache, and the plain reduction is as fast.
_SMALL = 1 << 20
# Longer rows are summed in parts, whose length divides that of the rows.
_LONG = 1 << 15
# Shorter parts are slower than whole rows.
_SHORT = 64


def mean_square(x: jax.Array, axes: tuple[int, ...], factor: float = 1.0) -> jax.Array:
    """`mean((factor x)^2)` over `axes`, which are kept with length one. Returns float32.

    Squares are computed in float32 for every dtype of `x` but float64.
    """
    return jnp.mean(_square(x, factor), axes, keepdims=True).astype(jnp.float32)


def cpu_mean_square(x: jax.Array, axes: tuple[int, ...], factor: float = 1.0) -> jax.Array:
    """`mean_square` in the form that is fast on a CPU for this shape.

    On several devices this is the plain reduction: GSPMD gathers a sharded array to take slices of it.
    """
    if x.size < _SMALL or not _adjacent(axes) or not on_one_device(x):
        return mean_square(x, axes, factor)
    if axes[-1] < x.ndim - 1:
        return blocked_mean_square(x, axes, min(_BLOCK, x.size // _PART), factor)
    if (length := math.prod(x.shape[axis] for axis in axes)) > _LONG:
        return parted_mean_square(x, axes, _divisor(length, _LONG // 2), factor)
    return mean_square(x, axes, factor)


def blocked_mean_square(x: jax.Array, axes: tuple[int, ...], block: int, factor: float = 1.0) -> jax.Array:
    """`mean_square` over adjacent axes before the last one, as a sum of blocks of about `block` elements.

    The array is seen as (outer, rows, inner), and the sum is over rows. A block is (outer, k, inner). Full blocks are added to an
    accumulator of that shape. At the end its k rows are added up, together with the fewer than k rows that remain.
    """
    before, after = x.shape[: axes[0]], x.shape[axes[-1] + 1 :]
    rows = math.prod(x.shape[axis] for axis in axes)
    x_OxRxI = x.reshape(math.prod(before), rows, math.prod(after))
    k = max(1, min(block // (x_OxRxI.shape[0] * x_OxRxI.shape[2]), rows))

    def squares(x_OxRxI, first, count):
        return _square(jax.lax.dynamic_slice_in_dim(x_OxRxI, first, count, axis=1), factor)

    def add_many(i, carry):
        x_OxRxI, total = carry
        total = total + _pairwise_sum([squares(x_OxRxI, (i * _UNROLLED + j) * k, k) for j in range(_UNROLLED)])
        return jax.lax.optimization_barrier(x_OxRxI), total

    def add_one(i, carry):
        x_OxRxI, total = carry
        return jax.lax.optimization_barrier(x_OxRxI), total + squares(x_OxRxI, i * k, k)

    # The carry holds the array behind barriers. Otherwise XLA converts a whole bfloat16 array to float32 before the loop.
    blocks, many = rows // k, rows // (k * _UNROLLED)
    carry = x_OxRxI, jnp.zeros((x_OxRxI.shape[0], k, x_OxRxI.shape[2]), compute_dtype(x))
    carry = jax.lax.fori_loop(0, many, add_many, carry)
    x_OxRxI, total = jax.lax.fori_loop(many * _UNROLLED, blocks, add_one, carry)
    summed = jnp.sum(total, 1) + jnp.sum(squares(x_OxRxI, blocks * k, rows - blocks * k), 1)
    return (summed / rows).astype(jnp.float32).reshape(*before, *(1 for _ in axes), *after)


def parted_mean_square(x: jax.Array, axes: tuple[int, ...], part: int, factor: float = 1.0) -> jax.Array:
    """`mean_square` over the last axes, first over parts of `part` elements. `part` must divide the length of the rows."""
    length = math.prod(x.shape[axis] for axis in axes)
    # Without the barrier XLA undoes the reshape to many short rows.
    parts_PxN = jax.lax.optimization_barrier(x.reshape(x.size // part, part))
    sums_P = jax.lax.optimization_barrier(jnp.sum(_square(parts_PxN, factor), 1))
    summed = jnp.sum(sums_P.reshape(x.size // length, length // part), 1)
    return (summed / length).astype(jnp.float32).reshape(*x.shape[: axes[0]], *(1 for _ in axes))


def compute_dtype(x: jax.Array):
    """The dtype for computing with an array: float64 for float64, else float32."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _square(x: jax.Array, factor: float) -> jax.Array:
    x = x.astype(compute_dtype(x))
    return jnp.square(x if factor == 1.0 else factor * x)


def _pairwise_sum(terms: list[jax.Array]) -> jax.Array:
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


def _adjacent(axes: tuple[int, ...]) -> bool:
    return bool(axes) and axes == tuple(range(axes[0], axes[-1] + 1))


def _divisor(number: int, largest: int) -> int:
    """The largest divisor of a number that is at most `largest`, or the number itself if that divisor is below _SHORT."""
    divisor = next(candidate for candidate in range(largest, 0, -1) if number % candidate == 0)
    return divisor if divisor >= _SHORT else number
