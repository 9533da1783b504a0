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
    """The rows less their weighted mean."""
    mean = jnp.sum(share(rows) * rows.x, rows.token, keepdims=True)
    return rows._replace(x=jnp.where(rows.weight > 0, rows.x - mean, 0))


def share(rows: Rows) -> jax.Array:
    """Weights that add up to one; NaN if no token takes part. The largest first, so that no sum of counts overflows."""
    scaled = rows.weight / jnp.max(rows.weight)
    return scaled / jnp.sum(scaled)


def square_norms(rows: Rows) -> jax.Array:
    """The squared norm of each row, with the rank of the table."""
    return sum_of_squares(rows.x, rows.features)


def sum_of_squares(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sums of squares over axes, kept with length one; on a CPU long ones in blocks, which is faster and rounds less."""
    if x.dtype == jnp.float64:
        return jnp.sum(jnp.square(x), axes, keepdims=True)
    on_cpu, elsewhere = (functools.partial(form, axes=axes) for form in (cpu_mean_square, mean_square))
    return jax.lax.platform_dependent(x, cpu=on_cpu, default=elsewhere) * math.prod(x.shape[axis] for axis in axes)


def norms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Norms along axes, kept with length one, also of numbers whose squares leave float32."""
    largest = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    scaled = x / jnp.where(largest == 0, 1, largest)
    return largest * jnp.sqrt(jnp.sum(jnp.square(scaled), axes, keepdims=True))


def unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """An array over its norm along axes; zeros stay zeros."""
    # In units of the largest number, because squares of small and of large ones leave float32.
    largest = jnp.max(jnp.abs(x), axes, keepdims=True)
    scaled = x / jnp.where(largest == 0, 1, largest)
    norm = jnp.sqrt(sum_of_squares(scaled, axes))
    return scaled / jnp.where(norm == 0, 1, norm)
