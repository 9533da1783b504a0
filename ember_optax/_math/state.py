"""Ember's state: its fields, their dtypes, the axes of the table that each keeps, and the state before the first step.

A field is added here: in the class, in `_KEPT`, in `DTYPES`, in `AVERAGES` if it is a moving average of squares, and in
`next_moments` (`moments.py`). Shapes are written for a (V, D) table. Axes come from `TableAxes`, so the same functions serve a
(D, V) head, several feature axes and stacked tables.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .axes import TableAxes
from .mesh import as_varying, spec_of, varying_axes


class ScaleByEmberState(NamedTuple):
    """State of `scale_by_ember`: trees of the parameters' structure, O(V + D) numbers for a (V, D) table.

    Attributes:
      count: steps each table has taken, int32, () or the shape of the batch axes. Skipped batches do not count.
      nu_token: moving average of the mean squared gradient of each token, float32, (V,).
      nu_feature: moving average of the mean squared gradient of each feature, float32, (D,).
      total_notfinite: batches that were skipped because their mean squared gradient, or an average, was not finite, int32, as
        `count`. `optax.tree.get(opt_state, "total_notfinite")` reads it from a nested state with one such field;
        `optax.tree_utils.tree_get_all_with_path` finds several (`optax.apply_if_finite` has one of the same name).

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import scale_by_ember
      >>> tx = scale_by_ember()
      >>> state = tx.init({"embedding": jnp.ones((8, 4))})
      >>> _, state = tx.update({"embedding": jnp.full((8, 4), jnp.nan)}, state)
      >>> print(optax.tree.get(state, "total_notfinite")["embedding"], state.count["embedding"])
      1 0

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    nu_token: Any
    nu_feature: Any
    total_notfinite: Any


# The state of one table, with an array in each field instead of a tree.
Moments = ScaleByEmberState

# The axes of the table that each field keeps. Shapes, boxes, shardings and conversions are derived from this.
_KEPT = Moments(
    count=("batch",),
    nu_token=("batch", "token"),
    nu_feature=("batch", "feature"),
    total_notfinite=("batch",),
)
DTYPES = Moments(count=jnp.int32, nu_token=jnp.float32, nu_feature=jnp.float32, total_notfinite=jnp.int32)
# The fields that are moving averages of squares: `state_from_adam` fills them from Adam's `nu`, and a change of the vocabulary
# keeps their sum.
AVERAGES = ("nu_token", "nu_feature")


def kept_axes(axes: TableAxes) -> Moments:
    """The axes of a table that each field of its state keeps, in increasing order."""
    return Moments(*(tuple(sorted(axis for role in roles for axis in getattr(axes, role))) for roles in _KEPT))


def dropped_axes(axes: TableAxes) -> Moments:
    """The axes of a table that each field of its state does not keep. An average is over them."""
    every = sorted(axes.batch + axes.token + axes.feature)
    return Moments(*(tuple(axis for axis in every if axis not in kept) for kept in kept_axes(axes)))


def moment_shapes(shape: tuple[int, ...], axes: TableAxes) -> Moments:
    """The shape of each field for a table of this shape."""
    return Moments(*(tuple(shape[axis] for axis in kept) for kept in kept_axes(axes)))


def moment_bytes(shape: tuple[int, ...], axes: TableAxes) -> int:
    """The bytes of the state of a table of this shape."""
    each = zip(moment_shapes(shape, axes), DTYPES, strict=True)
    return sum(math.prod(of_field) * jnp.dtype(dtype).itemsize for of_field, dtype in each)


def init_moments(table_VxD: Any, axes: TableAxes) -> Moments:
    """The state of a table before the first step: all zeros. The table is an array or a `jax.ShapeDtypeStruct`.

    The state is strongly typed, and sharded like the axes of the table. If the type or sharding of a state changed in the first
    step, then the second step would compile again, and `lax.scan` could not carry the state.
    """
    shapes, dropped = moment_shapes(table_VxD.shape, axes), dropped_axes(axes)
    varying = varying_axes(table_VxD) if isinstance(table_VxD, Tracer) else frozenset()
    sharding = _sharding_of(table_VxD)
    if sharding is None and not varying:
        return _zeros(shapes)

    def zeros(shape, dtype, dropped: tuple[int, ...], roles: tuple[str, ...]) -> jax.Array:
        summed_over = [name for role in ("token", "feature") if role not in roles for name in getattr(axes, f"{role}_mesh")]
        values = jnp.zeros(shape, dtype, device=_without_axes(dropped, sharding))
        return as_varying(values, varying - set(summed_over))

    return Moments(*map(zeros, shapes, DTYPES, dropped, _KEPT))


# Compiled, so that each table is one dispatch instead of one for each field.
@functools.partial(jax.jit, static_argnums=0)
def _zeros(shapes: Moments) -> Moments:
    return Moments(*map(jnp.zeros, shapes, DTYPES))


def _sharding_of(table: Any) -> jax.sharding.Sharding | None:
    """The sharding that a table's state is derived from. None if JAX chooses the devices."""
    of_type = jax.typeof(table).sharding
    explicit = AxisType.Explicit in of_type.mesh.axis_types
    if isinstance(table, Tracer) or not isinstance(table, jax.Array):
        # While tracing, the compiler places arrays, except on a mesh with explicit axes.
        return of_type if explicit else None
    if isinstance(table.sharding, NamedSharding):
        return NamedSharding(table.sharding.mesh, of_type.spec) if explicit else table.sharding
    return table.sharding if table.committed and len(table.devices()) == 1 else None


def _without_axes(dropped: tuple[int, ...], sharding: jax.sharding.Sharding | None) -> jax.sharding.Sharding | None:
    """The sharding of a reduction of the table over the dropped axes."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    entries = [entry for axis, entry in enumerate(sharding.spec) if axis not in dropped]
    # On explicit axes the type of an array has an entry for each axis, and `jax.jit` caches P() and P(None) separately.
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return NamedSharding(sharding.mesh, PartitionSpec(*entries) if explicit else spec_of(entries))


def expand_moments(moments: Moments, axes: TableAxes) -> Moments:
    """The fields with the table's rank: the axes that a field does not keep have length one."""
    return Moments(*map(jnp.expand_dims, moments, dropped_axes(axes)))


def squeeze_moments(moments: Moments, axes: TableAxes) -> Moments:
    """The inverse of `expand_moments`."""
    return Moments(*map(jnp.squeeze, moments, dropped_axes(axes)))
