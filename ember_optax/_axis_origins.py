"""Which axis of which parameter each axis of an optimizer state came from, for any optax transformation."""

from typing import Any, NamedTuple

import jax
import optax

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
    leaves, treedef = jax.tree.flatten(params)
    # In the order of the real sizes: optax.adafactor's state depends on which axis of a parameter is the longer one.
    every_axis = [AxisOrigin(number, axis) for number, leaf in enumerate(leaves) for axis in range(leaf.ndim)]
    ordered = sorted(every_axis, key=lambda origin: leaves[origin.parameter].shape[origin.axis])
    found = dict(enumerate(ordered, _FIRST_SIZE))
    size_of = {origin: size for size, origin in found.items()}

    def marked_shape(number: int) -> tuple[int, ...]:
        return tuple(size_of[AxisOrigin(number, axis)] for axis in range(leaves[number].ndim))

    # Without the parameters' own shardings: an abstract state needs no mesh.
    plain = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    marked = [jax.ShapeDtypeStruct(marked_shape(number), leaf.dtype) for number, leaf in enumerate(leaves)]
    state = jax.eval_shape(tx.init, treedef.unflatten(plain))
    marked_state = jax.eval_shape(tx.init, treedef.unflatten(marked))

    def origin(size: int, marked_size: int) -> AxisOrigin | None:
        known = found.get(marked_size)
        return known if known is not None and leaves[known.parameter].shape[known.axis] == size else None

    def origins(leaf, marked_leaf) -> Origins:
        # Some transformations choose another form of state for other sizes, as optax.adafactor does for small matrices.
        same_form = leaf.ndim == marked_leaf.ndim
        return Origins(tuple(map(origin, leaf.shape, marked_leaf.shape)) if same_form else (None,) * leaf.ndim)

    return state, jax.tree.map(origins, state, marked_state)


class Origins:
    """The origin of each axis of one state array; no pytree node, so that it can be a leaf."""

    def __init__(self, axes: tuple[AxisOrigin | None, ...]):
        self.axes = axes
