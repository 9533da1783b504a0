"""A fused head inside a loss function, and how the loss function calls it."""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from .._math.mesh import as_varying, in_auto_mode, in_shard_map, spec_like, varying_alike, varying_axes
from .._math.parts import over_parts
from .._math.rows import flat_ids, rows_first
from .._math.shares import sharable_chunk
from .._math.softmax import LossOptions, token_losses
from .._tree.finder import finder_with
from .._tree.inputs import check_array, shown
from .._tree.tables import Leaf, Table
from .calls import MARK, Call
from .gradient import as_linked, joined, tapped_losses, with_lookup
from .leaf import FusedLeaf
from .manual import check_mesh, in_whole_table, manual_layout, of_all_devices
from .scans import HeadScans, of_all_steps
from .taps import LARGEST_VOCABULARY, Tap, specs_of_tap, tap_shapes


class TappedHead:
    """A head inside a loss function: its table without a gradient, and taps. The first trace has no taps, and records calls.

    Attributes:
      name: the table's path.
      table: the whole table, without a gradient.
      token_axis: its vocabulary, by the declaration of `value_and_grad`.
      taps: one for each call of the loss; None in the first trace.
      calls: the calls so far.
      scans: the scans of the loss function that are open (`scans.py`).
      link: the number that the loss function passed along with the table: see `as_linked`.
    """

    def __init__(self, table: Table, taps: list[Tap] | None = None, calls: Sequence[Call] = ()):
        self.name, self.table, self.taps = table.name, jax.lax.stop_gradient(table.array), taps
        self.token_axis = table.axes.token[0]
        self.calls: list[Call] = []
        self.scans = HeadScans(self.taps, [call.scans for call in calls])
        self.link: Any = None

    def linked_by(self, link: Any) -> "TappedHead":
        """The same head, with the link that the loss function passed along with the table."""
        new = copy.copy(self)
        new.link = link
        return new

    def losses(self, hidden: jax.Array, labels: jax.Array, loss: LossOptions, dtype: Any) -> jax.Array:
        """The loss of each token, with the rows of the table cast to `dtype`."""
        loss = loss._replace(dtype=None if dtype == self.table.dtype else jnp.dtype(dtype))
        if in_shard_map():
            layout = manual_layout(self.name, loss.layout, hidden, self.table, labels)
            size = self.table.shape[self.token_axis] * layout.token_parts
            loss = loss._replace(layout=layout, masks=loss.num_tokens < size)
        loss = loss._replace(chunk=sharable_chunk(loss.layout, loss.chunk))
        tap = tap_shapes(hidden, self.table.shape[self.token_axis], loss)
        self.calls.append(Call(tap, loss, tuple(self.scans.open), jax.lax.axis_size(tuple(varying_axes(self.link)))))
        if self.taps is None:
            mark = f"{MARK}{len(self.calls) - 1} {self.name}"
            return checkpoint_name(self._losses_of_parts(hidden, labels, None, loss), mark)
        if len(self.calls) > len(self.taps):
            raise ValueError(
                f"loss_fn called linear_softmax_cross_entropy with the fused head {self.name!r} {len(self.taps)} times when it "
                f"was traced first, and more often now: call it equally often each time, or leave it out of heads."
            )
        return self._losses_of_parts(hidden, labels, self.taps[len(self.calls) - 1], loss)

    def _losses_of_parts(self, hidden: jax.Array, labels: jax.Array, tap: Tap | None, loss: LossOptions) -> jax.Array:
        """The losses. If the head is split by tokens, each device works on its own rows."""
        of_part, layout = functools.partial(_losses, loss=loss, call=len(self.calls) - 1), loss.layout

        def over_all(hidden, table_VxD, labels, tap, link):
            if layout is None:
                return of_part(hidden, table_VxD, labels, tap, link)
            flat, of_tap = layout.flat(hidden, labels), None if tap is None else specs_of_tap(tap, layout, loss.token_axis)
            specs = layout.specs(loss.token_axis, flat[1].ndim)
            arrays = flat[0], table_VxD, flat[1], tap, link
            return over_parts(of_part, layout, (*specs, of_tap, PartitionSpec()), specs[2], *arrays).reshape(labels.shape)

        return in_auto_mode(over_all, lambda: spec_like(labels), hidden, self.table, labels, tap, self.link)

    def check_axis(self, token_axis: int, width: int) -> None:
        """Raises if `value_and_grad`, the loss and the width of the hidden states imply different axes of the vocabulary."""
        shape, other = self.table.shape, 1 - self.token_axis
        agreed = token_axis == self.token_axis and width == shape[other]
        if agreed or width not in shape:  # the loss itself refuses a width that fits neither axis
            return
        fix = f"pass token_axis={self.token_axis} to the loss"
        if width == shape[self.token_axis]:
            fix = (f"{fix} if that is right; " if width == shape[other] else "") + (
                f"if it is in axis {other}, with {shape[other]} tokens, pass token_axis={other} to the loss, "
                f"tables={finder_with(self.name, other)} to value_and_grad and to ember"
            )
        raise ValueError(
            f"the fused head {self.name!r} of shape {shape} has its vocabulary in axis {self.token_axis} by the "
            f"tables of value_and_grad and in axis {token_axis} by the token_axis of linear_softmax_cross_entropy, and the "
            f"hidden states have {width} features: {fix}."
        )


def _losses(hidden: Any, table_VxD: Any, labels: Any, tap: Tap | None, link: Any, *, loss: LossOptions, call: int) -> jax.Array:
    hidden_NxD, labels_N = hidden.reshape(labels.size, hidden.shape[-1]), flat_ids(labels, loss.num_tokens)
    if loss.layout is not None:
        table_VxD = as_varying(table_VxD, loss.layout.batch_axes)
        hidden_NxD, labels_N = varying_alike(hidden_NxD, labels_N)
    if tap is not None:
        losses_N: Any = tapped_losses(hidden_NxD, table_VxD, labels_N, tap, link, loss, call)
    else:
        hidden_NxD = hidden_NxD if loss.layout is None else as_varying(hidden_NxD, loss.layout.token_axes)
        losses_N = token_losses(hidden_NxD, table_VxD, labels_N, loss)
    return jnp.reshape(losses_N, labels.shape)


def checked_heads(heads: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The paths of the heads, each once. Raises if a path is not a parameter, or if there can be no head on this mesh."""
    paths = (heads,) if isinstance(heads, str) else heads
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise TypeError(f"heads must be a path or a sequence of paths, got {shown(heads)}; pass for example 'lm_head/kernel'.")
    if unknown := sorted(set(paths) - set(names)):
        raise ValueError(f"heads names {unknown}, but the parameters are {list(names)}; correct the path.")
    check_mesh(paths)
    return tuple(dict.fromkeys(paths))


def check_head_table(table: Leaf) -> None:
    """Raises unless a parameter can be a fused head."""
    check_array(table.box, f"parameter {table.name!r}", floating=True)
    if len(table.shape) != 2:
        raise ValueError(
            f"heads names {table.name!r} of shape {table.shape}, but a fused head is a matrix, (V, D) or (D, V): leave it out."
        )
    if max(table.shape) > LARGEST_VOCABULARY:
        raise ValueError(
            f"heads names {table.name!r} of shape {table.shape}, but a fused head has at most 2^24 tokens: leave it out of heads."
        )


def gradient_leaf(
    table: Table,
    taps: Sequence[Tap],
    calls: Sequence[Call],
    of_links: jax.Array,
    ids_M: jax.Array,
    of_lookup: jax.Array,
) -> FusedLeaf:
    """The gradient of a head from the "gradients" of its taps, plus the gradient of a lookup if there is one."""
    loss = calls[0].loss._replace(chunk=min(call.loss.chunk for call in calls))
    steps = [math.prod(steps for _, steps in call.scans) * call.link_parts for call in calls]
    of_calls = [of_all_steps(tap, len(call.scans)) for tap, call in zip(taps, calls, strict=True)]
    taps = [as_linked(tap, of_links[call] / steps[call]) for call, tap in enumerate(of_calls)]
    touched, tap = None, taps[0] if taps[0].token_squares is not None else joined(taps, table.array, loss)
    if ids_M.size:
        of_rows = functools.partial(with_lookup, loss=loss)
        specs = functools.partial(jax.tree.map, spec_like, (tap, of_lookup))
        of_lookup, size = rows_first(of_lookup, loss.token_axis, 1), table.shape[loss.token_axis]
        ids_M, of_lookup = of_all_devices(ids_M, of_lookup, size, loss.layout)
        tap, of_rows_MxD = in_auto_mode(of_rows, specs, tap, table.array, ids_M, of_lookup)
        touched = in_whole_table(ids_M, size, loss.layout), of_rows_MxD
    return FusedLeaf(table.name, table.array, tap, touched, loss)
