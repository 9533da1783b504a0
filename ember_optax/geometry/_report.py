"""`report`: the metrics of a model's token tables in one flat dictionary for a logger. `_report_metrics.py` computes them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from .._math.mesh import in_auto_mode
from .._tree.declared import AUTO, DimensionNumbersLike, check_declaration
from .._tree.describe import no_table_message
from .._tree.find_states import ember_moments
from .._tree.hyperparameters import checked_flag
from .._tree.inputs import check_tree
from .._tree.suspects import warn_of_suspects
from .._tree.tables import Table, found_tables, read_tree
from ._measured import checked_table, checked_weights
from ._report_metrics import table_report
from ._step_sizes import StepRule, TableState, checked_state, step_rule, table_states

# Replaces a gradient that is None, because None is not a leaf of a tree.
_LEFT_OUT = object()


def report(
    params: Any,
    grads: Any = None,
    opt_state: Any = None,
    token_counts: Any = None,
    *,
    tables: DimensionNumbersLike = AUTO,
    spectral: bool = True,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    feature_mean: str = "all_rows",
) -> dict[str, jax.Array]:
    """Metrics of the token tables of a model, of their gradients and of their steps: scalars with stable names for any logger.

    Every name is `geometry/<path of the table>/<metric>`. Each table of a stack has its number before the metric.
    docs/geometry.md explains each metric and its healthy range. The report changes nothing, so training is the same with and
    without it.

    From `params`: `mean_row_norm`, `largest_row_norm`, `largest_token`, `smallest_row_norm`, `smallest_token`, `iso_score` and
    `mean_cosine_similarity`; unless `spectral=False` also `effective_rank`, `stable_rank` and `partition_isotropy`. The last
    four also exist as `..._centered`.

    From `grads`: `gradient_norm`, `active_rows`, `active_share`; unless `spectral=False` `gradient_effective_rank` and
    `gradient_stable_rank`.

    From `opt_state`: `steps`. For Ember also `skipped_batches` and `tokens_without_gradient`, the number of tokens that never had
    a gradient. `geometry/skipped_batches` is the sum over all Embers.

    From gradients and state: `update_size` (the root mean square of the update of all rows, in units of the learning rate),
    `median_row_step` and `largest_row_step` (of the same for each row), `largest_row_step_token`, `cold_row_ratio`.

    From `token_counts`: `tokens_never_seen`; weighted by count, `mean_row_norm_weighted`, `mean_cosine_similarity_weighted` and,
    with gradients and state, `mean_row_step_weighted`. The rarer and the more frequent half of the tokens that occur have the
    same metrics, as `rare/mean_row_norm`, `frequent/mean_row_norm` and so on. The middle one of an odd number of tokens is rare.

    A declared parameter without features has no geometry. An example is the bias of a head, which `vocab` needs. It is left out,
    and has one entry, `geometry/<path>/left_out`, which is 1.

    Args:
      params: the parameters, a tree of arrays.
      grads: their dense gradients. None, or None for one table, leaves out the metrics that need them, for example in a
        row-sparse step.
      opt_state: the optimizer state before the step of these gradients. Tables that neither Ember nor Adam trains do not have the
        metrics that need a state.
      token_counts: how often each token occurred, (V,) for all tables or a dictionary from paths. Accumulate it from batches, or
        count the data.
      tables: which parameters are tables, as for `ember`.
      spectral: False leaves out the metrics that need O(V D^2 + D^3).
      b1: the optimizer's `b1`, for Adam only. A state does not hold it.
      b2: the optimizer's `b2`. A state does not hold it.
      eps: the optimizer's `eps`. A state does not hold it.
      feature_mean: the `feature_mean` of `ember`. A state does not hold it.

    Returns:
      A flat dictionary of scalars, float32 (float64 for float64) and int32. A metric that is not defined is NaN, for example in a
      step without an active row.

    Raises:
      TypeError: an argument is not a tree of arrays, or a hyperparameter is not a number.
      ValueError: there is no table with features; `opt_state` has Ember's state of a table that "auto" does not find; a
        gradient, a state or counts do not have the shape of their table; a path is not a table.

    Warns:
      UserWarning: the finder may have missed a head, or guesses its token axis. The message says what to write.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember, geometry
      >>> params = {"embed": {"embedding": jnp.eye(8, 4)}, "dense": {"kernel": jnp.ones((4, 4))}}
      >>> opt_state = ember(1e-2, optax.adamw(1e-3)).init(params)
      >>> metrics = geometry.report(params, params, opt_state)
      >>> print(metrics["geometry/embed/embedding/effective_rank"], metrics["geometry/embed/embedding/active_rows"])
      4.0 4

    References:
      docs/geometry.md
    """
    check_tree(params, "params")
    check_declaration(tables, "tables")
    found = found_tables(params, tables)
    if not found.tables:
        raise ValueError(no_table_message(found))
    # A parameter without features has one number for each token, and no row to measure.
    flat, measurable = ([table for table in found.tables if bool(table.axes.feature) is has] for has in (False, True))
    names = [table.name for table in found.tables]
    if not measurable:
        raise ValueError(
            f"tables declares only {names}, which have no features, but a report is about rows: declare their tables too."
        )
    _check_owned(opt_state, names, tables)
    warn_of_suspects(found, "geometry.report")
    gradients = _gradients_by_name(grads, [table.name for table in measurable])
    states = {} if opt_state is None else table_states(opt_state)
    counts = _counts_by_name(token_counts, names)
    rule, spectral = step_rule(b1, b2, eps, feature_mean), checked_flag(spectral, "spectral")
    metrics: dict[str, jax.Array] = {f"geometry/{table.name}/left_out": jnp.ones((), jnp.int32) for table in flat}
    for table in measurable:
        name = table.name
        values = _table_values(table, gradients.get(name), states.get(name), counts.get(name), rule, spectral)
        metrics |= {f"geometry/{name}/{metric}": value for metric, value in values.items()}
    skipped = [jnp.sum(state.total_notfinite, dtype=jnp.int32) for state in ember_moments(opt_state).values()]
    return metrics | ({"geometry/skipped_batches": functools.reduce(jnp.add, skipped)} if skipped else {})


def _check_owned(opt_state: Any, names: list[str], tables: DimensionNumbersLike) -> None:
    """Raises if Ember trains a table that the finder does not find. Then the user declared tables to `ember` only."""
    missing = sorted(set(ember_moments(opt_state)) - set(names))
    if missing and isinstance(tables, str):
        raise ValueError(
            f"opt_state has Ember's state of {missing}, but the finder takes only {names} for tables: pass the same "
            f"tables=... as to ember, or tables=token_tables for a report on those that it finds."
        )


def _table_values(
    table: Table, gradient: Any, state: TableState | None, counts: Any, rule: StepRule, spectral: bool
) -> dict[str, jax.Array]:
    what = f"parameter {table.name!r}"
    (token,), batch = table.axes.token, table.axes.batch
    array, _ = checked_table(table.array, token, what)
    if gradient is not None:
        gradient, _ = checked_table(gradient, token, f"the gradient of {table.name!r}")
        if gradient.shape != array.shape:
            raise ValueError(
                f"the gradient of {table.name!r} has shape {gradient.shape}, but the parameter {array.shape}: pass dense "
                f"gradients, and None instead of those of row-sparse steps."
            )
    if state is not None:
        state = checked_state(state, array, token, batch, f" of {table.name!r}")
    if counts is not None:
        counts = checked_weights(counts, array, token, f"token_counts of {table.name!r}")

    compute = functools.partial(table_report, axes=table.axes, rule=rule, spectral=spectral)
    values = in_auto_mode(compute, PartitionSpec, array, gradient, state, counts)
    if not batch:
        return values
    places = list(np.ndindex(*(array.shape[axis] for axis in batch)))
    return {f"{'/'.join(map(str, place))}/{metric}": value[place] for place in places for metric, value in values.items()}


def _gradients_by_name(grads: Any, names: list[str]) -> dict[str, Any]:
    check_tree(grads, "grads", may_be_missing=True)
    if grads is None:
        return {}
    marked = jax.tree.map(lambda leaf: _LEFT_OUT if leaf is None else leaf, grads, is_leaf=lambda leaf: leaf is None)
    found = {leaf.name: leaf.array for leaf in read_tree(marked).leaves}
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"grads has nothing for the tables {missing}, only {list(found)}: pass the gradients of these parameters."
        )
    return {name: found[name] for name in names if found[name] is not _LEFT_OUT}


def _counts_by_name(token_counts: Any, names: list[str]) -> dict[str, Any]:
    if not isinstance(token_counts, Mapping):
        return {} if token_counts is None else dict.fromkeys(names, token_counts)
    if unknown := [path for path in token_counts if path not in names]:
        raise ValueError(f"token_counts has {unknown}, but the tables are {names}; correct the path.")
    return dict(token_counts)
