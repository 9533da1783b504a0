"""A fused head inside of the caller's own `jax.shard_map`, where arrays are the parts of one device and their types show along
which mesh axes they differ. `Layout.is_manual` says that a head is there.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from .._math.mesh import as_varying, axes_of_type, entry_names, gathered_over, in_shard_map, varying_axes
from .._math.parts import Layout, first_row
from .._math.rows import sum_duplicates
from .taps import Tap, specs_of_tap


def check_mesh(heads: Sequence[str]) -> None:
    """Raises if heads are in a `jax.shard_map` over some axes of a mesh whose other axes are explicit."""
    explicit = axes_of_type(jax.sharding.get_abstract_mesh(), AxisType.Explicit)
    if heads and explicit and in_shard_map():
        raise ValueError(
            f"heads names {list(heads)} inside of a jax.shard_map whose axis_names leave out the explicit mesh axes "
            f"{list(explicit)}: name them in axis_names, make them AxisType.Auto, or leave heads out."
        )


def manual_layout(name: str, layout: Layout | None, hidden: jax.Array, table: jax.Array, labels: jax.Array) -> Layout:
    """The layout inside of the caller's own `jax.shard_map`: hidden states are split along the axes along which they differ.

    Raises:
      ValueError: types do not show it, or the table is split over axes that `token_mesh_axes` does not name.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not varying_axes(jax.lax.axis_index(axes_of_type(mesh, AxisType.Manual))):
        raise ValueError(
            f"heads names {name!r} inside of jax.shard_map(check_vma=False) or jax.pmap, where types do not show how its hidden "
            f"states are split: use jax.shard_map without check_vma, or leave it out of heads."
        )
    token_axes = layout.token_axes if layout else ()
    if others := sorted(varying_axes(table) - set(token_axes)):
        raise ValueError(
            f"heads names {name!r}, which differs along the mesh axes {others} of jax.shard_map, but token_mesh_axes of "
            f"linear_softmax_cross_entropy names {list(token_axes)}: name the axes that split its tokens, or leave it out of "
            f"heads."
        )
    split = (varying_axes(hidden) | varying_axes(labels)) - set(token_axes)
    batch = tuple(n for n in mesh.axis_names if n in split)
    return Layout(token_axes, PartitionSpec(batch or None), mesh, is_manual=True)


def as_in_loss(tap: Tap, layout: Layout | None, token_axis: int) -> Tap:
    """A tap of zeros with the types of the arrays that the backward pass returns."""
    if layout is None or not layout.is_manual:
        return tap

    def typed(array: jax.Array, spec: PartitionSpec) -> jax.Array:
        return as_varying(array, [name for entry in spec for name in entry_names(entry)])

    return jax.tree.map(typed, tap, specs_of_tap(tap, layout, token_axis))


def whole_tokens(arrays: Sequence[jax.Array], layout: Layout | None) -> list[jax.Array]:
    """Arrays of the hidden states of all devices. Outside of a `jax.shard_map` of the caller they are whole already."""
    if layout is None or not layout.is_manual:
        return list(arrays)
    return [gathered_over(layout.batch_axes, array, 0) for array in arrays]


def in_whole_table(ids_M: jax.Array, size: int, layout: Layout | None) -> jax.Array:
    """Ids of the whole table, from those of this device's `size` rows."""
    return ids_M + first_row(layout, size) if layout and layout.is_manual else ids_M


def of_all_devices(ids_M: jax.Array, of_lookup_MxD: jax.Array, size: int, layout: Layout | None) -> tuple[jax.Array, jax.Array]:
    """The ids of a lookup, each once, and its gradient, of all devices that have the same rows of a tied table."""
    axes = tuple(sorted(varying_axes(ids_M) - set(layout.token_axes))) if layout and layout.is_manual else ()
    if not axes:  # JAX adds up the gradients of ids that are the same on all devices
        return ids_M, of_lookup_MxD
    ids_M, of_lookup_MxD = (gathered_over(axes, array, 0) for array in (ids_M, of_lookup_MxD))
    of_lookup_MxD, first_M = sum_duplicates(of_lookup_MxD, ids_M, size)
    return jnp.where(first_M, ids_M, size), of_lookup_MxD
