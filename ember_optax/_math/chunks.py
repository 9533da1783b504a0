"""A loop over the chunks of a vocabulary, and reads and writes of the rows of one chunk. Arrays only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .mesh import varying_axes


def over_chunks(step: Callable[[Any, int, Any], Any], carry: Any, size: int, chunk: int) -> Any:
    """Runs `carry = step(start, count, carry)` for every chunk: a loop over the full chunks, then the shorter last one.

    Returns the last carry. Pass large arrays in the carry, which is behind a barrier. Otherwise XLA on CPU sees that each
    iteration converts a part of a bfloat16 table, and converts the whole table to float32 before the loop.
    """

    def body(i, carry):
        return behind_barriers(step(i * chunk, chunk, carry))

    whole = size // chunk
    if whole == 1:
        carry = body(0, carry)
    elif whole:
        carry = jax.lax.fori_loop(0, whole, body, carry)
    rest = size - whole * chunk
    return step(whole * chunk, rest, carry) if rest else carry


def behind_barriers(tree: Any) -> Any:
    """The tree behind one barrier, or inside `jax.shard_map` behind one for each set of varying axes.

    A barrier types all of its results as varying over the axes of all of them.
    """
    leaves, treedef = jax.tree.flatten(tree)
    axes = list(map(varying_axes, leaves))
    for group in dict.fromkeys(axes):  # in a fixed order
        places = [place for place, of in enumerate(axes) if of == group]
        for place, leaf in zip(places, jax.lax.optimization_barrier([leaves[place] for place in places]), strict=True):
            leaves[place] = leaf
    return treedef.unflatten(leaves)


def tokens_from(start: Any, count: int) -> jax.Array:
    """The `count` token ids that begin with `start`, int32."""
    return start + jax.lax.iota(jnp.int32, count)


def take_chunk(table_VxD: jax.Array, start: Any, count: int, token_axis: int) -> jax.Array:
    """The `count` rows of a table that begin with row `start`."""
    return jax.lax.dynamic_slice_in_dim(table_VxD, start, count, token_axis)


def put_chunk(table_VxD: jax.Array, chunk_CxD: jax.Array, start: Any, token_axis: int) -> jax.Array:
    """The table with the rows of a chunk written from row `start` on, in the table's dtype."""
    return jax.lax.dynamic_update_slice_in_dim(table_VxD, chunk_CxD.astype(table_VxD.dtype), start, token_axis)
