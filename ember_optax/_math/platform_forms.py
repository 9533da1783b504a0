"""Forms that exist for one compiler: what XLA does with the plain form, and what is fast instead. Arrays only.

Reductions: XLA fuses the square into the reduction. On a CPU, XLA reduces over leading axes at a fraction of memory speed, and
longer rows are slower: it reduces a 1024 x 131072 gradient over its first axis in 0.7 s, while a read takes 0.02 s (jax 0.10.2,
two cores). A sum of blocks of rows runs at memory speed for every shape. Over a long last axis XLA uses one core. A sum over
parts of the rows uses all cores. benchmarks/README.md has the figures.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .axes import TableAxes
from .mean_square import compute_dtype, mean_square, square
from .mesh import mean_over, on_one_device

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


def batch_statistics(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two mean squares of one batch, in the form that moves the fewest bytes on each platform.

    No form writes anything of the gradient's size. The numbers are tables read and written by a step on 262144 x 1024 (XLA of jax
    0.10.2; docs/speed.md has the whole account):

        platform          form               tables   the other form
        TPU v5e, v5p, v6e both means at once 4.0      5.0: the barrier prevents one read for both means
        H100              both means at once 5        5: in any form, XLA reads the gradient once for each mean
        CPU               one after another  5        7 and a temporary table for `g^2`, in the time of 6 to 8 axpy instead of 2.1

    Returns:
      The gradient for the next pass, `mean_j g[i,j]^2` of shape (V, 1) and `mean_i g[i,j]^2` of shape (1, D).
    """
    one_by_one, at_once = (functools.partial(means, axes=axes) for means in (_means_one_by_one, _means_at_once))
    g_VxD, token_V1, feature_1D = jax.lax.platform_dependent(g_VxD, cpu=one_by_one, default=at_once)
    # These means come after the barriers: shard_map types every result of a barrier as varying over the mesh axes of all of them.
    token_V1 = mean_over(axes.feature_mesh, token_V1)
    feature_1D = mean_over(axes.token_mesh, feature_1D)
    return g_VxD, token_V1, feature_1D


def _means_at_once(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient and its two means. XLA may fuse both means into one read, and that read into the producer of the gradient.

    On several devices a barrier prevents the fusion with the producer. Without it, XLA keeps the whole gradient that was summed
    over the devices until its last reader has taken this device's shard. (A model in the shape of Llama 3 8B on 256 v5e has 6.9
    GB of temporaries on each device without the barrier, and 3.8 GB with it.)
    """
    if not on_one_device(g_VxD):
        g_VxD = jax.lax.optimization_barrier(g_VxD)
    return g_VxD, mean_square(g_VxD, axes.feature), mean_square(g_VxD, axes.token)


def _means_one_by_one(g_VxD: jax.Array, axes: TableAxes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient and its two means. Each pass reads the gradient behind its own barrier.

    Without the barriers, XLA on CPU writes `g^2` or a float32 copy of the gradient to memory and shares it among the passes.
    """
    token_V1 = cpu_mean_square(g_VxD, axes.feature)
    g_VxD, token_V1 = jax.lax.optimization_barrier((g_VxD, token_V1))
    feature_1D = cpu_mean_square(g_VxD, axes.token)
    g_VxD, feature_1D = jax.lax.optimization_barrier((g_VxD, feature_1D))
    return g_VxD, token_V1, feature_1D


def write_in_place(write: Callable[[jax.Array], jax.Array], table: jax.Array) -> jax.Array:
    """`write(table)`, which writes some rows of a donated table. On a CPU, `write` gets a bfloat16 table as uint16.

    `write` converts between numbers and what is stored by `read_as`. XLA on CPU (jax 0.10.2) makes two float32 copies of the
    whole table for a scatter of bfloat16, and copies the whole table for each chunk of bfloat16 that a loop writes. It copies a
    table of integers once. On TPU and GPU, writes of bfloat16 copy nothing, while a scatter of the bits would copy the table.
    docs/speed.md has the figures.
    """

    def write_bits(table: jax.Array) -> jax.Array:
        return read_as(write(read_as(table, jnp.dtype(jnp.uint16))), table.dtype)

    if table.dtype != jnp.bfloat16:
        return write(table)
    return jax.lax.platform_dependent(table, cpu=write_bits, default=write)


def read_as(array: jax.Array, dtype: Any) -> jax.Array:
    """The same bits as another dtype of the same size."""
    return array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)


def cast_in_loop(chunk_CxD: jax.Array, start: Any, lowest: jax.Array) -> jax.Array:
    """The chunk of a table that an iteration reads, so that a TPU casts this chunk and not the whole table.

    Args:
      chunk_CxD: the rows that begin with row `start`.
      start: depends on the iteration.
      lowest: the lowest label, at least zero.
    """
    if chunk_CxD.dtype != jnp.float32:
        return chunk_CxD
    return jax.lax.platform_dependent(chunk_CxD, start, lowest, tpu=times_one, default=lambda chunk_CxD, *_: chunk_CxD)


def times_one(chunk_CxD: jax.Array, start: Any, lowest: jax.Array) -> jax.Array:
    """The chunk times a factor that is always one, because no label is negative.

    A TPU multiplies float32 in bfloat16. Its compiler sees that each iteration casts a part of the table, and casts the whole
    table before the loop: 576 MiB for 262144 x 1152 (libtpu 0.0.42), with or without barriers. The compiler cannot move a factor
    that depends on data and on the iteration out of the loop, nor move the cast past the factor.
    """
    return chunk_CxD * jnp.where(lowest == -1 - start, 0.0, 1.0).astype(chunk_CxD.dtype)


def not_fused(hashes: jax.Array) -> jax.Array:
    """The same integers, as the result of a reduction that adds zeros, which XLA does not fuse with its consumers.

    A barrier is not enough, because XLA fuses what is behind it. If it fuses the hashes of the last axis, the innermost loop
    computes them again for every element. On a CPU that takes 2.5 times as long as an update that rounds to nearest, and this
    form takes 1.6 times as long (65536 x 640 in bfloat16). XLA hoists the hashes of the other axes out of the loop.
    """
    return jnp.sum(jnp.stack([hashes, jnp.zeros_like(hashes)]), 0, dtype=jnp.uint32)


def mean_of_moment(moment: jax.Array, axes: tuple[int, ...], *, stacked: bool) -> jax.Array:
    """The mean over axes, which are kept with length one.

    For stacked tables it is a product with equal weights. XLA on CPU (jax 0.10.2) fuses a large sum with the preconditioning that
    follows into one kernel, and writes its result, which is as large as the table, to memory. (For 4,096 tables of 64 x 64 the
    temporaries are 103 % of the tables with a sum, and 6 % with the product.)
    """
    if not (stacked and axes):
        return jnp.mean(moment, axes, keepdims=True)
    sizes = [moment.shape[axis] for axis in axes]
    weights = jnp.full(sizes, 1.0 / math.prod(sizes), moment.dtype)
    kept = [axis for axis in range(moment.ndim) if axis not in axes]
    return jnp.expand_dims(jnp.einsum(moment, range(moment.ndim), weights, axes, kept, precision="highest"), axes)


def cpu_mean_square(x: jax.Array, axes: tuple[int, ...], factor: float = 1.0) -> jax.Array:
    """`mean_square` in the form that is fast on a CPU for this shape.

    On several devices this is the plain reduction: GSPMD gathers a sharded array to take slices of it.
    """
    if x.size < _SMALL or not axes or axes != tuple(range(axes[0], axes[-1] + 1)) or not on_one_device(x):
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
        return square(jax.lax.dynamic_slice_in_dim(x_OxRxI, first, count, axis=1), factor)

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
    sums_P = jax.lax.optimization_barrier(jnp.sum(square(parts_PxN, factor), 1))
    summed = jnp.sum(sums_P.reshape(x.size // length, length // part), 1)
    return (summed / length).astype(jnp.float32).reshape(*x.shape[: axes[0]], *(1 for _ in axes))


def _pairwise_sum(terms: list[jax.Array]) -> jax.Array:
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


def _divisor(number: int, largest: int) -> int:
    """The largest divisor of a number that is at most `largest`, or the number itself if that divisor is below _SHORT."""
    divisor = next(candidate for candidate in range(largest, 0, -1) if number % candidate == 0)
    return divisor if divisor >= _SHORT else number
