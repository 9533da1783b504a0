"""Devices that have the same rows of a head, but other hidden states, share the work on the gradient of these rows. Arrays only.

The gradient of the V rows of a device is a sum over the R devices that split the N hidden states. A fused step squares the sum
and applies it. Each of the R devices does that for its share of every chunk of rows, V / R rows in all. There are two ways:

    sum the gradient    each chunk is summed and scattered, and each device keeps its share for the step
    gather the tokens   each device gets all hidden states, and computes its share twice, for the squares and for the step

                        sent by each device, times (R - 1) / R    memory in addition    products of N/R x V x D, with the loss
    sum the gradient    V D, and V D for the rows after the step  V D / R               4
    gather the tokens   N D, and V D for the rows after the step  N D                   7
    a dense step        2 V D, for the sum of the gradient        V D                   3, or 4 for the loss in chunks

So tokens are gathered if N is below V, and neither way sends more than a dense step. Where the gradient is summed, its shares are
not larger than the hidden states of one device.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .mesh import gathered_over
from .parts import Layout

# With 117 or 120 rows for each of 16 devices, a TPU sums the chunk on all devices, which sends twice as much (libtpu 0.0.42).
TILE = 32


def has_shares(layout: Layout | None) -> bool:
    """Whether several devices have the same rows, but other hidden states. Types count an axis of one device as several."""
    return layout is not None and (layout.batch_parts > 1 or (layout.is_manual and layout.batch_axes != ()))


def keeps_shares(layout: Layout | None, tokens: int, size: int) -> bool:
    """Whether the gradient of a head of `size` rows is summed and kept in shares, and the hidden states are not gathered."""
    if layout is None or not has_shares(layout):
        return False
    tokens, size = layout.whole_sizes(tokens, size)
    return tokens * layout.token_parts >= size


def gathers_tokens(layout: Layout | None, tokens: int, size: int) -> bool:
    """Whether every device gets all hidden states of the devices that have the same rows."""
    return has_shares(layout) and not keeps_shares(layout, tokens, size)


def sharable_chunk(layout: Layout | None, chunk: int) -> int:
    """The size of a chunk, rounded up to one whose shares have no padding."""
    parts = layout.batch_parts if layout else 1
    return Share(layout, 0, chunk).rows * parts


class Share(NamedTuple):
    """This device's share of the rows of one chunk.

    Shares are equally large, so the last ones may have rows of padding. If hidden states are not split, the share is the chunk.

    Attributes:
      layout: how the head and its hidden states are split.
      axis: the axis of the rows.
      size: the rows of the chunk.
    """

    layout: Layout | None
    axis: int
    size: int

    @property
    def parts(self) -> int:
        """The number of devices that share the chunk."""
        return self.layout.batch_parts if self.layout else 1

    @property
    def rows(self) -> int:
        """The rows of a share."""
        multiple = TILE if self.parts > 1 and self.size > TILE * self.parts else 1
        return -(-self.size // self.parts // multiple) * multiple

    @property
    def padding(self) -> int:
        """The rows of padding of all shares."""
        return self.rows * self.parts - self.size

    @property
    def first(self) -> jax.Array | int:
        """The first row of this device's share, counted from the first row of the chunk."""
        return jax.lax.axis_index(self._axes) * self.rows if self._axes else 0

    def of(self, chunk: jax.Array) -> jax.Array:
        """This device's share of a chunk that is the same on all these devices."""
        return jax.lax.dynamic_slice_in_dim(self._padded(chunk), self.first, self.rows, self.axis) if self._axes else chunk

    def of_sum(self, chunk: jax.Array, dtype: Any) -> jax.Array:
        """This device's share of the sum of the chunks of these devices, which is sent in `dtype`.

        For a bfloat16 head that is bfloat16, as in a dense step. float32 would send twice as much.
        """
        if not self._axes:
            return chunk
        sent = self._padded(chunk).astype(dtype)
        return jax.lax.psum_scatter(sent, self._axes, scatter_dimension=self.axis, tiled=True).astype(chunk.dtype)

    def gathered(self, share: jax.Array) -> jax.Array:
        """The chunk of the shares of these devices."""
        if not self._axes:
            return share
        padded = gathered_over(self._axes, share, self.axis)
        return jax.lax.slice_in_dim(padded, 0, self.size, axis=self.axis)

    @property
    def _axes(self) -> tuple[str, ...]:
        return self.layout.batch_axes if self.layout and has_shares(self.layout) else ()

    def _padded(self, chunk: jax.Array) -> jax.Array:
        widths = [(0, self.padding if axis == self.axis else 0) for axis in range(chunk.ndim)]
        return jnp.pad(chunk, widths) if self.padding else chunk
