"""Random rows of a Gaussian with the mean and the covariance of a table's rows."""

import functools
import math

import jax
import jax.numpy as jnp

from .._math.axes import TableAxes
from .._math.mean_square import compute_dtype


def gaussian_rows(table: jax.Array, key: jax.Array, count: int, axes: TableAxes, covariance_scale: float) -> jax.Array:
    """`mean + sqrt(covariance_scale) * z C^(1/2)`, where z is standard normal and C is the covariance of the rows.

    Args:
      table: (V, D), or the layout that `axes` describes. Each table of a stack has its own mean and covariance.
      key: the key of the random numbers.
      count: k, the number of rows to draw.
      axes: the axes of the table.
      covariance_scale: the factor of C.

    Returns:
      An array in the table's layout with k rows instead of V, float32 (or float64).
    """
    (axis,) = axes.token
    noise = jax.random.normal(key, (*table.shape[:axis], count, *table.shape[axis + 1 :]), compute_dtype(table))
    of_one = functools.partial(
        _draw_for_one_table, axis=axis - sum(b < axis for b in axes.batch), scale=math.sqrt(covariance_scale)
    )
    for batch_axis in axes.batch:
        of_one = jax.vmap(of_one, in_axes=batch_axis, out_axes=batch_axis)
    return of_one(table, noise)


def _draw_for_one_table(table: jax.Array, noise: jax.Array, *, axis: int, scale: float) -> jax.Array:
    wide = table.astype(noise.dtype)
    mean = jnp.mean(wide, axis, keepdims=True)
    centered = wide - mean
    size = math.prod(table.shape[:axis] + table.shape[axis + 1 :])
    # The table is not reshaped: XLA would gather a table whose features are sharded.
    covariance = jnp.tensordot(centered, centered, (axis, axis), precision="highest").reshape(size, size) / table.shape[axis]
    values, vectors = jnp.linalg.eigh(covariance)  # not Cholesky, because C is singular with fewer rows than features
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
    first = jnp.moveaxis(noise, axis, 0)
    drawn = jnp.matmul(first.reshape(len(first), size), root, precision="highest").reshape(first.shape)
    return mean + scale * jnp.moveaxis(drawn, 0, axis)
