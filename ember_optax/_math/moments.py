"""Ember's state for one table, `Moments`: which axes of the table each field keeps, how it starts and how it goes on.

Shapes are written for a (V, D) table. Axes come from `TableAxes`, so the same functions serve a (D, V) head, several feature axes
and stacked tables.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .axes import TableAxes
from .mesh import all_over, as_varying, spec_of, varying_axes


class Moments(NamedTuple):
    """Ember's state for one table: `count` and `total_notfinite` have the shape of the batch axes, () for a plain table."""

    count: Any  # steps taken, int32  # pyright: ignore[reportIncompatibleMethodOverride]
    nu_token: Any  # (V,) float32
    nu_feature: Any  # (D,) float32
    total_notfinite: Any  # batches skipped, int32


# Everything that depends on which axes of the table a field keeps follows from this: shapes, boxes, shardings, conversion.
_KEPT = Moments(
    count=("batch",),
    nu_token=("batch", "token"),
    nu_feature=("batch", "feature"),
    total_notfinite=("batch",),
)
DTYPES = Moments(count=jnp.int32, nu_token=jnp.float32, nu_feature=jnp.float32, total_notfinite=jnp.int32)


class DecayRate(NamedTuple):
    """`b2` in the two forms that the arithmetic needs, both float32 scalars and both accurate near `b2 = 1`."""

    complement: jax.Array  # 1 - b2
    log: jax.Array  # log(b2)


def decay_rate(b2) -> DecayRate:
    """Splits `b2`; a Python number is handled in float64, since `1 - float32(b2)` is off by 1e-5 at b2 = 0.999."""
    if isinstance(b2, jax.Array):
        complement = 1.0 - b2.astype(jnp.float32)
        return DecayRate(complement, jnp.log1p(-complement))
    b2 = float(b2)
    return DecayRate(jnp.float32(1.0 - b2), jnp.float32(math.log(b2) if b2 > 0.0 else -math.inf))


def kept_axes(axes: TableAxes) -> Moments:
    """The axes of a table that each field of its state keeps, in increasing order."""
    return Moments(*(tuple(sorted(axis for role in roles for axis in getattr(axes, role))) for roles in _KEPT))


def dropped_axes(axes: TableAxes) -> Moments:
    """The axes of a table over which each field of its state is an average."""
    every = sorted(axes.batch + axes.token + axes.feature)
    return Moments(*(tuple(axis for axis in every if axis not in kept) for kept in kept_axes(axes)))


def moment_shapes(shape: tuple[int, ...], axes: TableAxes) -> Moments:
    """The shape of each field for a table of this shape."""
    return Moments(*(tuple(shape[axis] for axis in kept) for kept in kept_axes(axes)))


def init_moments(table_VxD: Any, axes: TableAxes) -> Moments:
    """All-zero state of a table, given as an array or a `jax.ShapeDtypeStruct`.

    Strongly typed, and sharded like the table's own axes: a state whose type or sharding changes in the first step makes the
    second one compile again, and `lax.scan` cannot carry it.
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


# Compiled, so that a model of many tables is one dispatch for each and not one for each field.
@functools.partial(jax.jit, static_argnums=0)
def _zeros(shapes: Moments) -> Moments:
    return Moments(*map(jnp.zeros, shapes, DTYPES))


def _sharding_of(table: Any) -> jax.sharding.Sharding | None:
    """Where a state has to lie beside its table; None where that is left to JAX."""
    of_type = jax.typeof(table).sharding
    explicit = AxisType.Explicit in of_type.mesh.axis_types
    if isinstance(table, Tracer) or not isinstance(table, jax.Array):
        # While tracing, the compiler places arrays, except on a mesh with explicit axes.
        return of_type if explicit else None
    if isinstance(table.sharding, NamedSharding):
        return NamedSharding(table.sharding.mesh, of_type.spec) if explicit else table.sharding
    return table.sharding if table.committed and len(table.devices()) == 1 else None


def _without_axes(dropped: tuple[int, ...], sharding: jax.sharding.Sharding | None) -> jax.sharding.Sharding | None:
    """The sharding of a table's reduction over axes."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    entries = [entry for axis, entry in enumerate(sharding.spec) if axis not in dropped]
    # The type of an array on explicit axes names each of its axes, and to the cache of `jax.jit` P() is not P(None).
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return NamedSharding(sharding.mesh, PartitionSpec(*entries) if explicit else spec_of(entries))


def next_moments(
    old: Moments,
    token: jax.Array,
    feature: jax.Array,
    finite_11: jax.Array,
    rate: DecayRate,
    add_token: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
) -> Moments:
    """The state after a batch. All arrays have the table's rank (`expand_moments`).

        nu_token[i]   <- b2 * nu_token[i]   + (1 - b2) * token[i]
        nu_feature[j] <- b2 * nu_feature[j] + (1 - b2) * feature[j]

    A batch that is not finite changes nothing, bit for bit, but `total_notfinite`. `add_token` adds what a batch knows of some
    tokens only.
    """
    complement_11 = jnp.where(finite_11, rate.complement, 0.0)

    def average(moment: jax.Array, statistic: jax.Array, add: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        # Decayed by subtraction, because 1 - b2 is the accurate constant.
        return add(moment - complement_11 * moment, complement_11 * jnp.where(finite_11, statistic, 0.0))

    return Moments(
        count=jnp.where(finite_11, optax.safe_increment(old.count), old.count),
        nu_token=average(old.nu_token, token, add_token),
        nu_feature=average(old.nu_feature, feature, jnp.add),
        total_notfinite=jnp.where(finite_11, old.total_notfinite, optax.safe_increment(old.total_notfinite)),
    )


def all_finite(read: Moments, token: jax.Array, feature: jax.Array, axes: TableAxes) -> jax.Array:
    """Whether a batch counts: its statistics and the averages that its step reads are finite.

    The two statistics tell of every element of the gradient, without another pass. An average that is not finite, from a damaged
    checkpoint say, would make every later update zero or NaN; so every batch that meets it is counted as skipped.
    """

    of_features = jnp.all(jnp.isfinite(feature) & jnp.isfinite(read.nu_feature), axes.feature, keepdims=True)
    of_tokens = jnp.all(jnp.isfinite(token) & jnp.isfinite(read.nu_token), axes.token, keepdims=True)
    return all_over(axes.feature_mesh, of_features) & all_over(axes.token_mesh, of_tokens)


def bias_correction(count: jax.Array, rate: DecayRate) -> jax.Array:
    """`1 - b2^count` as `-expm1(count * log(b2))`: the literal form is 1.3e-5 off at count = 1, zero at b2 = 1 - 1e-8.

    One before the first step, where all averages are zero and only a skipped batch looks: 0 / 0 would stop `jax_debug_nans`.
    """
    return jnp.where(count > 0, -jnp.expm1(count.astype(jnp.float32) * rate.log), 1.0)


def expand_moments(moments: Moments, axes: TableAxes) -> Moments:
    """Gives every field the table's rank, with axes of length one."""
    return Moments(*map(jnp.expand_dims, moments, dropped_axes(axes)))


def squeeze_moments(moments: Moments, axes: TableAxes) -> Moments:
    """The inverse of `expand_moments`."""
    return Moments(*map(jnp.squeeze, moments, dropped_axes(axes)))
