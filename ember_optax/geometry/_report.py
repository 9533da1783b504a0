"""One flat dictionary of what a training run wants to log of its token tables."""

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
from .._tree.hyperparameters import checked_flag
from .._tree.inputs import check_tree
from .._tree.state import ember_moments
from .._tree.suspects import warn_of_suspects
from .._tree.tables import Table, read_tree, tables_of
from ._measured import checked_table, checked_weights
from ._step_sizes import StepRule, TableState, checked_state, step_rule, table_states
from ._table_metrics import table_report

# In the place of a gradient that is None, which a tree of leaves would not have.
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
    """What the token tables of a model look like, and their gradients and steps: scalars with stable names for any logger.

    Every name is `geometry/<path of the table>/<metric>`; of stacked tables each has its number before the metric. What each one
    means, and what is healthy: docs/geometry.md. Nothing is changed, and nothing but the report is computed from it, so that
    training is the same with and without.

    From `params`: `mean_row_norm`, `largest_row_norm`, `largest_token`, `smallest_row_norm`, `smallest_token`, `iso_score`; and,
    each also as `..._centered`, `mean_cosine_similarity` and unless `spectral=False` `effective_rank`, `stable_rank` and
    `partition_isotropy`.

    From `grads`: `gradient_norm`, `active_rows`, `active_share`; unless `spectral=False` `gradient_effective_rank` and
    `gradient_stable_rank`.

    From `opt_state`: `steps`; of Ember also `skipped_batches` and `tokens_without_gradient` (that never had one). Of all Embers
    together `geometry/skipped_batches`.

    From both: `update_size`, `median_row_step`, `largest_row_step` (root mean squares in units of the learning rate, of all rows
    and of each), `largest_row_step_token`, `cold_row_ratio`.

    From `token_counts`: `tokens_never_seen`; `mean_row_norm_weighted`, `mean_cosine_similarity_weighted` and with a step
    `mean_row_step_weighted`, by count; and the same of the rarer and of the more frequent half of the tokens that occur, as
    `rare/mean_row_norm`, `frequent/mean_row_norm` and so on. The middle one of an odd number of tokens is rare.

    A declared parameter without features, such as the bias of a head that `vocab` asks for, has no geometry. It is left out, and
    `geometry/<path>/left_out` says so: 1, its only entry.

    Args:
      params: the parameters, a tree of arrays.
      grads: their gradients, dense; None for what needs none, as a whole or in the place of one (of a row-sparse step, say).
      opt_state: the optimizer state before the step of these gradients. Tables that neither Ember nor Adam trains lack what needs
        a state.
      token_counts: how often each token occurred: (V,) for all tables, or a dictionary from paths. Accumulate it from batches, or
        count the data.
      tables: which parameters are tables, as for `ember`.
      spectral: False leaves out what needs O(V D^2 + D^3).
      b1: as the optimizer has it (Adam alone): a state does not know it.
      b2: likewise.
      eps: likewise.
      feature_mean: likewise, of `ember`.

    Returns:
      A flat dictionary of scalars, float32 (float64 for float64) and int32. NaN where a metric is not defined, in a step
      without an active row for example.

    Raises:
      TypeError: an argument is no tree of arrays; hyperparameters are no numbers.
      ValueError: there is no table with features; `opt_state` has Ember's state of one that "auto" does not find; a gradient, a
        state or counts have another shape than their table; paths that are no table.

    Warns:
      UserWarning: the finder may have missed a head, or guesses its token axis; the message says what to write.

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
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/geometry.md
    """
    check_tree(params, "params")
    check_declaration(tables, "tables")
    found = tables_of(params, tables, "found", argument="tables", what="the parameters are")
    taken = [table for table in found.tables if table.axes is not None]
    if not taken:
        raise ValueError(no_table_message(found))
    # One number for each token: no row to measure.
    flat, measurable = ([table for table in taken if bool(table.axes and table.axes.feature) is has] for has in (False, True))
    names = [table.name for table in taken]
    if not measurable:
        raise ValueError(
            f"tables declares only {names}, which have no features: a report is of rows. Declare the tables that they belong to."
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
        values = _of_table(table, gradients.get(name), states.get(name), counts.get(name), rule, spectral)
        metrics |= {f"geometry/{name}/{metric}": value for metric, value in values.items()}
    skipped = [jnp.sum(state.total_notfinite, dtype=jnp.int32) for state in ember_moments(opt_state).values()]
    return metrics | ({"geometry/skipped_batches": functools.reduce(jnp.add, skipped)} if skipped else {})


def _check_owned(opt_state: Any, names: list[str], tables: DimensionNumbersLike) -> None:
    """Raises where the optimizer was told of tables that the finder, which nobody told, does not find."""
    missing = sorted(set(ember_moments(opt_state)) - set(names))
    if missing and isinstance(tables, str):
        raise ValueError(
            f"opt_state has Ember's state of {missing}, but the finder takes only {names} for tables: pass the same "
            f"tables=... as to ember; tables=token_tables reports on those that it finds, and on no more."
        )


def _of_table(
    table: Table, gradient: Any, state: TableState | None, counts: Any, rule: StepRule, spectral: bool
) -> dict[str, jax.Array]:
    assert table.axes is not None
    what = f"parameter {table.name!r}"
    (token,), batch = table.axes.token, table.axes.batch
    array, _ = checked_table(table.array, token, what)
    if gradient is not None:
        gradient, _ = checked_table(gradient, token, f"the gradient of {table.name!r}")
        if gradient.shape != array.shape:
            raise ValueError(
                f"the gradient of {table.name!r} has shape {gradient.shape}, but the parameter {array.shape}: pass dense "
                f"gradients, and None in the place of those of row-sparse steps."
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
    found = {table.name: table.array for table in read_tree(marked).tables}
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
