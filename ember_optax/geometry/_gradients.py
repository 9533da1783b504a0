"""Metrics of a table's gradients: active rows, autocorrelation over steps, and the error of a token x feature product."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._math.mean_square import mean_square
from .._math.mesh import in_auto_mode
from .._math.weighted_rows import Rows, larger_unit, power_of_two, rows_of
from .._tree.inputs import shown
from ._measured import checked_table, known_to_hold, measured, to_vector, token_spec
from ._norms import norms_of
from ._spectrum import singular_values
from ._streaming import Streaming


def active_rows(gradient: Any, *, token_axis: int = 0) -> jax.Array:
    r"""A mask of the rows that have a gradient, as Ember's `feature_mean="active_rows"` counts them.

    .. math:: \mathrm{mean}_j\, g_{ij}^2 \ne 0

    Args:
      gradient: the gradient of a table, (V, D) or any layout with `token_axis`, any real floating dtype.
      token_axis: the axis of the tokens.

    Returns:
      (V,) bool, sharded like the token axis. `.sum()` is the number of active rows, `.mean()` their share. A row with a NaN is
      active. A row whose squares underflow in float32 (numbers below 1e-19) is not.

    Raises:
      TypeError: the gradient is not an array of real floats.
      ValueError: an axis is out of range, or the gradient is empty.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> print(geometry.active_rows(jnp.zeros((4, 2)).at[1].set(0.5)))
      [False  True False False]

    References:
      docs/geometry.md
    """
    gradient, token = checked_table(gradient, token_axis, "gradient")
    return measured(active_of, gradient, token, per_token=True)


def active_of(rows: Rows) -> jax.Array:
    """`active_rows` of checked rows."""
    return to_vector(mean_square(rows.x, rows.features) != 0, rows.token)


class FactorizationError(NamedTuple):
    """How well an outer product explains the second moment of a table's gradient. All fields are scalars.

    Attributes:
      relative_error: the Frobenius norm of the error of Ember's product, divided by that of the second moment; 0 is exact.
      explained_energy: 1 - relative_error^2, which is at most `rank_one_share`.
      rank_one_share: the energy of the best product of any kind, sigma_1^2 / sum of sigma^2.
      explained_log_variance: the share of the variance of log v that log v_hat explains, over the elements that are not zero.
        1 is exact, and below 0 is worse than one number for all elements. NaN if all elements are equal.
    """

    relative_error: jax.Array
    explained_energy: jax.Array
    rank_one_share: jax.Array
    explained_log_variance: jax.Array


def factorization_error(second_moment: Any, *, token_axis: int = 0) -> FactorizationError:
    r"""How well a product of a token and a feature vector, which is all that Ember keeps, explains a second moment.

    .. math:: \hat v_{ij} = \frac{\mathrm{mean}_j v_{ij} \cdot \mathrm{mean}_i v_{ij}}{\mathrm{mean}_{ij} v_{ij}}, \qquad
        \mathrm{relative\_error} = \|v - \hat v\|_F / \|v\|_F

    Pass a mean of :math:`g^2` over many batches, for example `nu` of `optax.adam`, or a sum `v = v + g * g` (its scale does not
    matter). The squares of one batch are noise around the mean, which no product explains.

    Args:
      second_moment: (V, D), or any layout with `token_axis`, not negative, any real floating dtype.
      token_axis: the axis of the tokens.

    Returns:
      `FactorizationError`. It is NaN for a moment of zeros or with a NaN.

    Raises:
      TypeError: the moment is not an array of real floats.
      ValueError: an axis is out of range, or the moment is empty or has a negative element.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> v = jnp.outer(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 3.0]))
      >>> print(f"{geometry.factorization_error(v).relative_error:.4f}")
      0.0000

    References:
      Shazeer and Stern, "Adafactor", https://arxiv.org/abs/1804.04235; docs/geometry.md
    """
    moment, token = checked_table(second_moment, token_axis, "second_moment")
    if not known_to_hold(moment, lambda moment: ~(moment < 0)):
        raise ValueError(
            f"second_moment must not be negative, got {shown(moment)}; pass a mean of squares, such as nu of optax.adam."
        )
    return measured(_factorization_error, moment, token)


def _factorization_error(rows: Rows) -> FactorizationError:
    v = rows.x / power_of_two(jnp.max(rows.x))
    token_V1, feature_1D = jnp.mean(v, rows.features, keepdims=True), jnp.mean(v, rows.token, keepdims=True)
    mean = jnp.mean(token_V1)
    product = token_V1 / jnp.where(mean == 0, 1, mean) * feature_1D
    energy = jnp.sum(jnp.square(v))
    unexplained = jnp.sum(jnp.square(v - product)) / energy
    sigma = singular_values(rows._replace(x=v))

    known = v > 0
    log_v = jnp.log(jnp.where(known, v, 1))
    # The sum of three logarithms, because the product itself may underflow.
    log_product = sum(jnp.log(jnp.where(mean > 0, mean, 1)) for mean in (token_V1, feature_1D)) - jnp.log(mean)
    # The smallest number is subtracted from all, so that equal numbers become exact zeros.
    above = log_v - jnp.min(jnp.where(known, log_v, jnp.inf))
    mean_above = jnp.sum(jnp.where(known, above, 0)) / jnp.sum(known, dtype=above.dtype)
    variance = jnp.sum(jnp.where(known, jnp.square(above - mean_above), 0))
    left = jnp.sum(jnp.where(known, jnp.square(log_v - log_product), 0))
    in_log = jnp.where(variance == 0, jnp.nan, 1 - left / jnp.where(variance == 0, 1, variance))
    return FactorizationError(jnp.sqrt(unexplained), 1 - unexplained, jnp.square(sigma[0]) / energy, in_log)


class AutocorrelationState(NamedTuple):
    """The last gradient, and for each token sums over pairs of successive gradients in units of `unit^2`."""

    previous: jax.Array
    num_gradients: jax.Array
    unit: jax.Array  # a power of two near the largest element so far, so that squares stay in float32's range
    product: jax.Array
    energy: jax.Array
    previous_energy: jax.Array


class Autocorrelation(NamedTuple):
    """The lag-1 autocorrelation of a table's gradients.

    Attributes:
      table: the autocorrelation of the whole table, a scalar in [-1, 1].
      rows: the autocorrelation of each row, (V,).
      num_pairs: the number of pairs of successive gradients so far, int32.
    """

    table: jax.Array
    rows: jax.Array
    num_pairs: jax.Array


def gradient_autocorrelation(*, token_axis: int = 0) -> Streaming:
    r"""The lag-1 autocorrelation of a table's gradients, streaming: whether the gradients of successive steps agree.

    .. math:: \rho = \frac{\sum_t \langle g_t, g_{t-1} \rangle}{\sqrt{\sum_t \|g_t\|^2 \, \sum_t \|g_{t-1}\|^2}}

    over successive pairs, for the table and for each row. A first moment adds up what successive gradients have in common, so
    the mean is not subtracted. Near 0, a first moment has nothing to add up.

    Memory: the last gradient, V x D numbers in its own dtype, and O(V) for everything else.

    Args:
      token_axis: the axis of the tokens.

    Returns:
      A `Streaming`. `init(gradient)` takes the shape and dtype of a gradient and does not count it. `update(state, gradient)`
      takes each gradient in turn. `value(state)` is an `Autocorrelation`. It is NaN before two gradients, for rows that did not
      have two gradients, and after a NaN.

    Raises:
      TypeError: a gradient is not an array of real floats.
      ValueError: an axis is out of range, a gradient is empty, or its shape changes.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> init, update, value = geometry.gradient_autocorrelation()
      >>> state = init(jnp.ones((4, 2)))
      >>> for sign in (1.0, -1.0, 1.0):
      ...     state = update(state, sign * jnp.ones((4, 2)))
      >>> print(value(state).table, value(state).num_pairs)
      -1.0 2

    References:
      docs/geometry.md
    """

    def init(gradient: Any) -> AutocorrelationState:
        gradient, token = checked_table(gradient, token_axis, "gradient")
        zeros = jnp.zeros_like(measured(norms_of, gradient, token, per_token=True))
        return AutocorrelationState(jnp.zeros_like(gradient), jnp.zeros((), jnp.int32), zeros, zeros, zeros, zeros)

    def update(state: AutocorrelationState, gradient: Any) -> AutocorrelationState:
        gradient, token = checked_table(gradient, token_axis, "gradient")
        check_same_shape(gradient, state.previous, "gradient")
        unit, kept, *sums = _pair_sums(state.unit, gradient, state.previous, token)
        paired = state.num_gradients > 0
        added = [total * kept + jnp.where(paired, more, 0) for total, more in zip(state[3:], sums, strict=True)]
        return AutocorrelationState(gradient.astype(state.previous.dtype), state.num_gradients + 1, unit, *added)

    def value(state: AutocorrelationState) -> Autocorrelation:
        largest = jnp.max(state.unit)
        in_one_unit = jnp.square(state.unit / jnp.where(largest == 0, 1, largest))
        table = _correlation(*(jnp.sum(total * in_one_unit) for total in state[3:]))
        return Autocorrelation(table, _correlation(*state[3:]), jnp.maximum(state.num_gradients - 1, 0))

    return Streaming(init, update, value)


def check_same_shape(array: jax.Array, before: jax.Array, argument: str) -> None:
    """Raises if the shape of an array differs from that of the arrays before."""
    if array.shape != before.shape:
        raise ValueError(f"{argument} has shape {array.shape}, but those before had {before.shape}: start again with init.")


def _pair_sums(unit: jax.Array, gradient: jax.Array, previous: jax.Array, token: int) -> tuple[jax.Array, ...]:
    """The new unit of each row, the factor that converts old sums to new units, and the three products of this pair."""

    def automatically(unit, gradient, previous):
        rows, before = rows_of(gradient, token), rows_of(previous, token)
        unit, over_unit, kept = larger_unit(unit, rows.x, rows.features)
        over_unit = over_unit.reshape(rows.weight.shape)
        g, g_before = rows.x * over_unit, before.x * over_unit
        sums = [
            to_vector(jnp.sum(a * b, rows.features, keepdims=True), token)
            for a, b in ((g, g_before), (g, g), (g_before, g_before))
        ]
        return unit, jnp.square(kept), *sums

    return in_auto_mode(automatically, lambda: (token_spec(gradient, token),) * 5, unit, gradient, previous)


def _correlation(product: jax.Array, energy: jax.Array, previous_energy: jax.Array) -> jax.Array:
    scale = jnp.sqrt(energy) * jnp.sqrt(previous_energy)
    return jnp.where(scale == 0, jnp.nan, jnp.clip(product / jnp.where(scale == 0, 1, scale), -1, 1))
