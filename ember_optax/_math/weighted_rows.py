"""The rows of a table with their weights. `geometry` measures them, and some regularizers differentiate with respect to them."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .mean_square import compute_dtype, mean_square
from .platform_forms import cpu_mean_square


class Rows(NamedTuple):
    """The rows of a table in its own layout. A (D, V) head is not transposed, and feature axes are not flattened.

    Attributes:
      x: float32 or float64, zero in the rows of tokens with weight zero.
      weight: the weight of each token, with the rank of `x` and feature axes of length one.
      token: the token axis.
    """

    x: jax.Array
    weight: jax.Array
    token: int

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.x.ndim) if axis != self.token)


def rows_of(table: jax.Array, token: int, centered: bool = False, weights: jax.Array | None = None) -> Rows:
    """The weighted rows of an array, centered if wanted. The caller has checked the arguments."""
    x = table.astype(compute_dtype(table))
    shape = tuple(size if axis == token else 1 for axis, size in enumerate(table.shape))
    if weights is None:
        rows = Rows(x, jnp.ones(shape, x.dtype), token)
    else:
        weight = weights.astype(x.dtype).reshape(shape)
        # `where` instead of a product, so that a row of NaN with weight zero becomes zero.
        rows = Rows(jnp.where(weight > 0, x, 0), weight, token)
    return centered_rows(rows) if centered else rows


def centered_rows(rows: Rows) -> Rows:
    """The rows minus their weighted mean.

    In two steps, so that rows near to the mean keep their digits: a row near to the mean first, then the mean of what remains.
    The first is the row of a token with half of the weight, if there is one, and else the mean as it was summed up. Then
    numbers below the last digit of the mean are rounding errors, and become zero: equal rows have no direction left.
    """
    p_V1, takes_part = share(rows), rows.weight > 0
    heaviest_1D = jnp.sum(jnp.where(first_largest(rows.weight), rows.x, 0), rows.token, keepdims=True)
    is_heavy = jnp.max(p_V1) >= 0.5
    near_1D = jnp.where(is_heavy, heaviest_1D, jnp.sum(p_V1 * rows.x, rows.token, keepdims=True))
    rest_1D = jnp.sum(p_V1 * jnp.where(takes_part, rows.x - near_1D, 0), rows.token, keepdims=True)
    last_digit_1D = jnp.where(is_heavy, 0, float(jnp.finfo(rows.x.dtype).eps) / 8 * jnp.abs(near_1D))
    x = rows.x - near_1D - rest_1D
    return rows._replace(x=jnp.where(takes_part & ~(jnp.abs(x) < last_digit_1D), x, 0))


def larger_unit(unit_V: jax.Array, x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The units of each row, for sums of squares over a sequence of tables.

    The unit of a row is a power of two near its largest element so far, so that squares stay in float32's range.

    Args:
      unit_V: the units so far. A unit is zero until the row has an element that is not zero.
      x: the next table.
      axes: the feature axes of `x`.

    Returns:
      The new units, the factor that converts `x` to the new units, and the factor that converts old units to new ones.
    """
    largest_V = jnp.max(jnp.abs(x), axes)
    unit_V, before_V = jnp.maximum(unit_V, jnp.where(largest_V == 0, 0, power_of_two(largest_V))), unit_V
    over_unit_V = 1 / jnp.where(unit_V == 0, 1, unit_V)
    return unit_V, over_unit_V, before_V * over_unit_V


def share(rows: Rows) -> jax.Array:
    """The weights divided by their sum; NaN if all are zero. They are scaled first, so that a sum of counts does not overflow."""
    scaled = rows.weight / power_of_two(jnp.max(rows.weight))
    return scaled / jnp.sum(scaled)


def first_largest(x: jax.Array) -> jax.Array:
    """A mask of the first of the largest elements. The array has one axis longer than one.

    It does not use `jnp.argmax`, for which XLA gathers a sharded array.
    """
    place = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)
    return place == jnp.min(jnp.where(x == jnp.max(x), place, x.size))


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two nearest to a positive number, in 2^-126 to 2^126 for float32; one for zero.

    A division by it is exact. The range is limited so that the reciprocal is a normal number: XLA multiplies with reciprocals,
    and flushes the reciprocal of the largest float32 to zero (jax 0.10.2 on CPU).
    """
    exponent_bits, most = (11, 2.0**1022) if x.dtype == jnp.float64 else (8, 2.0**126)
    return jnp.where(x > 0, jax.lax.reduce_precision(jnp.clip(x, 1 / most, most), exponent_bits, 0), 1)


def sum_of_squares(x: jax.Array, axes: tuple[int, ...], factor: float = 1.0) -> jax.Array:
    """Sums of `(factor x)^2` over axes, which are kept with length one.

    On a CPU, long sums are computed in blocks, which is faster and rounds less.
    """
    if x.dtype == jnp.float64:
        return jnp.sum(jnp.square(factor * x), axes, keepdims=True)
    on_cpu, elsewhere = (functools.partial(form, axes=axes, factor=factor) for form in (cpu_mean_square, mean_square))
    return jax.lax.platform_dependent(x, cpu=on_cpu, default=elsewhere) * math.prod(x.shape[axis] for axis in axes)


def norms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Norms along axes, which are kept with length one. They are right from 1e-32 to 1e32, where squares leave float32's range.

    They come from two sums of squares: of the numbers times a large factor, which is accurate for norms below one, and of the
    numbers times a small factor, which is accurate for norms above one. (For a (512, 131072) head on a CPU, dividing each row by
    its largest element first takes 2.1 s, and a sum of squares takes 0.04 s.)
    """
    factor = 2.0**400 if x.dtype == jnp.float64 else 2.0**46
    of_small, of_large = (jnp.sqrt(sum_of_squares(x, axes, by)) / by for by in (factor, 1 / factor))
    return jnp.where(of_small < 1, of_small, of_large)


def unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """An array divided by its norm along axes. Zeros stay zeros."""
    return x * over_norm(norms(x, axes))


def over_norm(norm: jax.Array) -> jax.Array:
    """The reciprocals of norms: one for zero, and NaN above 1e32, where norms become infinite or their reciprocals zero."""
    return jnp.where(norm > 1 / float(jnp.finfo(norm.dtype).tiny), jnp.nan, 1 / jnp.where(norm == 0, 1, norm))
