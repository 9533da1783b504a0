"""Rows before the first step: normal numbers from a hash of the seed, the id and the place in the row."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from .._math.rounding import bits_at, key_of
from ._layouts.collectives import over_devices
from ._update import places_of_rows

# Stochastic rounding hashes a name as its third word, and this is not the checksum of a name that is likely.
_WORD = 0x1D0FA5C3


@functools.partial(jax.jit, static_argnames=("seed", "std", "dtype", "mesh"))
def with_initial_rows(
    rows: jax.Array, ids: jax.Array, last: jax.Array, *, seed: int, std: float, dtype: jnp.dtype, mesh: Mesh | None
) -> jax.Array:
    """The rows, in float32 at least, with initial values for those that no step has written."""
    on_each = functools.partial(_with_initial_rows, seed=seed, std=std, dtype=dtype)
    return over_devices(mesh, on_each)(rows, ids, last)


def _with_initial_rows(rows: jax.Array, ids: jax.Array, last: jax.Array, *, seed: int, std: float, dtype: jnp.dtype) -> jax.Array:
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    if not std:
        return rows

    def drawn(rows: jax.Array) -> jax.Array:
        new = (std * _normal(ids, rows.shape, seed)).astype(dtype).astype(rows.dtype)
        return jnp.where((last == 0).reshape(-1, *(1 for _ in rows.shape[1:])), new, rows)

    return jax.lax.cond(jnp.any(last == 0), drawn, lambda rows: rows, rows)


def _normal(ids: jax.Array, shape: tuple[int, ...], seed: int) -> jax.Array:
    bits = bits_at(key_of(seed, _WORD), places_of_rows(ids, shape))
    # The middles of 2^23 equal parts of (-1, 1), all of which float32 represents.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-22) - 1.0
    return jnp.sqrt(jnp.float32(2.0)) * jax.lax.erf_inv(uniform)
