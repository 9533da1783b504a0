"""From what a user passes to the rows that a metric reads: checks, layout, weights, centring."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec

from .._math.mean_square import compute_dtype, cpu_mean_square, mean_square
from .._math.mesh import in_auto_mode, spec_entries, spec_of
from .._tree.boxes import unbox
from .._tree.hyperparameters import checked_flag
from .._tree.inputs import check_array, checked_axis, shown


class Rows(NamedTuple):
    """The rows of a table, in the table's own layout: a (D, V) head is not transposed, and features are not flattened.

    Attributes:
      x: float32 or float64, zero in the rows of tokens that do not take part.
      weight: of each token, with the rank of `x` and features of length one.
      token: the axis that counts the tokens.
    """

    x: jax.Array
    weight: jax.Array
    token: int

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.x.ndim) if axis != self.token)


def measured(
    metric: Callable[[Rows], Any],
    table: Any,
    token_axis: Any,
    centered: Any = False,
    weights: Any = None,
    *,
    per_token: bool = False,
) -> Any:
    """`metric(rows)` of a checked table; a scalar, or one number for each token.

    Compiled, so that a call outside of `jax.jit` is one dispatch and has no temporary that the compiler can do without.
    """
    table, token = checked_table(table, token_axis)
    weights = checked_weights(weights, table, token)
    return _measured(metric, token, checked_flag(centered, "centered"), per_token, table, weights)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _measured(metric, token: int, centered: bool, per_token: bool, table: jax.Array, weights: jax.Array | None) -> Any:
    def automatically(table, weights):
        return metric(rows_of(table, token, centered, weights))

    spec = token_spec(table, token) if per_token else PartitionSpec()
    return in_auto_mode(automatically, lambda: spec, table, weights)


def rows_of(table: jax.Array, token: int, centered: bool = False, weights: jax.Array | None = None) -> Rows:
    """The rows of an array whose arguments were checked."""
    x = table.astype(compute_dtype(table))
    shape = tuple(size if axis == token else 1 for axis, size in enumerate(table.shape))
    if weights is None:
        rows = Rows(x, jnp.ones(shape, x.dtype), token)
    else:
        weight = weights.astype(x.dtype).reshape(shape)
        # Not a product: a row of NaN that does not take part must not be seen.
        rows = Rows(jnp.where(weight > 0, x, 0), weight, token)
    return centered_rows(rows) if centered else rows


def centered_rows(rows: Rows) -> Rows:
    """The rows less their weighted mean."""
    mean = jnp.sum(share(rows) * rows.x, rows.token, keepdims=True)
    return rows._replace(x=jnp.where(rows.weight > 0, rows.x - mean, 0))


def share(rows: Rows) -> jax.Array:
    """Weights that add up to one; NaN if no token takes part. The largest first, so that no sum of counts overflows."""
    scaled = rows.weight / jnp.max(rows.weight)
    return scaled / jnp.sum(scaled)


def square_norms(rows: Rows) -> jax.Array:
    """The squared norm of each row, with the rank of the table."""
    return sum_of_squares(rows.x, rows.features)


def sum_of_squares(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sums of squares over axes, kept with length one; on a CPU long ones in blocks, which is faster and rounds less."""
    if x.dtype == jnp.float64:
        return jnp.sum(jnp.square(x), axes, keepdims=True)
    on_cpu, elsewhere = (functools.partial(form, axes=axes) for form in (cpu_mean_square, mean_square))
    return jax.lax.platform_dependent(x, cpu=on_cpu, default=elsewhere) * math.prod(x.shape[axis] for axis in axes)


def unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """An array over its norm along axes; zeros stay zeros."""
    # In units of the largest number, because squares of small and of large ones leave float32.
    largest = jnp.max(jnp.abs(x), axes, keepdims=True)
    scaled = x / jnp.where(largest == 0, 1, largest)
    norm = jnp.sqrt(sum_of_squares(scaled, axes))
    return scaled / jnp.where(norm == 0, 1, norm)


def to_vector(values: jax.Array, token: int) -> jax.Array:
    """From one number for each token with the rank of the table to a vector."""
    return jnp.squeeze(values, tuple(axis for axis in range(values.ndim) if axis != token))


def token_spec(table: jax.Array, token: int) -> PartitionSpec:
    """How a vector over the tokens of a table is sharded."""
    return spec_of([spec_entries(table)[token]])


def checked_table(table: Any, token_axis: Any, argument: str = "table") -> tuple[jax.Array, int]:
    """A table as an array of real floats with rows and features, and its token axis counted from the front."""
    table = unbox(table)
    check_array(table, argument, floating=True)
    if not hasattr(table, "shape") or table.ndim < 2:
        raise ValueError(
            f"{argument} must have a token axis and feature axes, got {shown(table)}; pass one leaf of the parameters, (V, D)."
        )
    if jnp.issubdtype(table.dtype, jnp.complexfloating):
        raise TypeError(
            f"{argument} of shape {table.shape} has dtype {table.dtype}, but must hold real floats: pass its real part."
        )
    if 0 in table.shape:
        raise ValueError(f"{argument} has the shape {table.shape} and is empty; pass a table with rows and features.")
    return jnp.asarray(table), checked_axis(token_axis, table.shape)


def checked_weights(weights: Any, table: jax.Array, token: int, argument: str = "weights") -> jax.Array | None:
    """One number that is not negative for each token; what is traced has no value to look at yet."""
    if weights is None:
        return None
    check_array(weights, argument)
    array, size = jnp.asarray(weights), table.shape[token]
    if array.shape != (size,):
        raise ValueError(
            f"{argument} must have shape ({size},), one for each token of the table of shape {table.shape} along axis {token}, "
            f"got {array.shape}; pass one number for each token."
        )
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{argument} of shape {array.shape} has dtype {array.dtype}, but must hold real numbers; pass counts.")
    if not known_to_hold(array, lambda array: (array >= 0) & jnp.isfinite(array)):
        raise ValueError(
            f"{argument} must be finite and not negative, got {shown(array)}; a token of weight 0 does not take part."
        )
    return array


def known_to_hold(array: jax.Array, condition: Callable[[jax.Array], jax.Array]) -> bool:
    """Whether a condition holds of every element, as far as that is known: of a traced array nothing is."""
    with jax.ensure_compile_time_eval():  # a constant in a traced function is known
        return isinstance(array, Tracer) or bool(jnp.all(condition(array)))
