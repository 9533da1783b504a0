"""`on_tables`, the common part of all transformations of this room: it finds the tables, reads their state, checks the updates.

A new transformation is a `Rule` in the module of its subject, such as `_rows.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._math.mesh import in_auto_mode, spec_like, varying_axes
from .._math.state import init_moments, kept_axes
from .._optimizer.checks import check_found, check_given, check_leaf, checked_params
from .._tree.boxes import rebox, rebox_axes, unbox
from .._tree.declared import DimensionNumbersLike, check_declaration
from .._tree.inputs import check_tree, shown
from .._tree.paths import is_complete
from .._tree.suspects import warn_of_suspects
from .._tree.tables import Leaf, Table, TableTree, found_tables
from .._tree.token_ids import check_compact, token_ids_by_name
from .._tree.watching import is_observed, tables_at_init


class Rule(NamedTuple):
    """The step of a transformation on one table, and its requirements.

    A transformation may keep a vector for each table between steps, the kept vector.

    Attributes:
      name: the name of the transformation, for messages.
      step: `step(table, update, param, kept, given)` returns the update and the kept vector, both with the table's layout.
      keeps: the field of Ember's state that has the shape of the kept vector. None if the transformation keeps nothing.
      needs_params: the reason why it reads the parameters. None if it does not.
      needs_all_rows: the reason why it cannot work on the rows of a batch only. None if it can.
      given: a function that reads the value for a table from the extra arguments of `update`. None if there is no such value.
    """

    name: str
    step: Callable[..., tuple[jax.Array, Any]]
    keeps: str | None = None
    needs_params: str | None = None
    needs_all_rows: str | None = None
    given: Callable[[Table, dict[str, Any]], Any] | None = None


def on_tables(
    rule: Rule, tables: DimensionNumbersLike, state_of: Callable[[Any], Any] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The transformation that applies `rule` to the tables that `tables` finds in a tree. Other updates do not change.

    `state_of` is the class of the state, a named tuple of one field, which is a tree of kept vectors. None without a state.
    """
    check_declaration(tables, "tables")

    find = functools.partial(found_tables, declaration=tables)

    def init_fn(params):
        check_tree(params, "params")
        found = tables_at_init(find, params)
        check_found(found, complete=is_complete(params))
        if not is_observed():
            warn_of_suspects(found, rule.name)
        first = list(map(_first_vector, found.leaves))
        return optax.EmptyState() if state_of is None else state_of(found.treedef.unflatten(first))

    def _first_vector(table: Leaf) -> Any:
        axes = check_leaf(table) if isinstance(table, Table) else None
        if axes is None or rule.keeps is None:
            return optax.MaskedNode()
        vector = getattr(init_moments(table.array, axes), rule.keeps)
        return rebox_axes(table.box, vector, getattr(kept_axes(axes), rule.keeps))

    def update_fn(updates, state, params=None, *, token_ids=None, **extra_args):
        check_tree(updates, "updates", may_be_empty=True)
        check_tree(params, "params", may_be_empty=True, may_be_missing=True)
        ids = token_ids_by_name(token_ids)
        check_given(params, with_ids=bool(ids))
        if rule.needs_params and params is None:
            raise ValueError(f"{rule.name} needs the parameters: call update(updates, state, params). {rule.needs_params}")
        found = find(updates, token_ids=ids, params=params)
        weights = checked_params(found, params) if rule.needs_params else [None] * len(found.leaves)
        boxes = _kept_vectors(found, state, state_of, rule.name)
        stepped = [_step_of_leaf(rule, *each, extra_args) for each in zip(found.leaves, weights, boxes, strict=True)]
        updates = found.rebuild(update for update, _ in stepped)
        return updates, state if state_of is None else state_of(found.treedef.unflatten(kept for _, kept in stepped))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _kept_vectors(found: TableTree, state: Any, state_of: Any, name: str) -> list[Any]:
    """The kept vector of each leaf, in its box."""
    if state_of is None:
        return [None] * len(found.leaves)
    if not isinstance(state, state_of):
        raise TypeError(
            f"state must be the {state_of.__name__} that init or the last update of this {name} returned, got {shown(state)}."
        )
    try:
        return found.treedef.flatten_up_to(state[0])
    except (ValueError, TypeError):
        raise ValueError(
            f"the updates have the tables {found.names}, but the state of {name} has other parameters; pass the state that "
            f"belongs to these updates."
        ) from None


def _step_of_leaf(rule: Rule, table: Leaf, weight: Any, box: Any, extra_args: dict[str, Any]) -> tuple[Any, Any]:
    if not isinstance(table, Table):
        return table.array, box
    check_leaf(table)
    update = jnp.asarray(table.array)
    _check_rows(rule, table, update)
    kept = None if box is None else unbox(box)
    if kept is not None and jnp.shape(kept) != _kept_shape(table, rule):
        raise ValueError(
            f"the state of {rule.name} for {table.name!r} has shape {jnp.shape(kept)}, but a table of shape {table.shape} needs "
            f"{_kept_shape(table, rule)}; pass the state that init made of these parameters."
        )
    param = None if weight is None else jnp.asarray(unbox(weight))
    given = rule.given(table, extra_args) if rule.given else None

    def step(update, ids, param, kept, given):
        return rule.step(dataclasses.replace(table, ids=ids), update, param, kept, given)

    def specs():
        return spec_like(update), None if kept is None else spec_like(kept)

    update, kept = in_auto_mode(step, specs, update, table.ids, param, kept, given)
    return update, None if kept is None else rebox(box, kept)


def _kept_shape(table: Table, rule: Rule) -> tuple[int, ...]:
    assert rule.keeps is not None
    return tuple(table.shape[axis] for axis in getattr(kept_axes(table.axes), rule.keeps))


def _check_rows(rule: Rule, table: Table, update: jax.Array) -> None:
    if table.ids is not None and rule.needs_all_rows:
        raise ValueError(
            f"{rule.name} cannot take the row-sparse update of {table.name!r}: {rule.needs_all_rows} Give its update dense, with "
            f"None for its ids, or leave it out: tables=TokenTables(exclude=[{table.name!r}])."
        )
    if table.ids is not None:
        check_compact(table.name, update.shape, table.ids, table.shape, table.axes)
    if split := varying_axes(update):
        raise ValueError(
            f"the update of {table.name!r} differs along the mesh axes {sorted(split)}: inside jax.shard_map {rule.name} would "
            f"take one device's part for the table. Call it under jax.jit, where arrays are whole."
        )


def expanded(vector: jax.Array, table: Table, field: str) -> jax.Array:
    """A kept vector with the rank of its table. The axes that it does not keep have length one."""
    kept = getattr(kept_axes(table.axes), field)
    return jnp.expand_dims(vector, [axis for axis in range(len(table.shape)) if axis not in kept])
