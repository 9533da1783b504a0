"""The mean cosine between two rows of a table, in closed form, and its gradient, finite for rows of zeros."""

import functools

import jax
import jax.numpy as jnp

from .weighted_rows import Rows, norms, rows_of, share


def mean_cosine_of(rows: Rows) -> jax.Array:
    """The mean of cos(x_i, x_j) over pairs of different rows, each with the product of its weights; rows of zeros left out."""
    mean_1D, p_V1, _ = _mean_unit_row(rows)
    value, defined = _over_pairs(mean_1D, p_V1)
    return jnp.where(defined, value, jnp.nan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def differentiable_mean_cosine(table: jax.Array, weights: jax.Array | None, token: int) -> jax.Array:
    r"""`mean_cosine_of` the rows of a table, with its gradient in closed form; the weights count as constants.

    .. math::
        \frac{\partial}{\partial x_i} = \frac{2 p_i}{1 - \sum_k p_k^2} \cdot \frac{s - (s \cdot u_i) u_i}{\|x_i\|},
        \qquad u_i = x_i / \|x_i\|, \quad s = \textstyle\sum_k p_k u_k

    Zero for a row of zeros, whose direction does not exist; value and gradient are zero without two rows left. Nothing of the
    table's size is kept but the table: of the forms that JAX would differentiate by itself, some are NaN at zero, and those in
    blocks would keep the table once for each block.
    """
    return _forward(table, weights, token)[0]


@functools.partial(jax.jit, static_argnums=2)
def _forward(table: jax.Array, weights: jax.Array | None, token: int) -> tuple[jax.Array, tuple]:
    rows = rows_of(table, token, weights=weights)
    mean_1D, p_V1, norm_V1 = _mean_unit_row(rows)
    value, defined = _over_pairs(mean_1D, p_V1)
    return jnp.where(defined, value, 0), (table, weights, mean_1D, p_V1, norm_V1)


@functools.partial(jax.jit, static_argnums=0)
def _backward(token: int, kept: tuple, of_value: jax.Array) -> tuple:
    table, weights, mean_1D, p_V1, norm_V1 = kept
    rows = rows_of(table, token, weights=weights)
    over_norm_V1 = 1 / jnp.where(norm_V1 == 0, 1, norm_V1)
    along_V = jnp.einsum(rows.x, range(rows.x.ndim), jnp.squeeze(mean_1D, token), rows.features, [token], precision="highest")
    along_V1 = along_V.reshape(norm_V1.shape) * over_norm_V1
    _, defined = _over_pairs(mean_1D, p_V1)
    factor_V1 = 2 * p_V1 / (1 - jnp.where(defined, jnp.sum(jnp.square(p_V1)), 0)) * over_norm_V1
    gradient = of_value * jnp.where((norm_V1 != 0) & defined, factor_V1 * (mean_1D - along_V1 * (rows.x * over_norm_V1)), 0)
    return gradient.astype(table.dtype), None if weights is None else jnp.zeros_like(weights)


differentiable_mean_cosine.defvjp(_forward, _backward)


def _mean_unit_row(rows: Rows) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The weighted mean of the unit rows, with a token axis of length one, the share of each row, and its norm.

    As a product of the table with a vector: unit rows would be a temporary of the table's size.
    """
    norm_V1 = norms(rows.x, rows.features)
    p_V1 = share(rows._replace(weight=jnp.where(norm_V1 == 0, 0, rows.weight)))
    scale_V = (p_V1 / jnp.where(norm_V1 == 0, 1, norm_V1)).reshape(-1)
    mean_D = jnp.einsum(scale_V, [rows.token], rows.x, range(rows.x.ndim), rows.features, precision="highest")
    return jnp.expand_dims(mean_D, rows.token), p_V1, norm_V1


def _over_pairs(mean_1D: jax.Array, p_V1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean over pairs, and whether there is one: not where less than two rows have a share."""
    alone = jnp.sum(jnp.square(p_V1))
    # One row leaves no pair, but p^2 may round to something else than one.
    defined = jnp.sum(p_V1 > 0) > 1
    return (jnp.sum(jnp.square(mean_1D)) - alone) / jnp.where(defined, 1 - alone, 1), defined
