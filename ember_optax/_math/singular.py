"""The largest singular value of a table by power iteration, in the table's own layout."""

import functools
import math

import jax
import jax.numpy as jnp

from .axes import TableAxes
from .mean_square import compute_dtype
from .weighted_rows import norms


@functools.partial(jax.jit, static_argnums=(2, 3))
def power_iteration(table_VxD: jax.Array, vector_D: jax.Array, axes: TableAxes, iterations: int) -> jax.Array:
    """`v <- W^T W v / |W^T W v|` so many times, from a vector; from a fixed one where it is zero. Zero for a table of zeros.

    Of stacked tables each has a vector of its own. Each iteration reads the table twice.
    """
    x = table_VxD.astype(compute_dtype(table_VxD))
    vector_D = vector_D.astype(x.dtype)
    start = start_vector(x.shape, axes).astype(x.dtype)
    vector = jnp.where(_norm(vector_D, axes.batch, axes.feature) > 0, vector_D, start)

    def iterate(_, vector):
        # Both products as unit vectors: the second power of a table of 1e-20 vanishes, and a scaled copy would be a temporary.
        along = _unit(_times(x, vector, axes), axes.batch, axes.token)
        return _unit(_times_transposed(x, along, axes), axes.batch, axes.feature)

    return iterate(0, vector) if iterations == 1 else jax.lax.fori_loop(0, iterations, iterate, vector)


@functools.partial(jax.jit, static_argnums=2)
def square_along(table_VxD: jax.Array, vector_D: jax.Array, axes: TableAxes) -> jax.Array:
    """`|W v|^2`, of the shape of the batch axes: with the first right singular vector the square of the spectral norm."""
    along, tokens = _along(table_VxD, vector_D, axes)
    return jnp.sum(jnp.square(along), tokens)


@functools.partial(jax.jit, static_argnums=2)
def norm_along(table_VxD: jax.Array, vector_D: jax.Array, axes: TableAxes) -> jax.Array:
    """`|W v|`, also where its square leaves float32."""
    along, tokens = _along(table_VxD, vector_D, axes)
    return jnp.squeeze(norms(along, tokens), tokens)


def _along(table_VxD: jax.Array, vector_D: jax.Array, axes: TableAxes) -> tuple[jax.Array, tuple[int, ...]]:
    """`W v`, and which of its axes are tokens."""
    x = table_VxD.astype(compute_dtype(table_VxD))
    kept = sorted(axes.batch + axes.token)
    tokens = tuple(place for place, axis in enumerate(kept) if axis in axes.token)
    return _times(x, vector_D.astype(x.dtype), axes), tokens


def start_vector(shape: tuple[int, ...], axes: TableAxes) -> jax.Array:
    """A unit vector over the features that is the same in every program, in the layout of a table's feature statistic."""
    sizes = [shape[axis] for axis in axes.feature]
    drawn = jax.random.normal(jax.random.key(0), sizes, jnp.float32)
    kept = sorted(axes.batch + axes.feature)
    layout = [shape[axis] if axis in axes.feature else 1 for axis in kept]
    return jnp.broadcast_to((drawn / math.sqrt(max(1, math.prod(sizes)))).reshape(layout), [shape[axis] for axis in kept])


def _times(x: jax.Array, vector: jax.Array, axes: TableAxes) -> jax.Array:
    """`W v`, over batch and tokens."""
    return _product(x, vector, axes.batch + axes.feature, axes.batch + axes.token)


def _times_transposed(x: jax.Array, vector: jax.Array, axes: TableAxes) -> jax.Array:
    """`W^T u`, over batch and features."""
    return _product(x, vector, axes.batch + axes.token, axes.batch + axes.feature)


def _product(x: jax.Array, vector: jax.Array, of_vector: tuple[int, ...], kept: tuple[int, ...]) -> jax.Array:
    # By labels and not by a transposition: a (D, V) head would be copied.
    return jnp.einsum(x, range(x.ndim), vector, sorted(of_vector), sorted(kept), precision="highest")


def _unit(vector: jax.Array, batch: tuple[int, ...], others: tuple[int, ...]) -> jax.Array:
    """Each vector of a stack over its norm; zeros stay zeros."""
    norm = _norm(vector, batch, others)
    return vector / jnp.where(norm == 0, 1, norm)


def _norm(vector: jax.Array, batch: tuple[int, ...], others: tuple[int, ...]) -> jax.Array:
    """Of each vector of a stack, with its other axes of length one; the axes are those of the table."""
    kept = sorted(batch + others)
    return norms(vector, tuple(place for place, axis in enumerate(kept) if axis in others))
