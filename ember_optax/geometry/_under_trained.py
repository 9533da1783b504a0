"""Which tokens of a table look as if they were never trained."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from .._math.mesh import in_auto_mode
from .._math.rows import flat_ids
from .._math.weighted_rows import Rows, centered_rows, rows_of, unit
from .._tree.hyperparameters import checked_flag
from .._tree.inputs import shown
from ._measured import checked_table, to_vector
from ._norms import norms_of
from ._spectrum import principal

# Without known tokens: one in so many rows stands for them.
_SHORTEST = 1000


class UnderTrainedTokens(NamedTuple):
    """How suspicious each token is: in every score a small value.

    Attributes:
      order: token ids, most suspicious first by `score`, (V,) int32. NaN last.
      score: the indicator that counts for this kind of table, (V,): `norm` for an untied input table, else
        `distance_without_first`.
      norm: of each row, (V,).
      distance: cosine distance to the mean of the known unused rows, in [0, 2], (V,).
      distance_centered: the same after subtracting the mean row, (V,).
      distance_without_first: and after removing the first principal component of the centred table, (V,).
    """

    order: jax.Array
    score: jax.Array
    norm: jax.Array
    distance: jax.Array
    distance_centered: jax.Array
    distance_without_first: jax.Array


def under_trained_tokens(table: Any, *, known_unused: Any = None, tied: bool, token_axis: int = 0) -> UnderTrainedTokens:
    r"""Scores of all tokens by how under-trained they look, and their order, most suspicious first.

    .. math:: \|x_i\| \qquad\text{and}\qquad 1 - \cos(x_i, u), \quad u = \mathrm{mean}_{k \in unused}\, x_k

    An input row that gets no gradient stays where it began or decays: its norm is small. The row of a head gets one in every
    step, the same for all tokens that never occur, so these lie together: rows near to known unused ones are suspicious. The mean
    and the first principal component are common to all rows of a head and hide it, hence the two other distances.

    Args:
      table: (V, D), or any layout with `token_axis`; any real floating dtype.
      known_unused: ids of tokens that are known never to occur (padding rows, reserved tokens, bytes that no UTF-8 text has).
        None takes for them the V / 1000 rows, at least one, that are shortest without the mean and the first component: rows that
        say nothing of their own. A guess; look at the tokens, and pass those that you recognise. Under `jax.jit`, ids out of
        range do not count: nobody knows them yet.
      tied: True for a head and for a table that is also the head, False for an input table.
      token_axis: the axis that counts the tokens.

    Returns:
      `UnderTrainedTokens`. A row of zeros has no direction and gets the distance 1.

    Raises:
      TypeError: the table is no array of real floats, `known_unused` no integers, `tied` not True or False.
      ValueError: an axis out of range, an empty table, ids out of range or none.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> table = jnp.array([[1.0, 2.0], [0.1, 0.0], [2.0, -1.0], [-2.0, 1.0]])
      >>> print(geometry.under_trained_tokens(table, tied=False).order)
      [1 0 2 3]

    References:
      Land and Bartolo, "Fishing for Magikarp", https://arxiv.org/abs/2405.05417; docs/geometry.md
    """
    table, token = checked_table(table, token_axis)
    ids = _checked_unused(known_unused, table.shape[token])
    return _under_trained(table, ids, token, checked_flag(tied, "tied"))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _under_trained(table: jax.Array, ids: jax.Array | None, token: int, tied: bool) -> UnderTrainedTokens:
    return in_auto_mode(lambda table, ids: _scores(rows_of(table, token), ids, tied), PartitionSpec, table, ids)


def _scores(rows: Rows, ids: jax.Array | None, tied: bool) -> UnderTrainedTokens:
    norm_V = norms_of(rows)
    centered = centered_rows(rows)
    first = principal(centered).directions[..., -1:]
    along_V1 = jax.lax.dot_general(
        centered.x, first, ((centered.features, tuple(range(first.ndim - 1))), ((), ())), precision="highest"
    )
    common = along_V1.reshape(rows.weight.shape) * jnp.expand_dims(first[..., 0], rows.token)
    without_first = centered._replace(x=centered.x - common)
    if ids is None:
        ids = jnp.argsort(norms_of(without_first))[: max(1, norm_V.size // _SHORTEST)]
    # A sum with a mask and not a lookup, which would gather a table that is sharded.
    mask_V = jnp.zeros(norm_V.shape, rows.x.dtype).at[flat_ids(ids, norm_V.size)].set(1, mode="drop")
    distances = [_distance_to_mean(one, mask_V) for one in (rows, centered, without_first)]
    score = distances[2] if tied else norm_V
    return UnderTrainedTokens(jnp.argsort(score).astype(jnp.int32), score, norm_V, *distances)


def _distance_to_mean(rows: Rows, mask_V: jax.Array) -> jax.Array:
    """One minus the cosine of each row and the mean of the rows in a mask."""
    share_V1 = (mask_V / jnp.sum(mask_V)).reshape(rows.weight.shape)
    # Not a product alone: a row of NaN that is not in the mask must not be seen.
    mean_1D = jnp.sum(jnp.where(share_V1 > 0, share_V1 * rows.x, 0), rows.token, keepdims=True)
    cosine_V1 = jnp.sum(unit(rows.x, rows.features) * unit(mean_1D, rows.features), rows.features, keepdims=True)
    return to_vector(jnp.clip(1 - cosine_V1, 0, 2), rows.token)


def _checked_unused(known_unused: Any, size: int) -> jax.Array | None:
    if known_unused is None:
        return None
    fix = "pass token ids of the table."
    try:
        # NumPy's 64-bit ids are looked at before JAX keeps their lower half.
        ids = known_unused if isinstance(known_unused, Tracer) else np.asarray(known_unused)
    except (TypeError, ValueError):
        raise TypeError(f"known_unused must be integers, got {shown(known_unused)}; {fix}") from None
    if ids.size and not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"known_unused must be integers, got {ids.dtype} of shape {ids.shape}; {fix}")
    if not ids.size:
        raise ValueError(f"known_unused is empty, got {shown(known_unused)}; {fix[:-1]}, or None for the guess.")
    if not isinstance(ids, Tracer) and (outside := ids[(ids < 0) | (ids >= size)]).size:
        raise ValueError(f"known_unused names {outside.tolist()}, but the table has the rows 0 to {size - 1}; correct the ids.")
    return jnp.asarray(ids)
