"""The types of `jax.shard_map`: along which mesh axes the devices hold different values. JAX has renamed these attributes."""

from collections.abc import Iterable
from typing import Any

import jax


def varying_axes(array: Any) -> frozenset[str]:
    """Mesh axes along which an array differs by its type; empty outside of `jax.shard_map`, or if that does not check types."""
    aval = jax.typeof(array)
    manual = getattr(aval, "manual_axis_type", None)  # `vma` in older versions
    return getattr(aval, "vma", frozenset()) if manual is None else manual.varying


def as_varying(array: jax.Array, mesh_axes: Iterable[str]) -> jax.Array:
    """The same values, typed as different along mesh axes, so that `lax.scan` can carry what will be."""
    names = tuple(sorted(mesh_axes))
    if not names:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, names, to="varying")
    return jax.lax.pvary(array, names)  # pyright: ignore[reportAttributeAccessIssue]
