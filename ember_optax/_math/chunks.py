"""Going over the vocabulary of a table in chunks of its rows: the loop, and chunks read and written. Arrays only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_chunks(step: Callable[[Any, int, Any], Any], carry: Any, size: int, chunk: int) -> Any:
    """`carry = step(start, count, carry)` for every chunk of a vocabulary: a loop over the whole ones, then what remains.

    Large arrays belong into the carry, which is a barrier: XLA on CPU converts a bfloat16 table to float32 as a whole before the
    loop, if it can see that each turn converts a part.
    """

    def body(i, carry):
        return jax.lax.optimization_barrier(step(i * chunk, chunk, carry))

    whole = size // chunk
    if whole == 1:
        carry = body(0, carry)
    elif whole:
        carry = jax.lax.fori_loop(0, whole, body, carry)
    rest = size - whole * chunk
    return step(whole * chunk, rest, carry) if rest else carry


def tokens_from(start: Any, count: int) -> jax.Array:
    """`count` tokens from `start` on."""
    return start + jax.lax.iota(jnp.int32, count)


def chunk_of(table_VxD: jax.Array, start: Any, count: int, token_axis: int, dtype: Any, lowest: jax.Array) -> jax.Array:
    """`count` rows of a head from `start` on, as they are multiplied; `lowest` is that of the labels."""
    chunk_CxD = take_chunk(table_VxD, start, count, token_axis)
    if chunk_CxD.dtype == jnp.float32:
        chunk_CxD = jax.lax.platform_dependent(chunk_CxD, start, lowest, tpu=_times_one, default=_unchanged)
    return chunk_CxD if dtype is None else chunk_CxD.astype(dtype)


def _times_one(chunk_CxD: jax.Array, start: Any, lowest: jax.Array) -> jax.Array:
    """The chunk, times a number that is one because no label is negative.

    A TPU multiplies float32 in bfloat16, and its compiler casts the whole table before the loop where it sees that each turn
    casts a part: 576 MiB for 262144 x 1152 (libtpu 0.0.42), barriers or not. A factor that depends on data and on the turn cannot
    be moved out, nor a cast past it.
    """
    return chunk_CxD * jnp.where(lowest == -1 - start, 0.0, 1.0).astype(chunk_CxD.dtype)


def _unchanged(chunk_CxD: jax.Array, start: Any, lowest: jax.Array) -> jax.Array:
    del start, lowest
    return chunk_CxD


def lowest_label(labels_N: jax.Array) -> jax.Array:
    return jnp.min(labels_N, initial=0)


def take_chunk(table_VxD: jax.Array, start: Any, count: int, token_axis: int) -> jax.Array:
    """`count` rows of a table from `start` on."""
    return jax.lax.dynamic_slice_in_dim(table_VxD, start, count, token_axis)


def put_chunk(table_VxD: jax.Array, chunk_CxD: jax.Array, start: Any, token_axis: int) -> jax.Array:
    """The table with other rows from `start` on, in its dtype."""
    return jax.lax.dynamic_update_slice_in_dim(table_VxD, chunk_CxD.astype(table_VxD.dtype), start, token_axis)
