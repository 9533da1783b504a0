"""A vocabulary in chunks: a loop over them, and the rows of one. Arrays only."""

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


def take_chunk(table_VxD: jax.Array, start: Any, count: int, token_axis: int) -> jax.Array:
    """`count` rows of a table from `start` on."""
    return jax.lax.dynamic_slice_in_dim(table_VxD, start, count, token_axis)


def put_chunk(table_VxD: jax.Array, chunk_CxD: jax.Array, start: Any, token_axis: int) -> jax.Array:
    """The table with other rows from `start` on, in its dtype."""
    return jax.lax.dynamic_update_slice_in_dim(table_VxD, chunk_CxD.astype(table_VxD.dtype), start, token_axis)
