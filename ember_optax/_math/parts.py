"""A head whose vocabulary is split over a mesh: each device works on its own rows and its own hidden states. Arrays only."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from .mesh import varying_axes
from .rows import is_narrow


class Layout(NamedTuple):
    """How a head and its hidden states are split over a mesh. All of it is static.

    Attributes:
      token_axes: the mesh axes that split the vocabulary, major to minor.
      batch: the spec of the labels.
      mesh: the mesh.
      is_manual: whether this is inside of the caller's own `jax.shard_map`, where arrays are parts already.
    """

    token_axes: tuple[str, ...]
    batch: PartitionSpec = PartitionSpec()
    mesh: Any = None
    is_manual: bool = False

    def specs(self, token_axis: int, labels_rank: int) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
        """The specs of hidden states, table and labels."""
        rows = PartitionSpec(*(self.token_axes if axis == token_axis else None for axis in range(2)))
        return PartitionSpec(*self.batch, *[None] * (labels_rank - len(self.batch)), None), rows, self.batch

    def flat(self, hidden: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Hidden states and labels as (N, D) and (N,), if the mesh splits nothing but their first axis."""
        if len(self.batch) > 1:
            return hidden, labels
        return hidden.reshape(labels.size, hidden.shape[-1]), labels.reshape(-1)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh axes that split the hidden states."""
        entries = (entry if isinstance(entry, tuple) else (entry,) for entry in self.batch if entry is not None)
        return tuple(name for entry in entries for name in entry)

    @property
    def batch_parts(self) -> int:
        """The number of parts of the hidden states."""
        return math.prod(self.mesh.shape[name] for name in self.batch_axes)

    @property
    def token_parts(self) -> int:
        """The number of parts of the vocabulary."""
        return math.prod(self.mesh.shape[name] for name in self.token_axes)

    def whole_sizes(self, tokens: int, rows: int) -> tuple[int, int]:
        """The hidden states and the rows of the whole head, from those of the caller's arrays."""
        return (tokens * self.batch_parts, rows * self.token_parts) if self.is_manual else (tokens, rows)


def over_parts(function: Callable[..., Any], layout: Layout, in_specs: Any, out_specs: Any, *arrays: Any) -> Any:
    """`function(*arrays)` on the parts that each device has. Axes of the mesh that the layout does not name stay automatic.

    XLA on CPU (jax 0.10.2) aborts the process at a sum of 16-bit numbers over some axes if others are automatic. So for such
    arrays no axis of a mesh of CPU devices is automatic, and devices along the other axes do the same work.
    """
    if layout.is_manual:
        return function(*arrays)
    context = jax.sharding.get_abstract_mesh()
    mesh = layout.mesh if context.empty else context
    device = getattr(mesh.abstract_mesh, "abstract_device", None)
    on_cpu = getattr(device, "device_kind", jax.default_backend()) == "cpu"
    manual = mesh.axis_names if on_cpu and any(map(is_narrow, jax.tree.leaves(arrays))) else ()
    names = {*layout.token_axes, *layout.batch_axes, *manual}
    split: Any = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names)
    return split(*arrays)


def parts_of(layout: Layout | None) -> int:
    """The number of parts of the vocabulary of which the caller has one: 1 outside of its own `jax.shard_map`."""
    return layout.token_parts if layout and layout.is_manual else 1


def sum_over_batch(layout: Layout | None, array: jax.Array) -> jax.Array:
    """The sum over the devices that split the hidden states."""
    return jax.lax.psum(array, layout.batch_axes) if layout and layout.batch_axes else array


def first_row(layout: Layout | None, rows: int) -> Any:
    """The token of the first row of this device's part of a head, which has `rows` rows."""
    return jax.lax.axis_index(layout.token_axes) * rows if layout and layout.token_axes else 0


def sum_over_tokens(layout: Layout | None, array: jax.Array) -> jax.Array:
    """The sum over the devices that split the vocabulary."""
    return jax.lax.psum(array, layout.token_axes) if layout and layout.token_axes else array


def cotangent_over_tokens(layout: Layout | None, cotangent: jax.Array, table: jax.Array) -> jax.Array:
    """The cotangent of a result that is the same on all devices that split the vocabulary.

    With `check_vma=False` JAX does not know that they are the same: the cotangent of each device is a part of the whole.
    """
    is_checked = layout and set(layout.token_axes) <= varying_axes(table)
    return cotangent if is_checked else sum_over_tokens(layout, cotangent)
