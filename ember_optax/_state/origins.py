"""Which axis of which parameter each axis of an optimizer state came from, for any optax transformation."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._math.axes import TableAxes
from .._math.moments import Moments, kept_axes
from .._optimizer.checks import check_transformation
from .._tree.inputs import check_array, check_tree
from .._tree.paths import check_distinct, flatten_named
from .._tree.state import ember_states
from .._tree.tables import TableTree
from .._tree.watching import repeated_tables, watched_tables

# No real axis has these sizes twice in one model; small enough to survive an `init` that allocates in earnest.
_FIRST_SIZE = 10_007

KeyPath = tuple[Any, ...]


def check_tx_and_params(tx: Any, params: Any) -> None:
    """Raises where the first two arguments of a function of states are not a transformation and parameters."""
    check_transformation(tx, "tx", "pass the transformation first, then the parameters")
    check_tree(params, "params")
    for name, leaf in zip(*flatten_named(params)[:2], strict=True):
        check_array(leaf, f"parameter {name!r}")


class AxisOrigin(NamedTuple):
    """One axis of one parameter; parameters are numbered in the order of `jax.tree.leaves`."""

    parameter: int
    axis: int


class Origins:
    """The origin of each axis of one state array; no pytree node, so that it can be a leaf.

    Attributes:
      axes: for each axis of the array the axis of a parameter whose size it has, None where there is none.
      averaged: the axes of a parameter over all of which the array is an average, zeros included; only Ember tells.
    """

    def __init__(self, axes: tuple[AxisOrigin | None, ...], averaged: tuple[AxisOrigin, ...] = ()):
        self.axes = axes
        self.averaged = averaged


def axis_origins(tx: optax.GradientTransformation, params: Any) -> Any:
    """For each array of the state of `tx` the origin of each axis, None where there is none.

    Ember tells the axes of its tables itself, asked once and with the real shapes: a `tables` function may look at sizes. Those
    of any other state are found by a second abstract initialisation in which every axis of every parameter has a size of its own.

    Args:
      tx: the transformation whose `init` makes the state.
      params: the parameters; arrays or `jax.ShapeDtypeStruct`. Nothing is allocated.

    Returns:
      A tree of the structure of `tx.init(params)` with `Origins` leaves.

    Raises:
      ValueError: two parameters have the same path, or two Embers declare other axes of one table.
    """
    paths, leaves = _flatten(params)
    check_distinct(flatten_named(params)[0])
    shapes = [np.shape(leaf) for leaf in leaves]

    with watched_tables() as seen:
        state = abstract_state(tx, params, shapes)
    told = _told_by_ember(state, seen, flatten_named(params)[0])
    found, marked_shapes = _marked(shapes)
    with repeated_tables(seen):
        marked = dict(zip(*_flatten(abstract_state(tx, params, marked_shapes)), strict=True))

    def origin(size: int, marked_size: int) -> AxisOrigin | None:
        known = found.get(marked_size)
        return known if known is not None and shapes[known.parameter][known.axis] == size else None

    def origins(path: KeyPath, leaf: Any) -> Origins:
        if path in told:
            return told[path]
        # Some transformations choose another form of state for other sizes, as optax.adafactor does for small matrices.
        if path in marked and marked[path].ndim == leaf.ndim:
            return Origins(tuple(map(origin, leaf.shape, marked[path].shape)))
        owners = [n for n, owner in enumerate(paths) if path[-len(owner) :] == owner and shapes[n] == leaf.shape]
        if not owners:
            return Origins((None,) * leaf.ndim)
        owner = max(owners, key=lambda number: len(paths[number]))
        return Origins(tuple(AxisOrigin(owner, axis) for axis in range(leaf.ndim)))

    return jax.tree.unflatten(jax.tree.structure(state), list(map(origins, *_flatten(state))))


def abstract_state(tx: optax.GradientTransformation, params: Any, shapes: list[tuple[int, ...]]) -> Any:
    """`tx.init` of parameters like these with other shapes, in the order of `jax.tree.leaves`, as `jax.ShapeDtypeStruct`."""
    leaves, treedef = jax.tree.flatten(params)
    # Without the parameters' own shardings: an abstract state needs no mesh. Through a new function, because JAX keeps the
    # result of a known one and Ember would not be asked again.
    arrays = [jax.ShapeDtypeStruct(shape, jnp.result_type(leaf)) for shape, leaf in zip(shapes, leaves, strict=True)]
    return jax.eval_shape(functools.partial(tx.init), treedef.unflatten(arrays))


def _told_by_ember(state: Any, seen: list[TableTree], names: list[str]) -> dict[KeyPath, Origins]:
    """The origins of the arrays of every `ScaleByEmberState`, by their path in the state."""
    axes: dict[str, TableAxes] = {}
    feature_means: dict[str, str] = {}
    for found in seen:
        for table in (table for table in found.tables if table.axes is not None):
            _tell(axes, table.name, table.axes, "axes")
            if found.feature_mean is not None:
                _tell(feature_means, table.name, found.feature_mean, "feature_mean")
    told = {}
    for prefix, node in ember_states(state):
        for field in Moments._fields:
            tree = getattr(node, field)
            for path, name in zip(_flatten(tree)[0], flatten_named(tree)[0], strict=True):
                of_parameter = functools.partial(AxisOrigin, names.index(name))
                kept = getattr(kept_axes(axes[name]), field)
                all_rows = field == "nu_feature" and feature_means.get(name) == "all_rows"
                averaged = axes[name].token if all_rows else ()
                told[(*prefix, jax.tree_util.GetAttrKey(field), *path)] = Origins(
                    tuple(map(of_parameter, kept)), tuple(map(of_parameter, averaged))
                )
    return told


def _tell(known: dict[str, Any], name: str, value: Any, what: str) -> None:
    if known.setdefault(name, value) != value:
        raise ValueError(f"two Embers in tx take {name!r} with other {what}: {known[name]} and {value}.")


def _marked(shapes: list[tuple[int, ...]]) -> tuple[dict[int, AxisOrigin], list[tuple[int, ...]]]:
    """A size of its own for each axis, and shapes of these sizes.

    In the order of the real sizes: optax.adafactor's state depends on which axis of a parameter is the longer one.
    """
    every_axis = [AxisOrigin(number, axis) for number, shape in enumerate(shapes) for axis in range(len(shape))]
    found = dict(enumerate(sorted(every_axis, key=lambda origin: shapes[origin.parameter][origin.axis]), _FIRST_SIZE))
    size_of = {(origin.parameter, origin.axis): size for size, origin in found.items()}
    return found, [tuple(size_of[number, axis] for axis in range(len(shape))) for number, shape in enumerate(shapes)]


def _flatten(tree: Any) -> tuple[list[KeyPath], list[Any]]:
    """Key paths, which are never ambiguous, and leaves."""
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [path for path, _ in paths_and_leaves], [leaf for _, leaf in paths_and_leaves]
