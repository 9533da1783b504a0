"""Transformations of rows: `center_rows` removes a common shift, and `cap_row_steps` limits the step of a row."""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from .._math.mean_square import compute_dtype
from .._math.rows import flat_ids, rows_back, rows_first, sum_duplicates
from .._math.weighted_rows import norms
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.hyperparameters import checked_coefficient, checked_positive
from .._tree.inputs import shown
from .._tree.tables import Table
from ._transformation import Rule, on_tables


def center_rows(
    what: Literal["updates", "table"] = "updates", *, tables: DimensionNumbersLike = AUTO
) -> optax.GradientTransformationExtraArgs:
    r"""Subtracts the mean over the tokens from updates, or moves tables so that their mean row is zero after the step.

    .. math::
        u_{ij} &\leftarrow u_{ij} - \mathrm{mean}_i\, u_{ij} \quad\text{("updates")} \\
        u_{ij} &\leftarrow u_{ij} - \mathrm{mean}_i\, (W + u)_{ij} \quad\text{("table")}

    A common shift of all rows of a head shifts all logits by the same number, which a softmax ignores. So for a head the loss
    stays the same up to rounding, and the logits and the table's common direction stop drifting. For an input table or a tied
    table, the mean row is part of what the model sees, and the loss changes. So name only the head with `tables`. All rows
    count equally, including rows of padding, which then move too. There is no coefficient, because there is nothing to tune.

    With "table", put it after the learning rate. With "updates", it may be anywhere in the chain, but before `scale_by_ember` it
    gives every row a gradient. It reads the updates (and the table) once more. On a mesh, D numbers are summed over the devices.

    Args:
      what: "updates" or "table".
      tables: which leaves are tables, as in `ember`. All other leaves do not change. Each table of a stack has its own mean.

    Returns:
      A `GradientTransformationExtraArgs` without state. With "table", `update` needs the parameters. Row-sparse updates raise,
      because every row moves.

    Raises:
      ValueError: `what` is not one of the two words; at init, no table is found; at update, an update is compact.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import TokenTables, ember, regularizers
      >>> params = {"wte": {"embedding": jnp.ones((4, 2))}, "lm_head": {"kernel": jnp.ones((2, 4))}}
      >>> head = TokenTables(exclude=["wte/embedding"])
      >>> tx = optax.chain(ember(1e-2, optax.adamw(1e-3)), regularizers.center_rows("table", tables=head))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["lm_head"]["kernel"][0])
      [0. 0. 0. 0.]

    References:
      Stollenwerk et al., "Output embedding centering", https://arxiv.org/abs/2601.02031 (the head's table, after each step); for
      gradients of hidden matrices: Yong et al., "Gradient centralization", https://arxiv.org/abs/2004.01461; docs/regularizers.md
    """
    if not isinstance(what, str) or what not in ("updates", "table"):
        raise ValueError(f"what must be 'updates' or 'table', got {shown(what)}; pass one of the two words.")

    def step(table: Table, update, param, kept, given):
        del given
        dtype = compute_dtype(update)
        wide = update.astype(dtype)
        after = wide if param is None else wide + param.astype(dtype)
        return (wide - jnp.mean(after, table.axes.token, keepdims=True)).astype(update.dtype), kept

    rule = Rule(
        "center_rows",
        step,
        needs_params="It centres what they will be." if what == "table" else None,
        needs_all_rows="the mean moves every row.",
    )
    return on_tables(rule, tables)


def cap_row_steps(
    max_rms: optax.ScalarOrSchedule | None = None, *, tables: DimensionNumbersLike = AUTO
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the update of a row down if its root mean square is above a cap. None, the default, is no cap.

    .. math:: u_i \leftarrow u_i \min(1, \; m / \mathrm{rms}_j\, u_{ij})

    With Ember, the first step of a token after a long time without a gradient is up to :math:`1 / \sqrt{1 - b_2}` learning rates
    (31.6 for b2 = 0.999). The step of a token that occurs in every batch is about 1. This is a property of the method and not an
    error. Before you use a cap, see docs/regularizers.md for its effect on the loss.

    The cap is in units of the learning rate if it is between `scale_by_ember` and the rate, as in
    `optax.chain(scale_by_ember(), cap_row_steps(3.0), optax.scale_by_learning_rate(1e-2))`. After `ember(rate, body)` it is in
    units of the parameters: `cap_row_steps(lambda step: 3.0 * rate(step))`. It reads the updates once more, and keeps nothing of
    the table's size. On a mesh, V numbers are summed over the devices that shard the features.

    Args:
      max_rms: m, the cap, above zero, which may be traced; or a schedule of it.
      tables: which leaves are tables, as in `ember`. All other leaves do not change.

    Returns:
      A `GradientTransformationExtraArgs` for dense and row-sparse updates. Its only state is the step of a schedule. Rows below
      the cap do not change, bit for bit. Compact updates of equal ids are one row: the first one gets the capped sum, and the
      others get zeros.

    Raises:
      TypeError: `max_rms` is not a number.
      ValueError: `max_rms` is not above zero; at init, no table is found.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> params = {"wte": {"embedding": jnp.ones((3, 2))}}
      >>> tx = regularizers.cap_row_steps(3.0)
      >>> updates, _ = tx.update({"wte": {"embedding": jnp.array([[1.0, -1.0], [31.0, 31.0], [0.0, 0.0]])}}, tx.init(params))
      >>> print(updates["wte"]["embedding"].round(1))
      [[ 1. -1.]
       [ 3.  3.]
       [ 0.  0.]]

    References:
      Shazeer and Stern, "Adafactor", https://arxiv.org/abs/1804.04235 (clips the root mean square of a whole matrix);
      docs/regularizers.md
    """
    fix = "a number above 0, a schedule or None, for example max_rms=3.0"
    fixed = max_rms if max_rms is None or callable(max_rms) else checked_positive(max_rms, "max_rms", fix)

    def step(table: Table, update, param, kept, cap):
        del param
        if cap is None:
            return update, kept
        if table.ids is None:
            return _capped(update, table.axes.feature, cap), kept
        return _capped_rows(update, table.ids, cap, table.axes.token[0], table.shape[table.axes.token[0]]), kept

    rule = Rule("cap_row_steps", step, given=lambda _, extra_args: extra_args.get("max_rms_now", fixed))
    capping = on_tables(rule, tables)
    return _scheduled(capping, max_rms) if callable(max_rms) else capping


def _scheduled(capping: optax.GradientTransformationExtraArgs, schedule: Any) -> optax.GradientTransformationExtraArgs:
    """`cap_row_steps` with a cap from a schedule. The state counts the steps."""

    def init_fn(params):
        capping.init(params)  # checks the tables
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update_fn(updates, state, params=None, **extra_args):
        if not isinstance(state, optax.ScaleByScheduleState):
            raise TypeError(f"state must be what init or the last update of this cap_row_steps returned, got {shown(state)}.")
        cap = checked_coefficient(schedule(state.count), "max_rms(step)", "a schedule that returns one number")
        updates, _ = capping.update(updates, optax.EmptyState(), params, max_rms_now=cap, **extra_args)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _capped_rows(update: jax.Array, ids: jax.Array, cap: Any, token: int, size: int) -> jax.Array:
    """A compact update with capped rows. The first occurrence of an id has the capped sum, later occurrences have zeros."""
    rows_NxF, _ = sum_duplicates(rows_first(update, token, ids.ndim), flat_ids(ids, size), size)
    capped = _capped(rows_NxF, tuple(range(1, rows_NxF.ndim)), cap).astype(update.dtype)
    return rows_back(capped, update.shape, token, ids.ndim)


def _capped(update: jax.Array, features: tuple[int, ...], cap: Any) -> jax.Array:
    wide = update.astype(compute_dtype(update))
    rms = norms(wide, features) / math.sqrt(math.prod(update.shape[axis] for axis in features))
    limit = jnp.asarray(cap, wide.dtype)
    return jnp.where(rms > limit, (wide * (limit / jnp.where(rms > limit, rms, 1))).astype(update.dtype), update)
