"""Norms of the rows of a table."""

from typing import Any

import jax
import jax.numpy as jnp

from .._math.weighted_rows import Rows, norms, share
from ._measured import measured, to_vector


def row_norms(table: Any, *, token_axis: int = 0, centered: bool = False, weights: Any = None) -> jax.Array:
    r"""The Euclidean norm of each row.

    .. math:: \|x_i\|_2

    Args:
      table: as for `spectrum`.
      token_axis: the axis that counts the tokens.
      centered: subtract the (weighted) mean row first.
      weights: as for `spectrum`. They change only the mean row, and a token of weight 0 has the norm 0.

    Returns:
      (V,) float32, float64 for float64, sharded like the token axis. NaN for a row with a NaN. In float32, norms below 1e-32 may
      be 0, and norms above 1e32 may be infinite.

    Raises:
      TypeError: as `spectrum`.
      ValueError: as `spectrum`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> print(geometry.row_norms(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
      [5. 0.]

    References:
      docs/geometry.md
    """
    return measured(norms_of, table, token_axis, centered, weights, per_token=True)


def mean_row_norm(table: Any, *, token_axis: int = 0, centered: bool = False, weights: Any = None) -> jax.Array:
    r"""The mean norm of a row, for `by_frequency`.

    .. math:: \sum_i w_i \|x_i\|_2 / \textstyle\sum_i w_i

    Args:
      table: as for `spectrum`.
      token_axis: the axis that counts the tokens.
      centered: subtract the (weighted) mean row first.
      weights: as for `spectrum`.

    Returns:
      A scalar; NaN if all weights are 0, or if a row with a weight above 0 has a NaN.

    Raises:
      TypeError: as `spectrum`.
      ValueError: as `spectrum`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> print(geometry.mean_row_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
      2.5

    References:
      docs/geometry.md
    """
    return measured(mean_norm_of, table, token_axis, centered, weights)


def norms_of(rows: Rows) -> jax.Array:
    """The norms of the rows, (V,)."""
    return to_vector(norms(rows.x, rows.features), rows.token)


def mean_norm_of(rows: Rows) -> jax.Array:
    """`mean_row_norm` of checked rows."""
    return jnp.sum(share(rows) * norms(rows.x, rows.features))
