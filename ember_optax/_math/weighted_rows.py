"""The rows of a table with their weights: what geometry measures, and what some regularizers differentiate."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .mean_square import compute_dtype, cpu_mean_square, mean_square


class Rows(NamedTuple):
    """The rows of a table, in the table's own layout: a (D, V) head is not transposed, and features are not flattened.

    Attributes:
      x: float32 or float64, zero in the rows of tokens that do not take part.
      weight: of each token, with the rank of `x` and features of length one.
      token: the axis that counts the tokens.
    """

    x: jax.Array
    weight: jax.Array
    token: int

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.x.ndim) if axis != self.token)


def rows_of(table: jax.Array, token: int, centered: bool = False, weights: jax.Array | None = None) -> Rows:
    """The rows of an array whose arguments were checked."""
    x = table.astype(compute_dtype(table))
    shape = tuple(size if axis == token else 1 for axis, size in enumerate(table.shape))
    if weights is None:
        rows = Rows(x, jnp.ones(shape, x.dtype), token)
    else:
        weight = weights.astype(x.dtype).reshape(shape)
        # Not a product: a row of NaN that does not take part must not be seen.
        rows = Rows(jnp.where(weight > 0, x, 0), weight, token)
    return centered_rows(rows) if centered else rows


def centered_rows(rows: Rows) -> Rows:
    """The rows less their weighted mean.

    A row that is near to the mean keeps its digits: something near to the mean is subtracted first, then the mean of what
    remains. That something is the row of a token with half of the weight, if there is one. Otherwise it is the mean itself,
    and where all rows hold one number that number, so that equal rows become zeros.
    """
    p_V1, takes_part = share(rows), rows.weight > 0
    heaviest_V1 = first_largest(rows.weight)
    of_heaviest = jnp.sum(jnp.where(heaviest_V1, rows.x, 0), rows.token, keepdims=True)
    low = jnp.min(jnp.where(takes_part, rows.x, jnp.inf), rows.token, keepdims=True)
    high = jnp.max(jnp.where(takes_part, rows.x, -jnp.inf), rows.token, keepdims=True)
    mean = jnp.clip(jnp.sum(p_V1 * rows.x, rows.token, keepdims=True), low, high)
    near = jnp.where(jnp.max(p_V1) >= 0.5, of_heaviest, mean)
    shifted = jnp.where(takes_part, rows.x - near, 0)
    rest = jnp.sum(p_V1 * shifted, rows.token, keepdims=True)
    return rows._replace(x=jnp.where(takes_part, shifted - rest, 0))


def larger_unit(unit_V: jax.Array, x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For sums of squares of rows that come one after the other: a power of two for each row, near its largest number so far.

    Args:
      unit_V: the units so far, zero before a row had a number that is not zero.
      x: the next rows.
      axes: the feature axes of `x`.

    Returns:
      The units that hold `x` too, what to multiply `x` with, and what to multiply a number in the old units with.
    """
    largest_V = jnp.max(jnp.abs(x), axes)
    unit_V, before_V = jnp.maximum(unit_V, jnp.where(largest_V == 0, 0, power_of_two(largest_V))), unit_V
    over_unit_V = 1 / jnp.where(unit_V == 0, 1, unit_V)
    return unit_V, over_unit_V, before_V * over_unit_V


def share(rows: Rows) -> jax.Array:
    """Weights that add up to one; NaN if no token takes part. Scaled first, so that no sum of counts overflows."""
    scaled = rows.weight / power_of_two(jnp.max(rows.weight))
    return scaled / jnp.sum(scaled)


def first_largest(x: jax.Array) -> jax.Array:
    """A mask of the first one of the largest numbers of an array that has one axis longer than one.

    Not by `jnp.argmax`, for which XLA gathers an array that is split over devices.
    """
    place = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)
    return place == jnp.min(jnp.where(x == jnp.max(x), place, x.size))


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two nearest to positive numbers, within 2^-126 and 2^126 in float32; one for zero.

    To divide by it rounds nothing. Its reciprocal is a normal number: XLA multiplies with reciprocals, and that of the largest
    float32 would be zero (jax 0.10.2 on CPU).
    """
    exponent_bits, most = (11, 2.0**1022) if x.dtype == jnp.float64 else (8, 2.0**126)
    return jnp.where(x > 0, jax.lax.reduce_precision(jnp.clip(x, 1 / most, most), exponent_bits, 0), 1)


def sum_of_squares(x: jax.Array, axes: tuple[int, ...], factor: float = 1.0) -> jax.Array:
    """Sums of `(factor x)^2` over axes, kept with length one; on a CPU long ones in blocks, which is faster and rounds less."""
    if x.dtype == jnp.float64:
        return jnp.sum(jnp.square(factor * x), axes, keepdims=True)
    on_cpu, elsewhere = (functools.partial(form, axes=axes, factor=factor) for form in (cpu_mean_square, mean_square))
    return jax.lax.platform_dependent(x, cpu=on_cpu, default=elsewhere) * math.prod(x.shape[axis] for axis in axes)


def norms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Norms along axes, kept with length one, also of numbers whose squares leave float32: from 1e-32 to 1e32.

    From two sums of squares, of larger and of smaller numbers: below one the first has all digits, above one the second.
    (Dividing each row by its largest number first, a (512, 131072) head took 2.1 s on a CPU, and a sum of squares 0.04 s.)
    """
    factor = 2.0**400 if x.dtype == jnp.float64 else 2.0**46
    of_small, of_large = (jnp.sqrt(sum_of_squares(x, axes, by)) / by for by in (factor, 1 / factor))
    return jnp.where(of_small < 1, of_small, of_large)


def unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """An array over its norm along axes; zeros stay zeros."""
    return x * over_norm(norms(x, axes))


def over_norm(norm: jax.Array) -> jax.Array:
    """The reciprocal of norms: one for zero, and NaN above 1e32, where norms are infinite or reciprocals zero."""
    return jnp.where(norm > 1 / float(jnp.finfo(norm.dtype).tiny), jnp.nan, 1 / jnp.where(norm == 0, 1, norm))
