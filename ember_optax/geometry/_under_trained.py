"""`under_trained_tokens`: which tokens of a table look as if they were never trained."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec

from .._math.mesh import in_auto_mode
from .._math.rows import flat_ids
from .._math.weighted_rows import Rows, centered_rows, rows_of, unit
from .._tree.hyperparameters import checked_flag
from .._tree.inputs import shown
from .._tree.token_ids import integer_ids
from ._measured import checked_table, to_vector
from ._norms import norms_of
from ._spectrum import principal

# Without known unused tokens, one row of this many is taken for unused.
_SHORTEST = 1000


class UnderTrainedTokens(NamedTuple):
    """How suspicious each token is. In every score, a small value is suspicious.

    Attributes:
      order: token ids, most suspicious first by `score`, (V,) int32. NaN last.
      score: the indicator that counts for this kind of table, (V,): `norm` for an untied input table, else
        `distance_without_first`.
      norm: the norm of each row, (V,).
      distance: the cosine distance of each row to the mean of the known unused rows, in [0, 2], (V,).
      distance_centered: the same distance after subtracting the mean row, (V,).
      distance_without_first: the same distance after also removing the first principal component of the centred table, (V,).
    """

    order: jax.Array
    score: jax.Array
    norm: jax.Array
    distance: jax.Array
    distance_centered: jax.Array
    distance_without_first: jax.Array


def under_trained_tokens(table: Any, *, known_unused: Any = None, tied: bool, token_axis: int = 0) -> UnderTrainedTokens:
    r"""Scores that show how under-trained each token looks, and the order of the tokens, most suspicious first.

    .. math:: \|x_i\| \qquad\text{and}\qquad 1 - \cos(x_i, u), \quad u = \mathrm{mean}_{k \in unused}\, x_k

    An input row without a gradient stays at its initial value or decays, so its norm is small. A row of a head has a gradient in
    every step. It is the same for all tokens that never occur, so their rows become similar, and rows near known unused rows are
    suspicious. All rows of a head share the mean and the first principal component, which hide this. So there are two more
    distances without them.

    Args:
      table: (V, D), or any layout with `token_axis`; any real floating dtype.
      known_unused: ids of tokens that never occur (padding rows, reserved tokens, bytes that no UTF-8 text has). None takes the
        V / 1000 rows (at least one) that are shortest without the mean and the first component. This is a guess: look at the
        tokens, and pass those that you recognise. Under `jax.jit`, ids out of range are ignored, because their values are not
        known.
      tied: True for a head and for a table that is also the head, False for an input table.
      token_axis: the axis of the tokens.

    Returns:
      `UnderTrainedTokens`. A row of zeros has no direction, and its distance is 1.

    Raises:
      TypeError: the table is not an array of real floats, `known_unused` are not integers, or `tied` is not True or False.
      ValueError: an axis is out of range, the table is empty, an id is out of range, or there are no ids.

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
    # A sum with a mask instead of a lookup, which would gather a sharded table.
    mask_V = jnp.zeros(norm_V.shape, rows.x.dtype).at[flat_ids(ids, norm_V.size)].set(1, mode="drop")
    distances = [_distance_to_mean(one, mask_V) for one in (rows, centered, without_first)]
    score = distances[2] if tied else norm_V
    return UnderTrainedTokens(jnp.argsort(score).astype(jnp.int32), score, norm_V, *distances)


def _distance_to_mean(rows: Rows, mask_V: jax.Array) -> jax.Array:
    """One minus the cosine between each row and the mean of the rows in a mask."""
    share_V1 = (mask_V / jnp.sum(mask_V)).reshape(rows.weight.shape)
    # `where` in addition to the product, so that a row of NaN that is not in the mask becomes zero.
    mean_1D = jnp.sum(jnp.where(share_V1 > 0, share_V1 * rows.x, 0), rows.token, keepdims=True)
    cosine_V1 = jnp.sum(unit(rows.x, rows.features) * unit(mean_1D, rows.features), rows.features, keepdims=True)
    return to_vector(jnp.clip(1 - cosine_V1, 0, 2), rows.token)


def _checked_unused(known_unused: Any, size: int) -> jax.Array | None:
    if known_unused is None:
        return None
    ids = integer_ids(known_unused, "known_unused")
    if not ids.size:
        raise ValueError(f"known_unused is empty, got {shown(known_unused)}; pass token ids of the table, or None for the guess.")
    if not isinstance(ids, Tracer) and (outside := ids[(ids < 0) | (ids >= size)]).size:
        raise ValueError(f"known_unused names {outside.tolist()}, but the table has the rows 0 to {size - 1}; correct the ids.")
    return jnp.asarray(ids)
