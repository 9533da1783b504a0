"""`change`: applies one change of the vocabulary to parameters and optimizer state."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._math.mesh import named_sharding
from .._state.origins import InitialState, Origins, axis_origins, check_tx_and_params, initial_state
from .._state.sharding import check_divisible
from .._tree.boxes import is_box, rebox, resized, unbox
from .._tree.find_states import holds_state
from .._tree.paths import path_name
from .._tree.tables import read_tree
from .._tree.watching import check_same_axes, watched_tables
from ._row_moves import filled_rows, mean_row, moved_rows
from ._vocabulary import Vocabulary

# A function from a table, its token axis and its number among the parameters to the new rows. The result has the shape of the new
# table, or broadcasts to it.
NewRows = Callable[[jax.Array, int, int], jax.Array]
Shapes = dict[tuple[str, int], tuple[int, ...]]


def mean_rows(table: jax.Array, axis: int, _: int) -> jax.Array:
    """New rows that are the mean of the old rows."""
    return mean_row(table, axis)


class Changed(NamedTuple):
    """A model with another vocabulary.

    Attributes:
      params: the parameters.
      opt_state: the optimizer's state; None if none was given.
      new_ids: (V_old,) of int64: the new id of each old token, -1 for removed tokens. For a duplicated token it is the first id.
        `new_ids[batch]` converts the ids of a text.
    """

    params: Any
    opt_state: Any
    new_ids: np.ndarray


class Model(NamedTuple):
    """The parameters and the state before the change, and what `tx.init` shows of the state."""

    tx: optax.GradientTransformation
    params: Any
    opt_state: Any
    initial: InitialState


def checked_model(tx: Any, params: Any, opt_state: Any) -> Model:
    """The model. Raises if an argument has the wrong type, if `tx` or `opt_state` is missing, or if the state does not fit."""
    if opt_state is None and tx is None:
        tx = optax.identity()
    elif tx is None:
        raise TypeError("tx is None: pass the transformation whose init made opt_state, which shows the state's token axes.")
    check_tx_and_params(tx, params)
    initial = initial_state(tx, params)
    wanted = _shapes_by_path(initial.state)
    if opt_state is None and wanted:
        raise TypeError(f"opt_state is None, but tx has a state of {len(wanted)} arrays: pass it, or None for tx.")
    given = _shapes_by_path(opt_state)
    # Sorted, because `nnx.state(optimizer)` has the same arrays in another order.
    if sorted(given.items()) != sorted(wanted.items()):
        if holds_state(opt_state):
            raise TypeError(
                f"opt_state is a {type(opt_state).__name__}, which holds the optimizer's state among other things: pass its "
                f"opt_state, and put the changed one back there."
            )
        raise ValueError(
            f"opt_state does not belong to tx and params: {_difference(given, wanted)}. Pass the state and the parameters from "
            f"before the change, and the transformation whose init made that state."
        )
    return Model(tx, params, opt_state, initial)


def change(model: Model, vocabulary: Vocabulary, ids_W: np.ndarray, new_rows: NewRows | None = None) -> Changed:
    """Parameters and state whose token i is the old token `ids_W[i]`, or a new token where that is -1.

    The parameters of a new token are `new_rows`, or zeros without `new_rows`. Its state is that of `tx.init`.
    """
    found = read_tree(model.params)
    changed = [leaf.array for leaf in found.leaves]
    for i, axis in vocabulary.axis_of.items():
        _check_divisible(vocabulary.leaves[i].name, changed[i], axis, len(ids_W))
    is_new_W = ids_W < 0
    for i, axis in vocabulary.axis_of.items():
        leaf = jnp.asarray(changed[i])
        changed[i] = moved_rows(leaf, ids_W, axis)
        if new_rows is not None and is_new_W.any():
            changed[i] = filled_rows(changed[i], new_rows(leaf, axis, i), is_new_W, axis)
    boxes = [leaf.box for leaf in found.leaves]
    with_sizes = functools.partial(resized, before=boxes, after=list(map(rebox, boxes, changed)))
    new_params = with_sizes(found.rebuild(changed))
    opt_state = None if model.opt_state is None else with_sizes(_changed_state(model, new_params, vocabulary, ids_W))
    return Changed(new_params, opt_state, _new_ids(ids_W, vocabulary.size))


def _changed_state(model: Model, new_params: Any, vocabulary: Vocabulary, ids_W: np.ndarray) -> Any:
    # An Ember that takes the vocabulary for features would keep averages of the old size.
    ours = {vocabulary.leaves[i].name: (axis,) for i, axis in vocabulary.axis_of.items()}
    fix = "declare its axes to that Ember too, or begin with a new state (opt_state=None)"
    check_same_axes(ours, model.initial.seen, "tokens", "tx", fix)

    leaves, treedef = jax.tree_util.tree_flatten_with_path(model.opt_state, is_leaf=is_box)
    # The order of the arrays may differ from that of `tx.init`, for example in `nnx.state(optimizer)`.
    place_of = {key: place for place, key in enumerate(_shapes_by_path(model.opt_state))}
    places = [place_of[key] for key in _shapes_by_path(model.initial.state)]
    names, boxes = [path_name(leaves[place][0]) for place in places], [leaves[place][1] for place in places]
    origins = jax.tree.leaves(axis_origins(model.tx, model.params, model.initial))
    ratio = vocabulary.size / len(ids_W)
    moved = [
        _moved_array(name, unbox(box), origin, vocabulary, ids_W, ratio)
        for name, box, origin in zip(names, boxes, origins, strict=True)
    ]
    is_new_W = ids_W < 0
    axes = {i: _token_axes(origin, vocabulary) for i, origin in enumerate(origins)}
    growing = [i for i in axes if axes[i]] if is_new_W.any() else []
    for i, initial in zip(growing, _initial_arrays(model.tx, new_params, growing, names, moved), strict=True):
        for axis in axes[i]:
            moved[i] = filled_rows(moved[i], initial, is_new_W, axis)
    of_place = dict(zip(places, map(rebox, boxes, moved), strict=True))
    return treedef.unflatten(of_place[place] for place in range(len(places)))


def _moved_array(name: str, leaf: Any, origin: Origins, vocabulary: Vocabulary, ids_W: np.ndarray, ratio: float) -> Any:
    for axis in _token_axes(origin, vocabulary):
        _check_divisible(name, leaf, axis, len(ids_W))
        leaf = moved_rows(jnp.asarray(leaf), ids_W, axis)
    if any(map(vocabulary.has, origin.averaged)) and ratio != 1:
        # The average changes so that the sum over the rows stays the same.
        leaf = leaf * jnp.float32(ratio)
    return leaf


def _token_axes(origin: Origins, vocabulary: Vocabulary) -> list[int]:
    return [axis for axis, of_parameter in enumerate(origin.axes) if vocabulary.has(of_parameter)]


def _initial_arrays(
    tx: optax.GradientTransformation, params: Any, numbers: list[int], names: list[str], moved: list[Any]
) -> list[jax.Array]:
    """The arrays `numbers` of `tx.init(params)`, each with the sharding of its counterpart in `moved`. No others are made.

    Raises:
      ValueError: `init` makes an array of another shape than the one that was moved.
    """

    def check(state: Any) -> list[Any]:
        arrays = jax.tree.leaves(state)
        for name, leaf, array in zip(names, moved, arrays, strict=True):
            if np.shape(leaf) != array.shape:
                raise ValueError(
                    f"the state of tx at {name!r} cannot follow the vocabulary: no axis of it is the vocabulary, so it would "
                    f"keep the shape {np.shape(leaf)}, but init makes {array.shape} of the changed parameters. Change the "
                    f"parameters alone, with opt_state=None, and begin with a new state."
                )
        return [arrays[i] for i in numbers]

    if not numbers:
        return check(initial_state(tx, params).state)
    shardings = [named_sharding(moved[i]) for i in numbers]
    with watched_tables():  # a watched `init` does not warn again
        return jax.jit(lambda params: check(tx.init(params)), out_shardings=shardings)(params)


def _shapes_by_path(state: Any) -> Shapes:
    """The shape of each array, by its path and by its number among the arrays of the same path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_box)
    found: Shapes = {}
    seen = Counter()
    for path, leaf in leaves:
        name = path_name(path)
        found[name, seen[name]] = np.shape(unbox(leaf))
        seen[name] += 1
    return found


def _difference(given: Shapes, wanted: Shapes) -> str:
    for (name, _), shape in wanted.items():
        found = {other for (path, _), other in given.items() if path == name}
        if shape not in found:
            has = " and ".join(map(str, found)) or "nothing"
            return f"at {name!r} it has {has}, but init makes an array of {shape}"
    return f"it has {len(given)} arrays, {sorted({name for name, _ in given})}, but init makes {len(wanted)} of them"


def _check_divisible(name: str, leaf: Any, axis: int, size: int) -> None:
    """Raises if `size` rows do not divide by the devices that shard the rows of an array."""
    if (sharding := named_sharding(leaf)) is not None:
        shape = np.shape(leaf)
        fix = "Pass pad_to_multiple_of to resize or transplant, or more ids to take, so that it grows"
        check_divisible([(name, (*shape[:axis], size, *shape[axis + 1 :]), sharding)], fix)


def _new_ids(ids_W: np.ndarray, size: int) -> np.ndarray:
    new_ids = np.full(size, -1, np.int64)
    places = np.flatnonzero(ids_W >= 0)[::-1]  # reversed, so that the first of several positions is written last
    new_ids[ids_W[places]] = places
    return new_ids
