"""The mean of squares over some axes of an array: the only reduction of the table's size, and where the time goes.

XLA fuses it with the square. On a CPU it reduces over leading axes at a fraction of memory speed, and the slower the longer the
rows that remain: a 1024 x 131072 gradient over its first axis in 0.7 s, where reading it takes 0.02 s (jax 0.10.2, two cores).
Adding up blocks of rows runs at memory speed for every shape. Over a long last axis it uses one core; parts of the rows are
summed by all of them. benchmarks/README.md has the figures.
"""

import math

import jax
import jax.numpy as jnp

from .mesh import on_one_device

# Elements of one block: an accumulator that stays in the cache. 2^16 to 2^18 were equally fast within the noise.
_BLOCK = 1 << 17
# And at most this part of the array, so that the temporaries stay below 1 % of it.
_PART = 512
# Blocks added up in one step of the loop, pairwise: fewer rounding errors and fewer passes over the accumulator than one by one.
_UNROLLED = 8
# Below this many elements an array fits into the cache, and the plain reduction is as fast.
_SMALL = 1 << 20
# Rows longer than this are summed in parts, of a length that divides theirs.
_LONG = 1 << 15
# Shorter parts are slower than whole rows.
_SHORT = 64


def mean_square(x: jax.Array, axes: tuple[int, ...], factor: float = 1.0) -> jax.Array:
    """`mean((factor x)^2)` over `axes`, kept with length one; squared in float32 whatever the dtype of `x`. Returns float32."""
    return jnp.mean(_square(x, factor), axes, keepdims=True).astype(jnp.float32)


def cpu_mean_square(x: jax.Array, axes: tuple[int, ...], factor: float = 1.0) -> jax.Array:
    """`mean_square` in the form that is fast on a CPU for this shape.

    Slices of an array that is sharded by GSPMD would gather it, so blocks only on one device; on several, the plain reduction.
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

    Seen as (outer, rows, inner) with the sum over rows, a block is (outer, k, inner). Whole blocks are added to an accumulator of
    that shape, whose k rows are added up at the end, together with the less than k rows that remain.
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

    # The array is carried behind barriers, because XLA otherwise converts a whole bfloat16 array to float32 before the loop.
    blocks, many = rows // k, rows // (k * _UNROLLED)
    carry = x_OxRxI, jnp.zeros((x_OxRxI.shape[0], k, x_OxRxI.shape[2]), compute_dtype(x))
    carry = jax.lax.fori_loop(0, many, add_many, carry)
    x_OxRxI, total = jax.lax.fori_loop(many * _UNROLLED, blocks, add_one, carry)
    summed = jnp.sum(total, 1) + jnp.sum(squares(x_OxRxI, blocks * k, rows - blocks * k), 1)
    return (summed / rows).astype(jnp.float32).reshape(*before, *(1 for _ in axes), *after)


def parted_mean_square(x: jax.Array, axes: tuple[int, ...], part: int, factor: float = 1.0) -> jax.Array:
    """`mean_square` over the last axes, first over parts of `part` elements, which must divide the length of the rows."""
    length = math.prod(x.shape[axis] for axis in axes)
    # Behind the barrier the array has many short rows. Without it XLA sees through the reshape.
    parts_PxN = jax.lax.optimization_barrier(x.reshape(x.size // part, part))
    sums_P = jax.lax.optimization_barrier(jnp.sum(_square(parts_PxN, factor), 1))
    summed = jnp.sum(sums_P.reshape(x.size // length, length // part), 1)
    return (summed / length).astype(jnp.float32).reshape(*x.shape[: axes[0]], *(1 for _ in axes))


def compute_dtype(x: jax.Array):
    """float32, or float64 for float64."""
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
    """The largest divisor of a number that is not above `largest`; the number itself if all such divisors are tiny."""
    divisor = next(candidate for candidate in range(largest, 0, -1) if number % candidate == 0)
    return divisor if divisor >= _SHORT else number
