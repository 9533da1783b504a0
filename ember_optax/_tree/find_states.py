"""The states of Ember (`_math/state.py` declares its fields) and of Adam in any state that contains them."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import optax

from .._math.state import ScaleByEmberState
from .boxes import unbox
from .paths import check_distinct, flatten_named


def is_ember(node: Any) -> bool:
    """Whether a node of a state is Ember's."""
    return isinstance(node, ScaleByEmberState)


# The states that are recognised by the names of their fields if a library turned them into dictionaries, each with those of its
# fields that may be missing because they are empty.
_TYPES: dict[Any, dict[str, Any]] = {
    ScaleByEmberState: {},
    optax.ScaleByAdamState: {},
    optax.ScaleByScheduleState: {},
    optax.InjectStatefulHyperparamsState: {"hyperparams_states": {}},
}


def optax_state(state: Any) -> Any:
    """An optimizer state with Optax's own types, from the objects that trainers hold and save.

    For an `nnx.Optimizer` or a `TrainState` this is its `opt_state`. In `nnx.state(optimizer)`, and in a checkpoint that was
    restored without a target, the states of Ember, of Adam, of schedules and of injected hyperparameters are dictionaries, which
    become states again.
    """
    return _typed(state if isinstance(state, Mapping) or not holds_state(state) else state.opt_state)


def holds_state(node: Any) -> bool:
    """Whether a node holds an optimizer state and more: an `nnx.Optimizer`, its `nnx.state`, or a `TrainState`."""
    if isinstance(node, Mapping):
        return "opt_state" in node
    return hasattr(node, "opt_state") and not isinstance(node, tuple)  # optax.contrib.SAMState


def _typed(node: Any) -> Any:
    if isinstance(node, Mapping):
        parts = {key: _typed(part) for key, part in node.items()}
        kinds = [kind for kind, empty in _TYPES.items() if set(empty | parts) == set(kind._fields)]
        return kinds[0](**(_TYPES[kinds[0]] | parts)) if kinds else parts
    if type(node) in (tuple, list):
        return type(node)(map(_typed, node))
    return node._make(map(_typed, node)) if hasattr(node, "_make") else node


def ember_states(state: Any) -> list[tuple[tuple[Any, ...], ScaleByEmberState]]:
    """Every Ember in an optimizer state, with its key path."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(optax_state(state), is_leaf=is_ember)
    return [(path, node) for path, node in nodes if is_ember(node)]


def ember_moments(state: Any) -> dict[str, ScaleByEmberState]:
    """Ember's state of every table, by path, with bare arrays instead of trees. The last of several Embers wins."""
    found = {}
    for _, node in ember_states(state):
        fields = [flatten_named(tree) for tree in node]
        names = fields[0][0]
        check_distinct(names)
        found |= {name: ScaleByEmberState(*(unbox(leaves[i]) for _, leaves, _ in fields)) for i, name in enumerate(names)}
    return found


def adam_moments(state: Any, argument: str) -> dict[str, optax.ScaleByAdamState]:
    """Adam's state of every parameter, by path, with bare arrays instead of trees, from one Adam or several.

    Raises:
      ValueError: `mu` and `nu` of one Adam have different parameters, or several leaves have the same path.
    """
    found = {}
    for node, _ in _adams(optax_state(state)):
        names, mus, _ = flatten_named(node.mu)
        check_distinct(names)
        nu_names, nus, _ = flatten_named(node.nu)
        if names != nu_names:
            raise ValueError(
                f"{argument} has mu of {names}, but nu of {nu_names}: pass the state that optax.adam or optax.adamw made."
            )
        of_each = zip(names, mus, nus, strict=True)
        found |= {name: optax.ScaleByAdamState(*map(unbox, (node.count, mu, nu))) for name, mu, nu in of_each}
    return found


def adam_b2s(state: Any) -> dict[str, Any]:
    """The `b2` of the Adam of every parameter, by path. None if `optax.inject_hyperparams` does not hold it."""
    return {name: b2 for node, b2 in _adams(optax_state(state)) for name in flatten_named(node.mu)[0]}


def _adams(state: Any, b2: Any = None) -> Iterator[tuple[optax.ScaleByAdamState, Any]]:
    """Every Adam in a state, each with the `b2` of the hyperparameters that were injected around it."""
    for node in jax.tree.leaves(state, is_leaf=lambda node: _is_adam(node) or _is_injected(node)):
        if _is_adam(node):
            yield node, b2
        elif _is_injected(node):
            yield from _adams(node.inner_state, unbox(node.hyperparams.get("b2", b2)))


def _is_injected(node: Any) -> bool:
    return isinstance(getattr(node, "hyperparams", None), Mapping) and hasattr(node, "inner_state")


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)
