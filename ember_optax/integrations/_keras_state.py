"""The state of an Optax transformation in variables of Keras, laid out like the variables that it is for."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from .._optimizer.stochastic import StochasticRoundingState
from .._state.sharding import state_shardings


class StateVariables:
    """The state of a transformation in variables of Keras. An object, because Keras would wrap the dictionaries of a tree."""

    def __init__(self, optimizer: Any, trained: list[Any]):
        self._trained = trained
        params = self.params()
        shardings = _state_shardings(optimizer.tx, params)
        # A state may be the parameters themselves, and Keras donates both to its step. What `jax.jit` returns is a copy.
        opt_state = jax.jit(optimizer.tx.init, out_shardings=shardings)(params)
        self.rounds = _has_rounding(opt_state)
        paths_and_values, self._treedef = jax.tree_util.tree_flatten_with_path(opt_state)
        layouts = [None] * len(paths_and_values) if shardings is None else jax.tree.leaves(shardings)
        self._variables = [_StateVariable(*of_path) for of_path in paths_and_values]
        for place in _in_order_of([path for path, _ in paths_and_values], list(params)):
            self._variables[place].make(optimizer, paths_and_values[place][1], layouts[place])

    def params(self) -> dict[str, jax.Array]:
        return {variable.path: variable.value for variable in self._trained}

    def read(self) -> Any:
        return self._treedef.unflatten([variable.read() for variable in self._variables])

    def write(self, opt_state: Any, new_params: Any = None) -> None:
        if (given := jax.tree.structure(opt_state)) != self._treedef:
            raise ValueError(f"opt_state must have the structure of tx.init(optimizer.params), {self._treedef}, got {given}.")
        for variable, value in zip(self._variables, jax.tree.leaves(opt_state), strict=True):
            variable.write(value)
        for variable in self._trained if new_params else ():
            variable.assign(new_params[variable.path])


class _StateVariable:
    """One array of the state. Keys of `jax.random` are kept as their numbers."""

    def __init__(self, path: tuple[Any, ...], value: jax.Array):
        self._name = jax.tree_util.keystr(path, simple=True, separator="_").replace("/", "_") or "state"
        self._impl = jax.random.key_impl(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else None
        self._variable: Any = None

    def make(self, optimizer: Any, value: jax.Array, layout: Any) -> None:
        numbers = self._numbers(value)
        self._variable = optimizer.add_variable(numbers.shape, dtype=str(numbers.dtype), layout=layout, name=self._name)
        self._variable.assign(numbers)

    def read(self) -> Any:
        numbers = self._variable.value
        return numbers if self._impl is None else jax.random.wrap_key_data(numbers, impl=self._impl)

    def write(self, value: Any) -> None:
        self._variable.assign(self._numbers(value))

    def _numbers(self, value: Any) -> Any:
        return value if self._impl is None else jax.random.key_data(value)


def _state_shardings(tx: optax.GradientTransformation, params: dict[str, jax.Array]) -> Any:
    """The shardings of the state. None if the parameters are not on a mesh."""
    shardings = {path: value.sharding for path, value in params.items()}
    on_mesh = all(isinstance(sharding, NamedSharding) for sharding in shardings.values())
    return state_shardings(tx, params, shardings) if on_mesh else None


def _has_rounding(opt_state: Any) -> bool:
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, StochasticRoundingState))
    return any(isinstance(node, StochasticRoundingState) for node in nodes)


def _in_order_of(paths: list[tuple[Any, ...]], names: list[str]) -> list[int]:
    """The places of the leaves `paths` of a state, with each dictionary of parameters in the order of `names`.

    Keras saves and loads by this order. It must not depend on names that Keras counts up, such as dense_9 and dense_10.
    """
    order = {name: place for place, name in enumerate(names)}
    first: dict[tuple[Any, ...], int] = {}
    for place, path in enumerate(paths):
        for length in range(1, len(path) + 1):
            first.setdefault(path[:length], place)

    def key(place: int) -> list[int]:
        path = paths[place]
        return [order.get(getattr(part, "key", ""), first[path[: i + 1]]) for i, part in enumerate(path)]

    return sorted(range(len(paths)), key=key)
