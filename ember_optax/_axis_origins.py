"""Which axis of which parameter each axis of an optimizer state came from, for any optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._paths import full_path_name

# No real axis has these sizes twice in one model; small enough to survive an `init` that allocates in earnest.
_FIRST_SIZE = 10_007


class AxisOrigin(NamedTuple):
    """One axis of one parameter; parameters are numbered in the order of `jax.tree.leaves`."""

    parameter: int
    axis: int


def axis_origins(tx: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """The abstract state of `tx`, and for each of its arrays the origin of each axis, None where there is none.

    The origin is found by a second abstract initialisation in which every axis of every parameter has a size of its own.

    Args:
      tx: the transformation whose `init` makes the state.
      params: the parameters; arrays or `jax.ShapeDtypeStruct`. Nothing is allocated.

    Returns:
      Two trees of the structure of `tx.init(params)`: with `jax.ShapeDtypeStruct` leaves, and with `Origins` leaves.
    """
    names, leaves = _flatten(params)
    shapes = [np.shape(leaf) for leaf in leaves]
    # In the order of the real sizes: optax.adafactor's state depends on which axis of a parameter is the longer one.
    every_axis = [AxisOrigin(number, axis) for number, shape in enumerate(shapes) for axis in range(len(shape))]
    found = dict(enumerate(sorted(every_axis, key=lambda origin: shapes[origin.parameter][origin.axis]), _FIRST_SIZE))
    size_of: dict[tuple[int, int], int] = {origin: size for size, origin in found.items()}
    marked_shapes = [tuple(size_of[number, axis] for axis in range(len(shape))) for number, shape in enumerate(shapes)]

    def abstract_state(shapes: list[tuple[int, ...]]) -> Any:
        # Without the parameters' own shardings: an abstract state needs no mesh.
        arrays = [jax.ShapeDtypeStruct(shape, jnp.result_type(leaf)) for shape, leaf in zip(shapes, leaves, strict=True)]
        return jax.eval_shape(tx.init, jax.tree.unflatten(jax.tree.structure(params), arrays))

    state = abstract_state(shapes)
    marked = dict(zip(*_flatten(abstract_state(marked_shapes)), strict=True))

    def origin(size: int, marked_size: int) -> AxisOrigin | None:
        known = found.get(marked_size)
        return known if known is not None and shapes[known.parameter][known.axis] == size else None

    def origins(name: str, leaf) -> Origins:
        # Some transformations choose another form of state for other sizes, as optax.adafactor does for small matrices.
        if name in marked and marked[name].ndim == leaf.ndim:
            return Origins(tuple(map(origin, leaf.shape, marked[name].shape)))
        owners = [number for number, owner in enumerate(names) if name.endswith(f"/{owner}") and shapes[number] == leaf.shape]
        if not owners:
            return Origins((None,) * leaf.ndim)
        owner = max(owners, key=lambda number: len(names[number]))
        return Origins(tuple(AxisOrigin(owner, axis) for axis in range(leaf.ndim)))

    return state, jax.tree.unflatten(jax.tree.structure(state), list(map(origins, *_flatten(state))))


def _flatten(tree: Any) -> tuple[list[str], list[Any]]:
    """Unambiguous names and leaves."""
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [full_path_name(path) for path, _ in paths_and_leaves], [leaf for _, leaf in paths_and_leaves]


class Origins:
    """The origin of each axis of one state array; no pytree node, so that it can be a leaf."""

    def __init__(self, axes: tuple[AxisOrigin | None, ...]):
        self.axes = axes
