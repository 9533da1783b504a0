"""The metrics that `report` has of one table, or of each of a stack of them, as one compiled program.

A metric is added here and in the docstring of `report`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .._math.axes import TableAxes
from .._math.frequency import halves_by_count
from .._math.mean_cosine import mean_cosine_of
from .._math.state import kept_axes
from .._math.weighted_rows import Rows, centered_rows, norms, rows_of, share
from .._tree.find_states import ScaleByEmberState
from ._gradients import active_of
from ._isotropy import iso_score_of, partition_isotropy_of
from ._norms import mean_norm_of, norms_of
from ._spectrum import effective_rank_of, principal, singular_values, stable_rank_of
from ._step_sizes import StepRule, TableState, ratio_and_median, row_steps

Metrics = dict[str, Any]


def table_report(
    array: Any, gradient: Any, state: Any, counts: Any, *, axes: TableAxes, rule: StepRule, spectral: bool
) -> Metrics:
    """The metrics of checked arrays by name, each in the shape of the batch axes. Arguments that were not given are None."""
    return (_compiled if rule.is_static else _metrics_of_stack)(array, gradient, state, counts, axes, rule, spectral)


def _metrics_of_stack(
    array: Any, gradient: Any, state: Any, counts: Any, axes: TableAxes, rule: StepRule, spectral: bool
) -> Metrics:
    (token,), batch = axes.token, axes.batch
    token -= sum(axis < token for axis in batch)

    def one(array, gradient, state):
        return _metrics_of_one(array, gradient, state, counts, token, rule, spectral)

    def batch_first(value: jax.Array, kept: tuple[int, ...]) -> jax.Array:
        return jnp.moveaxis(value, [kept.index(axis) for axis in batch], range(len(batch)))

    every = tuple(range(array.ndim))
    if isinstance(state, ScaleByEmberState):
        state = ScaleByEmberState(*map(batch_first, state, kept_axes(axes)))
    elif state is not None:
        count = jnp.broadcast_to(state.count, [array.shape[axis] for axis in batch])
        state = state._replace(count=count, mu=batch_first(state.mu, every), nu=batch_first(state.nu, every))
    for _ in batch:
        one = jax.vmap(one)
    return one(batch_first(array, every), None if gradient is None else batch_first(gradient, every), state)


_compiled = functools.partial(jax.jit, static_argnums=(4, 5, 6))(_metrics_of_stack)


def _metrics_of_one(array: Any, gradient: Any, state: Any, counts: Any, token: int, rule: StepRule, spectral: bool) -> Metrics:
    rows = rows_of(array, token)
    metrics = _row_metrics(rows, spectral) | _state_metrics(state)
    steps_V = None if gradient is None or state is None else row_steps(gradient, state, token, rule)
    if gradient is not None:
        active_V = active_of(rows_of(gradient, token))
        metrics |= _gradient_metrics(rows_of(gradient, token), active_V, spectral)
        if steps_V is not None:
            metrics |= _step_metrics(steps_V, active_V)
    if counts is not None:
        metrics |= _count_metrics(rows, counts, steps_V)
    return metrics


def _row_metrics(rows: Rows, spectral: bool) -> Metrics:
    norm_V, centered = norms_of(rows), centered_rows(rows)
    metrics = {
        "mean_row_norm": mean_norm_of(rows),
        "largest_row_norm": jnp.max(norm_V),
        "largest_token": _as_token_id(jnp.argmax(norm_V)),
        "smallest_row_norm": jnp.min(norm_V),
        "smallest_token": _as_token_id(jnp.argmin(norm_V)),
        "iso_score": iso_score_of(centered),
    }
    for suffix, of in (("", rows), ("_centered", centered)):
        metrics[f"mean_cosine_similarity{suffix}"] = mean_cosine_of(of)
        if spectral:
            along = principal(of)
            metrics[f"effective_rank{suffix}"] = effective_rank_of(along.sigma)
            metrics[f"stable_rank{suffix}"] = stable_rank_of(along.sigma)
            metrics[f"partition_isotropy{suffix}"] = partition_isotropy_of(along, of)
    return metrics


def _gradient_metrics(rows: Rows, active_V: jax.Array, spectral: bool) -> Metrics:
    count = jnp.sum(active_V, dtype=jnp.int32)
    metrics = {
        "gradient_norm": norms(norms_of(rows), (0,)).reshape(()),
        "active_rows": count,
        "active_share": (count / active_V.size).astype(rows.x.dtype),
    }
    if spectral:
        sigma = singular_values(rows)
        metrics |= {"gradient_effective_rank": effective_rank_of(sigma), "gradient_stable_rank": stable_rank_of(sigma)}
    return metrics


def _state_metrics(state: TableState | None) -> Metrics:
    if state is None:
        return {}
    if not isinstance(state, ScaleByEmberState):
        return {"steps": state.count}
    never = jnp.sum(state.nu_token == 0, dtype=jnp.int32)
    return {"steps": state.count, "skipped_batches": state.total_notfinite, "tokens_without_gradient": never}


def _step_metrics(steps_V: jax.Array, active_V: jax.Array) -> Metrics:
    ratio, median = ratio_and_median(steps_V, active_V)
    return {
        "update_size": jnp.sqrt(jnp.mean(jnp.square(steps_V))),
        "median_row_step": median,
        "largest_row_step": jnp.max(steps_V),
        "largest_row_step_token": _as_token_id(jnp.argmax(steps_V)),
        "cold_row_ratio": ratio,
    }


def _count_metrics(rows: Rows, counts: jax.Array, steps_V: jax.Array | None) -> Metrics:
    def of(weight_V: jax.Array) -> Metrics:
        weighted = rows._replace(weight=weight_V.astype(rows.x.dtype).reshape(rows.weight.shape))
        p_V = share(weighted).reshape(-1)
        metrics = {"mean_row_norm": jnp.sum(p_V * norms_of(rows)), "mean_cosine_similarity": mean_cosine_of(weighted)}
        return metrics if steps_V is None else metrics | {"mean_row_step": jnp.sum(p_V * steps_V)}

    metrics: Metrics = {"tokens_never_seen": jnp.sum(counts == 0, dtype=jnp.int32)}
    metrics |= {f"{name}_weighted": value for name, value in of(counts).items()}
    for half, mask_V in zip(("rare", "frequent"), halves_by_count(counts), strict=True):
        metrics |= {f"{half}/{name}": value for name, value in of(mask_V).items()}
    return metrics


def _as_token_id(index: jax.Array) -> jax.Array:
    return index.astype(jnp.int32)
