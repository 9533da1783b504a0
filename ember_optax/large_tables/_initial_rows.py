"""Rows before the first step: normal numbers from a hash of the seed, the id and the place in the row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .._math.rounding import bits_at, key_of
from ._checks import Options
from ._layouts.collectives import over_devices
from ._records import unpacked
from ._update import places_of_rows

# Stochastic rounding hashes a name as its third word, and this is not the checksum of a name that is likely.
_WORD = 0x1D0FA5C3


@functools.partial(jax.jit, static_argnames=("options", "mesh"))
def read_rows(words: jax.Array, ids: jax.Array, *, options: Options, mesh: Mesh | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The float32 rows of some records, with initial values if no step has written them, their `nu_token` and `last`."""
    return over_devices(mesh, functools.partial(_read_rows, options=options))(words, ids)


def _read_rows(words: jax.Array, ids: jax.Array, options: Options) -> tuple[jax.Array, jax.Array, jax.Array]:
    rows, nu_token, last = unpacked(words, options.shape[1:], options.dtype)
    rows = rows.astype(jnp.float32)
    if not options.std:
        return rows, nu_token, last
    unwritten = (last == 0) & (ids < np.uint32(options.shape[0]))  # not padding, which most batches have

    def drawn(rows: jax.Array) -> jax.Array:
        new = (options.std * _normal(ids, rows.shape, options.seed)).astype(options.dtype).astype(rows.dtype)
        return jnp.where(unwritten.reshape(-1, *(1 for _ in rows.shape[1:])), new, rows)

    return jax.lax.cond(jnp.any(unwritten), drawn, lambda rows: rows, rows), nu_token, last


def _normal(ids: jax.Array, shape: tuple[int, ...], seed: int) -> jax.Array:
    bits = bits_at(key_of(seed, _WORD), places_of_rows(ids, shape))
    # The middles of 2^23 equal parts of (-1, 1), all of which float32 represents.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-22) - 1.0
    return jnp.sqrt(jnp.float32(2.0)) * jax.lax.erf_inv(uniform)
