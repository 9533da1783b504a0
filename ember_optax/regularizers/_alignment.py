"""Rare and frequent tokens, made to look like samples of one distribution, or of two."""

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
    """Sampled tokens: ids of the rarer half of the tokens that occur, and of the more frequent half, (S,) int32; -1 for none."""

    rare: jax.Array
    frequent: jax.Array


def sampled_tokens(token_counts: Any, key: jax.Array, samples: int = 256) -> RareAndFrequent:
    r"""Draws tokens from the rarer and from the more frequent half of those that occur, uniformly and each at most once.

    .. math:: rare \subset \{i : 0 < c_i,\ rank_i < n / 2\}, \qquad frequent \subset \{i : 0 < c_i,\ rank_i \ge n / 2\}

    where ranks 0 ... n - 1 go by counts, equal ones by ids, over the n tokens with a count above zero: of an odd n, the middle
    token is rare, as in `geometry.report`. O(V log V), of vectors over tokens.

    Args:
      token_counts: (V,), how often each token occurs: of a corpus, or streamed (`updated_counts`).
      key: of the draw, a new one for each step: `jax.random.fold_in(key, step)`.
      samples: S, of each half. Where a half has fewer tokens, the rest of the ids is -1.

    Returns:
      `RareAndFrequent`. Declare both for a table in row-sparse steps.

    Raises:
      TypeError: `token_counts` are no numbers, `key` is none, `samples` is no integer.
      ValueError: `token_counts` is no vector; `samples` below 2 or above V.

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
        # Counts are a constant of most programs, and XLA takes seconds to sort a constant while it compiles.
        counts_V = jax.lax.optimization_barrier(counts_V)
        noise_V = jax.random.uniform(key, counts_V.shape, jnp.float32, minval=0.5)
        drawn = [jax.lax.top_k(jnp.where(half_V, noise_V, 0), size) for half_V in halves_by_count(counts_V)]
        return tuple(jnp.where(score > 0, ids, -1).astype(jnp.int32) for score, ids in drawn)

    return RareAndFrequent(*in_auto_mode(draw, lambda: (PartitionSpec(),) * 2, counts_V, key))


def frequency_alignment(
    table: Any, sample: RareAndFrequent, coefficient: jax.typing.ArrayLike = 1.0, *, token_axis: int = 0
) -> jax.Array:
    r"""How far rare and frequent rows of a table are apart as distributions: the energy coefficient of a sample, in [0, 1] for
    large S.

    .. math:: c \, \frac{2\, E|r - f| - E|r - r'| - E|f - f'|}{2\, E|r - f|}

    over rows r of rare and f of frequent tokens, means over pairs of different tokens. Zero in expectation if both are samples of
    one distribution, one if each is a single point of its own. The first term pulls rare rows to frequent ones, the others
    push rows of one kind apart, as in a contrastive loss, so nothing collapses; a positive coefficient aligns, a negative one
    separates. It does not depend on the table's scale. No discriminator is trained, as it is in FRAGE; this form with an energy
    distance is ours, simple and without numbers to tune, and its effect on a loss is what docs/regularizers.md measured.

    O(S D + S^2). Only the sampled rows are read, so it works in row-sparse steps: declare the sampled ids too. On a sharded table
    the 2 S rows are summed over the devices.

    Args:
      table: (V, D), or any layout with `token_axis`; or the `RowSlice` of `row_sparse.value_and_grad` with the sampled ids
        declared.
      sample: from `sampled_tokens`.
      coefficient: c; may be traced.
      token_axis: the axis that counts the tokens; a `RowSlice` knows its own.

    Returns:
      A scalar, float32 (float64 for float64); 0 if one of both has less than two tokens. Slightly below zero where chance has it.

    Raises:
      TypeError: the table is no array of real floats, the sample no pair of ids, the coefficient no number.
      ValueError: an axis out of range, an empty table; the coefficient is not finite.

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
      Gong et al., "FRAGE: frequency-agnostic word representation", https://arxiv.org/abs/1809.06858 (rare and popular words lie
      apart; there with an adversary); Yu et al., "Rare tokens degenerate all tokens", https://arxiv.org/abs/2109.03127 (gates
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
    vectors = isinstance(sample, tuple) and len(sample) == 2 and all(jnp.ndim(ids) == 1 for ids in map(_or_scalar, sample))
    if not vectors or not all(jnp.issubdtype(ids.dtype, jnp.integer) for ids in sample):
        raise TypeError(f"sample must be a pair of vectors of token ids, got {shown(sample)}; pass what sampled_tokens returned.")
    return jnp.asarray(sample[0]), jnp.asarray(sample[1])


def _or_scalar(ids: Any) -> Any:
    return ids if hasattr(ids, "dtype") and hasattr(ids, "ndim") else 0
