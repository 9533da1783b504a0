"""Turns a user's arguments into the rows that a metric reads: checks, layout, weights, centring."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec

from .._math.mesh import in_auto_mode, spec_entries, spec_of
from .._math.weighted_rows import Rows, rows_of
from .._tree.boxes import unbox
from .._tree.hyperparameters import checked_flag
from .._tree.inputs import check_array, checked_axis, shown


def measured(
    metric: Callable[[Rows], Any],
    table: Any,
    token_axis: Any,
    centered: Any = False,
    weights: Any = None,
    *,
    per_token: bool = False,
) -> Any:
    """`metric(rows)` of a table after checks: a scalar, or with `per_token` one number for each token.

    It is compiled, so that a call outside `jax.jit` is one dispatch, and XLA removes temporaries.
    """
    table, token = checked_table(table, token_axis)
    weights = checked_weights(weights, table, token)
    return _compiled_metric(metric, token, checked_flag(centered, "centered"), per_token, table, weights)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _compiled_metric(metric, token: int, centered: bool, per_token: bool, table: jax.Array, weights: jax.Array | None) -> Any:
    def automatically(table, weights):
        return metric(rows_of(table, token, centered, weights))

    spec = token_spec(table, token) if per_token else PartitionSpec()
    return in_auto_mode(automatically, lambda: spec, table, weights)


def to_vector(values: jax.Array, token: int) -> jax.Array:
    """A vector from an array with one number for each token and the rank of the table."""
    return jnp.squeeze(values, tuple(axis for axis in range(values.ndim) if axis != token))


def token_spec(table: jax.Array, token: int) -> PartitionSpec:
    """The spec of a vector over the tokens of a table."""
    return spec_of([spec_entries(table)[token]])


def checked_table(table: Any, token_axis: Any, argument: str = "table") -> tuple[jax.Array, int]:
    """The table as an array, and its token axis counted from the front. Raises unless it has real floats, rows and features."""
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
    """The weights as an array. Raises unless there is one number for each token, or if a known number is negative."""
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
    if array.dtype == jnp.bool_:
        return array.astype(table.dtype)  # under strict promotion, JAX does not compare a mask with numbers
    if not known_to_hold(array, lambda array: (array >= 0) & jnp.isfinite(array)):
        raise ValueError(f"{argument} must be finite and not negative, got {shown(array)}; a token of weight 0 is left out.")
    return array


def known_to_hold(array: jax.Array, condition: Callable[[jax.Array], jax.Array]) -> bool:
    """Whether a condition holds for every element. True for a traced array, whose elements are not known."""
    with jax.ensure_compile_time_eval():  # a constant in a traced function is known
        return isinstance(array, Tracer) or bool(jnp.all(condition(array)))
