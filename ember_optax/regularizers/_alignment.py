"""A loss term that makes the rows of rare and frequent tokens look like samples of one distribution, or of two."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .._math.frequency import halves_by_count
from .._math.mean_square import compute_dtype
from .._math.mesh import in_auto_mode
from .._tree.inputs import checked_axis, checked_integer, checked_key, shown
from ..geometry._measured import checked_table
from ..row_sparse import RowSlice, lookup
from ._energy_distance import energy_coefficient
from ._frequency import checked_counts
from ._terms import times


class RareAndFrequent(NamedTuple):
    """Sampled ids of the rarer and of the more frequent half of the tokens that occur, (S,) int32 each, padded with -1."""

    rare: jax.Array
    frequent: jax.Array


def sampled_tokens(token_counts: Any, key: jax.Array, samples: int = 256) -> RareAndFrequent:
    r"""Draws tokens from the rarer and from the more frequent half of those that occur, uniformly and each at most once.

    .. math:: rare \subset \{i : 0 < c_i,\ rank_i < n / 2\}, \qquad frequent \subset \{i : 0 < c_i,\ rank_i \ge n / 2\}

    where the n tokens with a count above zero have the ranks 0 ... n - 1 by count, and for equal counts by id. The middle token
    of an odd n is rare, as in `geometry.report`. O(V log V) on vectors over tokens.

    Args:
      token_counts: (V,), how often each token occurs, in a corpus or streamed (`updated_counts`).
      key: the key of the draw, a new one for each step, such as `jax.random.fold_in(key, step)`.
      samples: S, the number of tokens from each half. If a half has fewer tokens, the remaining ids are -1.

    Returns:
      `RareAndFrequent`. In row-sparse steps, declare both for the table.

    Raises:
      TypeError: `token_counts` are not numbers, `key` is not a key, or `samples` is not an integer.
      ValueError: `token_counts` is not a vector, or `samples` is below 2 or above V.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> sample = regularizers.sampled_tokens(jnp.array([9, 0, 1, 2, 7]), jax.random.key(0), samples=2)
      >>> print(sorted(sample.rare.tolist()), sorted(sample.frequent.tolist()))
      [2, 3] [0, 4]

    References:
      docs/regularizers.md
    """
    counts_V = checked_counts(token_counts, "token_counts")
    size = checked_integer(samples, "samples", 256)
    if not 2 <= size <= counts_V.size:
        raise ValueError(
            f"samples must be in 2 to the number of tokens, {counts_V.size}, got {size}; pass for example 256: a distribution is "
            f"compared by pairs."
        )
    key = checked_key(key)

    def draw(counts_V, key):
        # In most programs the counts are a constant, and XLA takes seconds to sort a constant at compile time.
        counts_V = jax.lax.optimization_barrier(counts_V)
        noise_V = jax.random.uniform(key, counts_V.shape, jnp.float32, minval=0.5)
        drawn = [jax.lax.top_k(jnp.where(half_V, noise_V, 0), size) for half_V in halves_by_count(counts_V)]
        return tuple(jnp.where(score > 0, ids, -1).astype(jnp.int32) for score, ids in drawn)

    return RareAndFrequent(*in_auto_mode(draw, lambda: (PartitionSpec(),) * 2, counts_V, key))


def frequency_alignment(
    table: Any, sample: RareAndFrequent, coefficient: jax.typing.ArrayLike = 1.0, *, token_axis: int = 0
) -> jax.Array:
    r"""The distance between the distributions of rare and frequent rows, as the energy coefficient of a sample.

    .. math:: c \, \frac{2\, E|r - f| - E|r - r'| - E|f - f'|}{2\, E|r - f|}

    over rows r of rare and f of frequent tokens, with means over pairs of different tokens. It is in [0, 1] for large S: zero in
    expectation if both are samples of one distribution, and one if each is a single point and the points differ. The first term
    pulls rare rows to frequent rows. The other terms push rows of one kind apart, as in a contrastive loss, so nothing collapses.
    A positive coefficient aligns, and a negative one separates. The value does not depend on the table's scale. Unlike FRAGE, it
    trains no discriminator. The form with an energy distance is ours. It is simple and has no numbers to tune. Its measured
    effect on a loss is in docs/regularizers.md.

    O(S D + S^2). It reads only the sampled rows, so it works in row-sparse steps if the sampled ids are declared too. For a
    sharded table the 2 S rows are summed over the devices.

    Args:
      table: (V, D), or any layout with `token_axis`, or the `RowSlice` of `row_sparse.value_and_grad` with the sampled ids
        declared.
      sample: the result of `sampled_tokens`.
      coefficient: c, which may be traced.
      token_axis: the axis of the tokens. A `RowSlice` has its own.

    Returns:
      A scalar, float32 (float64 for float64). It is 0 if one of the halves has fewer than two tokens. By chance, it may be
      slightly below zero.

    Raises:
      TypeError: the table is not an array of real floats, the sample is not a pair of ids, or the coefficient is not a number.
      ValueError: an axis is out of range, the table is empty, or the coefficient is not finite.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> counts = jnp.arange(1, 101)
      >>> table = jax.random.normal(jax.random.key(0), (100, 16)) + jnp.where(counts < 50, 2.0, 0.0)[:, None]
      >>> sample = regularizers.sampled_tokens(counts, jax.random.key(1), samples=32)
      >>> print(f"{regularizers.frequency_alignment(table, sample):.1f}")
      0.4

    References:
      Gong et al., "FRAGE: frequency-agnostic word representation", https://arxiv.org/abs/1809.06858 (rare and popular words are
      far apart; it uses an adversary); Yu et al., "Rare tokens degenerate all tokens", https://arxiv.org/abs/2109.03127 (gates
      gradients of rare rows instead); the energy coefficient: Szekely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018;
      docs/regularizers.md
    """
    if not isinstance(table, RowSlice):
        table, token_axis = checked_table(table, token_axis)
    else:
        checked_axis(token_axis, table.shape)
    rare, frequent = _checked_sample(sample)
    dtype = compute_dtype(table)  # pyright: ignore[reportArgumentType]

    def rows(ids_S):
        found = lookup(table, ids_S, token_axis=token_axis)
        return found.reshape(ids_S.size, -1).astype(dtype)

    def distance(rare_SxD, frequent_SxD, is_rare_S, is_frequent_S):
        return energy_coefficient(rare_SxD, frequent_SxD, is_rare_S, is_frequent_S)

    value = in_auto_mode(distance, PartitionSpec, rows(rare), rows(frequent), rare >= 0, frequent >= 0)
    return times(coefficient, value)


def _checked_sample(sample: Any) -> tuple[jax.Array, jax.Array]:
    vectors = (
        isinstance(sample, tuple)
        and len(sample) == 2
        and all(hasattr(ids, "dtype") and getattr(ids, "ndim", 0) == 1 for ids in sample)
    )
    if not vectors or not all(jnp.issubdtype(ids.dtype, jnp.integer) for ids in sample):
        raise TypeError(f"sample must be a pair of vectors of token ids, got {shown(sample)}; pass what sampled_tokens returned.")
    return jnp.asarray(sample[0]), jnp.asarray(sample[1])
