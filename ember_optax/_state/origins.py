"""`axis_origins`: the parameter and axis that each axis of an optimizer state comes from, for any Optax transformation."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._math.axes import TableAxes
from .._math.state import AVERAGES, Moments, kept_axes
from .._optimizer.checks import check_transformation
from .._tree.find_states import ember_states
from .._tree.inputs import check_array, check_tree
from .._tree.paths import check_distinct, flatten_named
from .._tree.tables import TableTree
from .._tree.watching import repeated_tables, watched_tables

# The first of the distinct sizes. They are unlikely in a real model, and small enough for an `init` that really allocates.
_FIRST_SIZE = 10_007

KeyPath = tuple[Any, ...]


def check_tx_and_params(tx: Any, params: Any) -> None:
    """Raises unless `tx` is a transformation and `params` is a tree of arrays."""
    check_transformation(tx, "tx", "pass the transformation first, then the parameters")
    check_tree(params, "params")
    for name, leaf in zip(*flatten_named(params)[:2], strict=True):
        check_array(leaf, f"parameter {name!r}")


class AxisOrigin(NamedTuple):
    """One axis of one parameter. Parameters are numbered in the order of `jax.tree.leaves`."""

    parameter: int
    axis: int


class Origins:
    """The origin of each axis of one state array. It is not a pytree node, so that it can be a leaf.

    Attributes:
      axes: for each axis of the array, the axis of a parameter that it comes from, or None.
      averaged: the axes of a parameter over which the array is an average that includes zeros. Only Ember's arrays have them.
    """

    def __init__(self, axes: tuple[AxisOrigin | None, ...], averaged: tuple[AxisOrigin, ...] = ()):
        self.axes = axes
        self.averaged = averaged


class InitialState(NamedTuple):
    """What an abstract `tx.init(params)` shows: the state as `jax.ShapeDtypeStruct`, and the tables that each Ember took."""

    state: Any
    seen: list[TableTree]


def initial_state(tx: optax.GradientTransformation, params: Any) -> InitialState:
    """The state of `tx.init(params)`. Nothing is allocated."""
    with watched_tables() as seen:
        return InitialState(_abstract(tx, params, [np.shape(leaf) for leaf in jax.tree.leaves(params)]), seen)


def axis_origins(tx: optax.GradientTransformation, params: Any, initial: InitialState | None = None) -> Any:
    """The origin of each axis of each array in the state of `tx`. An axis without an origin has None.

    For Ember's arrays, the watched `initial_state` shows the axes, because a `tables` function may look at sizes. For any other
    state, a second abstract `init` shows them, in which every axis of every parameter has a distinct size.

    Args:
      tx: the transformation whose `init` makes the state.
      params: the parameters, as arrays or `jax.ShapeDtypeStruct`. Nothing is allocated.
      initial: `initial_state(tx, params)`, if the caller has it.

    Returns:
      A tree of the structure of `tx.init(params)` with `Origins` leaves.

    Raises:
      ValueError: two parameters have the same path, or two Embers declare different axes for one table.
    """
    paths, leaves = _flatten(params)
    check_distinct(flatten_named(params)[0])
    shapes = [np.shape(leaf) for leaf in leaves]

    state, seen = initial_state(tx, params) if initial is None else initial
    told = _origins_of_embers(state, seen, flatten_named(params)[0])
    found, marked_shapes = _with_distinct_sizes(shapes)
    with repeated_tables(seen):
        marked = dict(zip(*_flatten(_abstract(tx, params, marked_shapes)), strict=True))

    def origin(size: int, marked_size: int) -> AxisOrigin | None:
        known = found.get(marked_size)
        return known if known is not None and shapes[known.parameter][known.axis] == size else None

    def origins(path: KeyPath, leaf: Any) -> Origins:
        if path in told:
            return told[path]
        # For other sizes some transformations have another form of state, for example optax.adafactor for small matrices.
        if path in marked and marked[path].ndim == leaf.ndim:
            return Origins(tuple(map(origin, leaf.shape, marked[path].shape)))
        owners = [n for n, owner in enumerate(paths) if path[-len(owner) :] == owner and shapes[n] == leaf.shape]
        if not owners:
            return Origins((None,) * leaf.ndim)
        owner = max(owners, key=lambda number: len(paths[number]))
        return Origins(tuple(AxisOrigin(owner, axis) for axis in range(leaf.ndim)))

    return jax.tree.unflatten(jax.tree.structure(state), list(map(origins, *_flatten(state))))


def _abstract(tx: optax.GradientTransformation, params: Any, shapes: list[tuple[int, ...]]) -> Any:
    """`tx.init` of parameters like these with other shapes, in the order of `jax.tree.leaves`, as `jax.ShapeDtypeStruct`."""
    leaves, treedef = jax.tree.flatten(params)
    # Without the parameters' shardings, because an abstract state needs no mesh. With a new function object, because JAX caches
    # the trace of a known function, and then Ember's `init` would not run.
    arrays = [jax.ShapeDtypeStruct(shape, jnp.result_type(leaf)) for shape, leaf in zip(shapes, leaves, strict=True)]
    return jax.eval_shape(functools.partial(tx.init), treedef.unflatten(arrays))


def _origins_of_embers(state: Any, seen: list[TableTree], names: list[str]) -> dict[KeyPath, Origins]:
    """The origins of the arrays of every `ScaleByEmberState`, by their path in the state."""
    axes: dict[str, TableAxes] = {}
    feature_means: dict[str, str] = {}
    for found in seen:
        for table in found.tables:
            _set_once(axes, table.name, table.axes, "axes")
            if found.feature_mean is not None:
                _set_once(feature_means, table.name, found.feature_mean, "feature_mean")
    told = {}
    for prefix, node in ember_states(state):
        for field in Moments._fields:
            tree = getattr(node, field)
            for path, name in zip(_flatten(tree)[0], flatten_named(tree)[0], strict=True):
                of_parameter = functools.partial(AxisOrigin, names.index(name))
                kept = getattr(kept_axes(axes[name]), field)
                all_rows = field in AVERAGES and feature_means.get(name) == "all_rows"
                averaged = [axis for axis in axes[name].token if all_rows and axis not in kept]
                told[(*prefix, jax.tree_util.GetAttrKey(field), *path)] = Origins(
                    tuple(map(of_parameter, kept)), tuple(map(of_parameter, averaged))
                )
    return told


def _set_once(known: dict[str, Any], name: str, value: Any, what: str) -> None:
    if known.setdefault(name, value) != value:
        raise ValueError(f"two Embers in tx take {name!r} with different {what}: {known[name]} and {value}.")


def _with_distinct_sizes(shapes: list[tuple[int, ...]]) -> tuple[dict[int, AxisOrigin], list[tuple[int, ...]]]:
    """The axis for each distinct size, and the shapes of the parameters with these sizes.

    Distinct sizes are in the order of the real sizes, because the state of optax.adafactor depends on which axis is longer.
    """
    every_axis = [AxisOrigin(number, axis) for number, shape in enumerate(shapes) for axis in range(len(shape))]
    found = dict(enumerate(sorted(every_axis, key=lambda origin: shapes[origin.parameter][origin.axis]), _FIRST_SIZE))
    size_of = {(origin.parameter, origin.axis): size for size, origin in found.items()}
    return found, [tuple(size_of[number, axis] for axis in range(len(shape))) for number, shape in enumerate(shapes)]


def _flatten(tree: Any) -> tuple[list[KeyPath], list[Any]]:
    """The key paths, which are unique, and the leaves of a tree."""
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [path for path, _ in paths_and_leaves], [leaf for _, leaf in paths_and_leaves]
