"""`Tap`: the arrays that the gradient of a head is computed from, their shapes and their specs on a mesh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._math.mesh import spec_entries, spec_of
from .._math.parts import Layout
from .._math.shares import Share, gathers_tokens, keeps_shares
from .._math.softmax import LossOptions


class Tap(NamedTuple):
    """The arrays that the gradient of a head is computed from.

    A tap of zeros is an argument of the loss. The "gradient" with respect to it is the tap with these arrays.
    """

    hidden: Any  # (N, D)
    labels: Any  # (N,) in float32, which holds the integers of a vocabulary below 2^24
    lse: Any  # (N,)
    cotangents: Any  # (N,)
    token_squares: Any  # (V,): sum_j G[i,j]^2; None while they are not known
    feature_squares: Any  # (D,): sum_i G[i,j]^2; None while they are not known
    shares: Any = None  # G in float32, in the shares of the devices (`_math/shares.py`); None if G is computed again


LARGEST_VOCABULARY = 1 << 24


def tap_shapes(hidden: jax.Array, size: int, loss: LossOptions) -> Tap:
    """The shapes, dtypes and, on explicit axes, shardings of the tap of a loss with these hidden states and `size` tokens."""
    width, mesh, layout = hidden.shape[-1], jax.typeof(hidden).sharding.mesh, loss.layout
    tokens, is_explicit = hidden.size // width, AxisType.Explicit in mesh.axis_types
    shapes = Tap((tokens, width), (tokens,), (tokens,), (tokens,), (size,), (width,))
    if gathers_tokens(layout, tokens, size):
        shapes = without_squares(shapes)
    if layout is not None and keeps_shares(layout, tokens, size):
        parts = 1 if layout.is_manual else layout.token_parts
        shares = 1 if layout.is_manual else parts * layout.batch_parts
        rows = shares * Share(layout, 0, size // parts).rows
        shapes = shapes._replace(shares=(rows, width) if loss.token_axis == 0 else (width, rows))
    specs = tap_specs(layout or Layout((), spec_of(spec_entries(hidden)[:-1])), loss.token_axis)

    def shape_of(shape, dtype, spec):
        sharding = NamedSharding(mesh, spec) if is_explicit else None
        return None if shape is None else jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    dtypes = [hidden.dtype] + [jnp.float32] * 6
    return Tap(*map(shape_of, shapes, dtypes, specs))


def tap_specs(layout: Layout, token_axis: int, *, whole: bool = False) -> Tap:
    """The specs of a tap. Its tokens are in any order, because only sums over them are computed.

    With `whole` every device has all tokens.
    """
    of_N, of_V = PartitionSpec(None if whole else layout.batch_axes or None), PartitionSpec(layout.token_axes or None)
    of_shares = PartitionSpec(*[None] * token_axis, layout.token_axes + layout.batch_axes or None)
    return Tap(of_N, of_N, of_N, of_N, of_V, PartitionSpec(), of_shares)


def specs_of_tap(tap: Tap, layout: Layout, token_axis: int, *, whole: bool = False) -> Tap:
    """The specs of the arrays that a tap has."""
    specs = tap_specs(layout, token_axis, whole=whole)
    return Tap(*(None if array is None else spec for array, spec in zip(tap, specs, strict=True)))


def without_squares(tap: Tap) -> Tap:
    """The tap of one of several calls, whose gradients are added before they are squared."""
    return tap._replace(token_squares=None, feature_squares=None, shares=None)
