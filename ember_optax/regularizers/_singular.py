"""The largest singular value of a table by power iteration, in the layout of the table."""

import functools
import math

import jax
import jax.numpy as jnp

from .._math.axes import TableAxes
from .._math.mean_square import compute_dtype
from .._math.weighted_rows import norms


@functools.partial(jax.jit, static_argnums=(2, 3))
def power_iteration(table_VxD: jax.Array, vector_D: jax.Array, axes: TableAxes, iterations: int) -> jax.Array:
    """The vector v after `iterations` steps of `v <- W^T W v / |W^T W v|`.

    The first v is `vector_D`, or a fixed vector if `vector_D` is zero. The result is zero for a table of zeros. Each table of a
    stack has its own vector. Each iteration reads the table twice.
    """
    x = table_VxD.astype(compute_dtype(table_VxD))
    vector_D = vector_D.astype(x.dtype)
    start = start_vector(x.shape, axes).astype(x.dtype)
    vector = jnp.where(_norm(vector_D, axes.batch, axes.feature) > 0, vector_D, start)

    def iterate(_, vector):
        # Each product is scaled to a unit vector, because W^T W of a table of 1e-20 underflows. A scaled copy of the table would
        # be a temporary.
        along = _unit(_times(x, vector, axes), axes.batch, axes.token)
        return _unit(_times_transposed(x, along, axes), axes.batch, axes.feature)

    return iterate(0, vector) if iterations == 1 else jax.lax.fori_loop(0, iterations, iterate, vector)


@functools.partial(jax.jit, static_argnums=2)
def square_along(table_VxD: jax.Array, vector_D: jax.Array, axes: TableAxes) -> jax.Array:
    """`|W v|^2`, in the shape of the batch axes: the square of the spectral norm if v is the first right singular vector."""
    along, tokens = _product_and_token_axes(table_VxD, vector_D, axes)
    return jnp.sum(jnp.square(along), tokens)


@functools.partial(jax.jit, static_argnums=2)
def norm_along(table_VxD: jax.Array, vector_D: jax.Array, axes: TableAxes) -> jax.Array:
    """`|W v|`, also if its square leaves float32's range."""
    along, tokens = _product_and_token_axes(table_VxD, vector_D, axes)
    return jnp.squeeze(norms(along, tokens), tokens)


def _product_and_token_axes(table_VxD: jax.Array, vector_D: jax.Array, axes: TableAxes) -> tuple[jax.Array, tuple[int, ...]]:
    """`W v`, and the token axes of this array."""
    x = table_VxD.astype(compute_dtype(table_VxD))
    kept = sorted(axes.batch + axes.token)
    tokens = tuple(place for place, axis in enumerate(kept) if axis in axes.token)
    return _times(x, vector_D.astype(x.dtype), axes), tokens


def start_vector(shape: tuple[int, ...], axes: TableAxes) -> jax.Array:
    """A fixed vector over the features with a norm of about one, in the layout of a table's feature statistic."""
    sizes = [shape[axis] for axis in axes.feature]
    drawn = jax.random.normal(jax.random.key(0), sizes, jnp.float32)
    kept = sorted(axes.batch + axes.feature)
    layout = [shape[axis] if axis in axes.feature else 1 for axis in kept]
    return jnp.broadcast_to((drawn / math.sqrt(max(1, math.prod(sizes)))).reshape(layout), [shape[axis] for axis in kept])


def _times(x: jax.Array, vector: jax.Array, axes: TableAxes) -> jax.Array:
    """`W v`, with the batch and token axes."""
    return _product(x, vector, axes.batch + axes.feature, axes.batch + axes.token)


def _times_transposed(x: jax.Array, vector: jax.Array, axes: TableAxes) -> jax.Array:
    """`W^T u`, with the batch and feature axes."""
    return _product(x, vector, axes.batch + axes.token, axes.batch + axes.feature)


def _product(x: jax.Array, vector: jax.Array, of_vector: tuple[int, ...], kept: tuple[int, ...]) -> jax.Array:
    # By labels of the axes, because a transposition would copy a (D, V) head.
    return jnp.einsum(x, range(x.ndim), vector, sorted(of_vector), sorted(kept), precision="highest")


def _unit(vector: jax.Array, batch: tuple[int, ...], others: tuple[int, ...]) -> jax.Array:
    """Each vector of a stack divided by its norm. Zeros stay zeros."""
    norm = _norm(vector, batch, others)
    return vector / jnp.where(norm == 0, 1, norm)


def _norm(vector: jax.Array, batch: tuple[int, ...], others: tuple[int, ...]) -> jax.Array:
    """The norm of each vector of a stack. `batch` and `others` are axes of the table, and `others` are kept with length one."""
    kept = sorted(batch + others)
    return norms(vector, tuple(place for place, axis in enumerate(kept) if axis in others))
