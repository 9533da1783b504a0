"""Any metric of a table for each bucket of token frequency."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from .._math.frequency import rank_buckets
from .._math.mean_square import compute_dtype
from .._math.mesh import in_auto_mode
from .._tree.inputs import shown
from ._measured import checked_table, checked_weights


class FrequencyBuckets(NamedTuple):
    """A metric by token frequency, rarest bucket first.

    Attributes:
      lower: the smallest count of a token in each bucket, 0 for an empty bucket, (B,).
      upper: the largest count of a token in each bucket, 0 for an empty bucket, (B,).
      num_tokens: the number of tokens in each bucket, (B,) int32.
      values: the metric of these tokens, (B,) or (B, ...).
    """

    lower: jax.Array
    upper: jax.Array
    num_tokens: jax.Array
    values: jax.Array


def by_frequency(
    metric: Callable[..., jax.Array], table: Any, token_counts: Any, buckets: int | Sequence[float], *, token_axis: int = 0
) -> FrequencyBuckets:
    """A metric of the rows of a table for each bucket of token frequency.

    Each bucket is measured with weights 1 for its tokens and 0 for all others, so `metric` may be any function of this module
    that takes `weights`. `functools.partial(metric, centered=True)` centres each bucket separately. Metrics with one value for
    each token (`row_norms`) give (B, V) with zeros outside the bucket. `mean_row_norm` is their mean.

    Args:
      metric: called as `metric(table, token_axis=token_axis, weights=weights)`.
      table: as for `spectrum`.
      token_counts: (V,), how often each token occurs.
      buckets: a number B, or increasing counts. A number B splits the tokens, in the order of their counts (equal counts in the
        order of their ids), into B parts of V / B tokens. With counts e_0 < ... < e_B-1, bucket k holds the tokens with
        e_k <= count < e_k+1, the last bucket those with e_B-1 <= count, and no bucket those with count < e_0.
        `(0, 1, 10, 100)` puts the tokens that never occur into a bucket of their own.
      token_axis: the axis that counts the tokens.

    Returns:
      `FrequencyBuckets`, rarest first. The value of an empty bucket is NaN for means and 0 for ranks.

    Raises:
      TypeError: `metric` is not a function, or `buckets` is neither a number nor a sequence of numbers; else as `spectrum`.
      ValueError: `buckets` is below 1 or above V, or does not increase; `token_counts` has another shape or is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> table, counts = jnp.array([[1.0], [2.0], [3.0], [5.0]]), jnp.array([9, 0, 7, 1])
      >>> found = geometry.by_frequency(geometry.mean_row_norm, table, counts, 2)
      >>> print(found.lower, found.upper, found.values)
      [0 7] [1 9] [3.5 2. ]

    References:
      docs/geometry.md
    """
    if not callable(metric):
        raise TypeError(f"metric must be a function of a table, got {shown(metric)}; pass for example geometry.effective_rank.")
    table, token = checked_table(table, token_axis)
    counts = checked_weights(token_counts, table, token, "token_counts")
    if counts is None:
        raise TypeError("token_counts must be an array of one count for each token, got None; pass jnp.bincount(ids, length=V).")
    edges = _checked_buckets(buckets, table.shape[token])

    mask_BxV, lower_B, upper_B, size_B = (
        _masks_of(_at_least_32_bits(counts), edges)
        if isinstance(edges, int)
        else _masks_by_edges(_at_least_32_bits(counts), edges)
    )

    def of_bucket(mask_V: jax.Array) -> jax.Array:
        return metric(table, token_axis=token, weights=mask_V)

    if isinstance(table, Tracer) or isinstance(counts, Tracer):
        return FrequencyBuckets(lower_B, upper_B, size_B, jax.lax.map(of_bucket, mask_BxV))
    # One call for each bucket, because `jax.lax.map` would compile again for every new function.
    return FrequencyBuckets(lower_B, upper_B, size_B, jnp.stack([of_bucket(mask_V) for mask_V in mask_BxV]))


@functools.partial(jax.jit, static_argnums=1)
def _masks_of(counts: jax.Array, buckets: int, edges: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """The masks of the buckets, their smallest and largest count, and their sizes. Without `edges`, the buckets go by rank."""

    def masks(counts: jax.Array) -> tuple[jax.Array, ...]:
        if edges is None:
            of_token_V = rank_buckets(counts, buckets)
        else:
            of_token_V = (jnp.searchsorted(edges, counts.astype(edges.dtype), side="right") - 1).astype(jnp.int32)
        mask_BxV = jnp.arange(buckets, dtype=jnp.int32)[:, None] == of_token_V[None, :]
        size_B, zero = jnp.sum(mask_BxV, 1, dtype=jnp.int32), jnp.zeros((), counts.dtype)
        lower_B = jnp.min(jnp.where(mask_BxV, counts[None, :], jnp.max(counts)), 1)
        upper_B = jnp.max(jnp.where(mask_BxV, counts[None, :], zero), 1)
        return mask_BxV, jnp.where(size_B > 0, lower_B, zero), upper_B, size_B

    return in_auto_mode(masks, lambda: (PartitionSpec(),) * 4, counts)


def _masks_by_edges(counts: jax.Array, edges: np.ndarray) -> tuple[jax.Array, ...]:
    """`_masks_of` with edges. Integers are compared as integers, because float32 cannot represent all counts above 2^24."""
    number = edges.size
    if edges.dtype.kind in "iu" and jnp.issubdtype(counts.dtype, jnp.integer):
        limits = jnp.iinfo(counts.dtype)
        # No count reaches an edge beyond the range of the dtype, so these last buckets are empty.
        edges = np.maximum(edges[edges <= limits.max], limits.min).astype(counts.dtype)
    else:
        edges = edges.astype(np.float32)
    return _masks_of(counts, number, jnp.asarray(edges))


def _at_least_32_bits(counts: jax.Array) -> jax.Array:
    """Counts in a dtype of at least 32 bits."""
    if jnp.issubdtype(counts.dtype, jnp.floating):
        return counts.astype(compute_dtype(counts))
    return counts.astype(jnp.int32) if counts.dtype.itemsize < 4 else counts


def _checked_buckets(buckets: Any, size: int) -> int | np.ndarray:
    if isinstance(buckets, int | np.integer) and not isinstance(buckets, bool):
        if not 1 <= buckets <= size:
            raise ValueError(f"buckets must be in 1 to {size}, the number of tokens, got {buckets}; pass for example 10.")
        return int(buckets)
    fix = "pass a number of buckets, or increasing counts like (0, 1, 10, 100); neither may be traced."
    if isinstance(buckets, str | bool | None) or not isinstance(buckets, Sequence | np.ndarray | jax.Array):
        raise TypeError(f"buckets must be a number or a sequence of counts, got {shown(buckets)}; {fix}")
    try:
        edges = np.asarray(buckets)
        edges = edges if edges.dtype.kind in "iu" else edges.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"buckets must be a number or a sequence of counts, got {shown(buckets)}; {fix}") from None
    if edges.ndim != 1 or not edges.size or not np.all(np.diff(edges) > 0) or np.isnan(edges).any():
        raise ValueError(f"buckets must be counts that increase, got {shown(buckets)}; {fix}")
    return edges
