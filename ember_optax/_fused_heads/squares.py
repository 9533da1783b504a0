"""The sums of squares of a gradient that is computed chunk by chunk, and its shares on devices that have the same rows."""

from typing import Any

import jax
import jax.numpy as jnp

from .._math.chunks import put_chunk
from .._math.mesh import as_varying
from .._math.parts import sum_over_batch, sum_over_tokens
from .._math.shares import TILE, Share
from .._math.softmax import LossOptions

Squares = tuple[jax.Array, jax.Array, jax.Array | None]


def no_squares(table_VxD: jax.Array, loss: LossOptions, keeps: bool) -> Squares:
    """Zeros for the squares by token and by feature and, if they are kept, for the shares of the gradient."""
    share = Share(loss.layout, loss.token_axis, size := table_VxD.shape[loss.token_axis])
    width = table_VxD.shape[1 - loss.token_axis]
    shape = (share.rows, width) if loss.token_axis == 0 else (width, share.rows)
    axes = loss.layout.token_axes + loss.layout.batch_axes if loss.layout else ()

    def zeros(shape):
        return as_varying(jnp.zeros(shape, jnp.float32), axes)

    # The shares of the last chunk may end in rows of padding.
    return zeros(size + TILE * share.parts), zeros(width), zeros(shape) if keeps else None


def add_share(total: Squares, of_share_SxD: jax.Array, start: Any, share: Share) -> Squares:
    """The squares, and the shares if they are kept, with this device's share of a chunk of the gradient of all tokens."""
    (token_V, feature_D, shares_SxD), squares_SxD = total, jnp.square(of_share_SxD)
    token_V = put_chunk(token_V, jnp.sum(squares_SxD, 1 - share.axis), start + share.first, 0)
    if shares_SxD is not None:
        shares_SxD = put_chunk(shares_SxD, of_share_SxD, start // share.parts, share.axis)
    return token_V, feature_D + jnp.sum(squares_SxD, share.axis).astype(feature_D.dtype), shares_SxD


def sum_of_shares(total: Squares, table_VxD: jax.Array, loss: LossOptions) -> Squares:
    """The squares of the shares of all devices."""
    token_V, feature_D, shares = total
    token_V = sum_over_batch(loss.layout, token_V[: table_VxD.shape[loss.token_axis]])
    return token_V, sum_over_tokens(loss.layout, sum_over_batch(loss.layout, feature_D)), shares
