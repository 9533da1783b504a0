"""How far each row moves in a step, in units of the learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import PartitionSpec

from .._math.axes import TableAxes
from .._math.mean_square import compute_dtype, mean_square
from .._math.mesh import in_auto_mode
from .._math.moments import decay_rate
from .._math.state import moment_shapes
from .._math.step import Hyperparameters, ember_step
from .._tree.find_states import ScaleByEmberState, adam_moments, ember_moments
from .._tree.hyperparameters import checked_b2, checked_eps, checked_feature_mean
from .._tree.inputs import check_array, shown
from ._measured import checked_table, to_vector, token_spec

TableState = ScaleByEmberState | optax.ScaleByAdamState


def table_states(opt_state: Any) -> dict[str, TableState]:
    """The state of each parameter that Ember or Adam trains, by path, from any optimizer state.

    It looks into `optax.chain`, `optax.partition`, `optax.masked`, `optax.MultiSteps`, `optax.inject_hyperparams` and boxes. For
    a path that both train, it returns Ember's state.

    Args:
      opt_state: any optimizer state.

    Returns:
      A dictionary from paths to a `ScaleByEmberState` or an `optax.ScaleByAdamState` whose fields are arrays, as `row_step` takes
      them.

    Raises:
      ValueError: several parameters have the same path, or `mu` and `nu` of one Adam have different parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import ember, geometry
      >>> params = {"wte": {"embedding": jnp.ones((8, 4))}, "dense": {"kernel": jnp.ones((4, 4))}}
      >>> states = geometry.table_states(ember(1e-2, optax.adamw(1e-3)).init(params))
      >>> states["wte/embedding"].nu_token.shape, states["dense/kernel"].nu.shape
      ((8,), (4, 4))

    References:
      docs/geometry.md
    """
    return {**adam_moments(opt_state, "opt_state"), **ember_moments(opt_state)}


def row_step(
    gradient: Any,
    state: TableState,
    *,
    token_axis: int = 0,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    feature_mean: str = "all_rows",
) -> jax.Array:
    r"""The root mean square of the update of each row, in units of the learning rate.

    .. math:: \sqrt{\mathrm{mean}_j\, u_{ij}^2}

    where u is the update of Ember or Adam for this gradient and the state before the step, without weight decay. For a token
    that occurs in every batch it is about 1. For Ember, the first step of a token after a long time without a gradient is up to
    :math:`1 / \sqrt{1 - b_2}`. For Adam it also depends on :math:`b_1`, and rows without a gradient move too.

    Args:
      gradient: the dense gradient of a table, (V, D) or any layout with `token_axis`, any real floating dtype.
      state: the state of this table before the step, from `table_states(opt_state)`.
      token_axis: the axis of the tokens.
      b1: the decay rate of Adam's first moment. Ember does not use it.
      b2: the optimizer's `b2`. A state does not hold it.
      eps: the optimizer's `eps`. A state does not hold it.
      feature_mean: the `feature_mean` of `scale_by_ember`. A state does not hold it.

    Returns:
      (V,) float32, sharded like the token axis. For Ember, all zeros if the gradient is not finite, because the batch is skipped.

    Raises:
      TypeError: the gradient is not an array of real floats, the state is not Ember's or Adam's, or b2 or eps is not a number.
      ValueError: an axis is out of range, the state has another shape, or b2 or eps is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry, scale_by_ember
      >>> tx, params, g = scale_by_ember(), {"wte": jnp.ones((4, 2))}, jnp.zeros((4, 2)).at[1].set(0.5)
      >>> state = tx.init(params)
      >>> _, state = tx.update({"wte": jnp.ones((4, 2)).at[1].set(0.0)}, state)
      >>> print(geometry.row_step(g, geometry.table_states(state)["wte"]).round(2))  # the root of 2, of 2 steps
      [0.   1.41 0.   0.  ]

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/geometry.md
    """
    g, token = checked_table(gradient, token_axis, "gradient")
    return row_steps(g, checked_state(state, g, token), token, step_rule(b1, b2, eps, feature_mean))


class StepRule(NamedTuple):
    """The hyperparameters of a step, which are Python numbers or traced arrays."""

    b1: Any
    b2: Any
    eps: Any
    active_rows: bool

    @property
    def is_static(self) -> bool:
        return not any(isinstance(number, jax.Array) for number in self)


def step_rule(b1: Any, b2: Any, eps: Any, feature_mean: str) -> StepRule:
    """The hyperparameters of a step, after checks."""
    b1, b2, eps = (
        value if isinstance(value, Tracer) else float(value) for value in (checked_b2(b1, "b1"), checked_b2(b2), checked_eps(eps))
    )
    return StepRule(b1, b2, eps, checked_feature_mean(feature_mean) == "active_rows")


def row_steps(g: jax.Array, state: TableState, token: int, rule: StepRule) -> jax.Array:
    """`row_step` of checked arguments. It is one compiled call if the hyperparameters are Python numbers."""
    return (_compiled_row_steps if rule.is_static else _row_steps)(g, state, token, rule)


def _row_steps(g: jax.Array, state: TableState, token: int, rule: StepRule) -> jax.Array:
    features = tuple(axis for axis in range(g.ndim) if axis != token)

    def automatically(g, state):
        g = g.astype(compute_dtype(g))
        update: Any
        if isinstance(state, ScaleByEmberState):
            axes = TableAxes((token,), features, ())
            update, _ = ember_step(
                g,
                state,
                Hyperparameters(decay_rate(rule.b2), rule.eps, weight_decay=0.0),
                axes=axes,
                active_rows=rule.active_rows,
            )
        else:
            update, _ = optax.scale_by_adam(rule.b1, rule.b2, rule.eps).update(g, state)
        return to_vector(jnp.sqrt(mean_square(update, features)), token)

    return in_auto_mode(automatically, lambda: token_spec(g, token), g, state)


_compiled_row_steps = jax.jit(_row_steps, static_argnums=(2, 3))


def cold_row_ratio(row_steps: Any, *, active: Any = None) -> jax.Array:
    r"""The largest step of a row relative to the median one.

    .. math:: \max_{i \in active} s_i \,/\, \mathrm{median}_{i \in active}\, s_i

    It is near 1 if all rows take equal steps. With Ember it is up to about :math:`1 / \sqrt{1 - b_2}` (31.6 for 0.999) when a
    token has its first gradient after a long time. Rows of Adam without a gradient still move, in smaller and smaller steps. So
    pass `active` for Adam, or such rows determine the median.

    Args:
      row_steps: (V,), from `row_step`.
      active: (V,) bool, the rows that count. None counts rows whose step is not zero. Pass `active_rows(gradient)` for Adam.

    Returns:
      A scalar of at least 1. NaN if no row is active, or if an active row has a NaN.

    Raises:
      TypeError: an argument is not an array of numbers.
      ValueError: an argument is not a vector, or the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> print(geometry.cold_row_ratio(jnp.array([1.0, 0.0, 1.5, 30.0])))
      20.0

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/geometry.md
    """
    check_array(row_steps, "row_steps", floating=True)
    steps = jnp.asarray(row_steps)
    steps = steps.astype(compute_dtype(steps))  # the sum of two numbers in float16 may overflow
    if steps.ndim != 1 or not steps.size:
        raise ValueError(f"row_steps must have shape (V,), got {steps.shape}; pass what row_step returned.")
    if active is not None:
        check_array(active, "active")
        active = jnp.asarray(active) != 0
        if active.shape != steps.shape:
            raise ValueError(
                f"active must have the shape of row_steps, {steps.shape}, got {active.shape}; pass one entry for each row."
            )
    ratio, _ = in_auto_mode(ratio_and_median, lambda: (PartitionSpec(),) * 2, steps, steps != 0 if active is None else active)
    return ratio


def ratio_and_median(steps_V: jax.Array, active_V: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest step of the active rows divided by their median step, and the median."""
    count = jnp.sum(active_V)
    sorted_V = jnp.sort(jnp.where(active_V, steps_V, jnp.inf))  # NaN come last
    last = jnp.maximum(count - 1, 0)
    median = jnp.where(count > 0, (sorted_V[last // 2] + sorted_V[(last + 1) // 2]) / 2, jnp.nan)
    largest = jnp.max(jnp.where(active_V, steps_V, 0))
    return largest / median, median


def checked_state(state: Any, g: jax.Array, token: int, batch: tuple[int, ...] = (), of: str = "") -> TableState:
    """The state of one table. Raises if it does not fit the gradient."""
    fix = "pass table_states(opt_state)[path], the state before the step."
    if not isinstance(state, TableState):
        raise TypeError(f"state{of} must be the Ember or Adam state of one table, got {shown(state)}; {fix}")
    if isinstance(state, ScaleByEmberState):
        features = tuple(axis for axis in range(g.ndim) if axis != token and axis not in batch)
        wanted = moment_shapes(g.shape, TableAxes((token,), features, batch))._asdict()
    else:
        wanted = {"count": (), "mu": g.shape, "nu": g.shape}
    for field, shape in wanted.items():
        array = getattr(state, field)
        check_array(array, f"{field} of the state{of}")
        if jnp.shape(array) != shape:
            raise ValueError(
                f"{field} of the state{of} has shape {jnp.shape(array)}, but a table of shape {g.shape} with token_axis "
                f"{token} needs {shape}; {fix}"
            )
    return jax.tree.map(jnp.asarray, state)
