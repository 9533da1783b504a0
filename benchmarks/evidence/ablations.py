"""Second moments with less in them than Ember's, which nobody needs but to find out which part of it matters.

Each is an `optax` transformation of tables with two axes, as `scale_by_ember` is: gradients in, directions without a learning
rate out.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ember_optax import EmberDimensionNumbers, token_tables

Part = Literal["token", "feature", "scalar"]


class MeanSquares(NamedTuple):
    """Steps taken, and what is kept of each table's squares, with axes of size one where they were averaged."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    nu: Any


def scale_by_part(part: Part, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    r"""Divides by the root of one factor of Ember's second moment alone.

    .. math:: \nu \leftarrow b_2 \nu + (1 - b_2)\,\mathrm{mean}\, g^2 \qquad u = g / (\sqrt{\nu / (1 - b_2^t)} + \epsilon)

    The mean is over the features of each token ("token", which is row-wise RMSProp), over the tokens for each feature
    ("feature"), or over the table ("scalar").
    """

    def average(nu, mean_square, count):
        nu = b2 * nu + (1 - b2) * mean_square
        return nu, nu / (1 - b2**count)

    return _scale_by_mean_squares(part, average, eps)


def scale_by_token_sum(eps: float = 1e-8) -> optax.GradientTransformation:
    """Row-wise Adagrad: divides each row by the root of the sum of its mean squares so far, which never decays."""

    def add(nu, mean_square, count):
        del count
        return nu + mean_square, nu + mean_square

    return _scale_by_mean_squares("token", add, eps)


def _scale_by_mean_squares(part: Part, accumulate: Callable[..., Any], eps: float) -> optax.GradientTransformation:
    def init_fn(params):
        return MeanSquares(jnp.zeros((), jnp.int32), _mean_squares(part, optax.tree.zeros_like(params)))

    def update_fn(updates, state, params=None):
        del params
        count = state.count + 1
        means = _mean_squares(part, updates)
        nu = jax.tree.map(lambda nu, mean: accumulate(nu, mean, count)[0], state.nu, means)
        v_hat = jax.tree.map(lambda nu, mean: accumulate(nu, mean, count)[1], state.nu, means)
        scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + eps), updates, v_hat)
        return scaled, MeanSquares(count, nu)

    return optax.GradientTransformation(init_fn, update_fn)


def _mean_squares(part: Part, tree: Any) -> Any:
    """The mean square of each table over the axes that `part` does not keep, which stay with size one."""

    def of_table(g_VxD: jax.Array, numbers: EmberDimensionNumbers) -> jax.Array:
        averaged = {"token": 1 - numbers.token_axis, "feature": numbers.token_axis, "scalar": (0, 1)}[part]
        return jnp.mean(g_VxD * g_VxD, axis=averaged, keepdims=True)

    return jax.tree.map(of_table, tree, token_tables(tree))
