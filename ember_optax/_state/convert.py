"""`state_from_adam`: continues a training run of Adam with Ember."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from .._math.moments import bias_correction, decay_rate
from .._math.state import AVERAGES
from .._tree.boxes import rebox, unbox
from .._tree.find_states import ScaleByEmberState, adam_b2s, adam_moments, optax_state
from .._tree.hyperparameters import checked_b2
from .._tree.inputs import check_array, shown
from .._tree.paths import flatten_named
from .._tree.watching import watched_tables
from .origins import Origins, axis_origins, check_tx_and_params


def state_from_adam(
    tx: optax.GradientTransformation,
    params: Any,
    adam_state: Any,
    *,
    adam_b2: jax.typing.ArrayLike | None = None,
) -> Any:
    r"""A state with which `tx`, a transformation that contains Ember, continues a run of Adam.

    Averages are linear, so Ember's averages are the means of Adam's second moment :math:`\nu`, and both count the same steps:

    .. math:: \nu^{token}_i = \mathrm{mean}_j\, \nu_{ij} \qquad \nu^{feature}_j = \mathrm{mean}_i\, \nu_{ij}

    With equal decay rates this is the state that Ember would have had after the same gradients. With different ones it is
    rescaled by :math:`(1 - b_2^t) / (1 - b_{2,adam}^t)`, so that the bias-corrected moments stay the same. Ember's :math:`b_2`
    is read from `tx`. Adam's is read from the state if `optax.inject_hyperparams` keeps it there. Otherwise pass `adam_b2`.

    In the state of `tx`, every `ScaleByEmberState` gets these averages, every `optax.ScaleByAdamState` (of a body) gets `count`,
    `mu` and `nu` of the Adam run, and every learning-rate schedule continues at Adam's step. The moments of a body are not
    rescaled, so give the body the `b1` and `b2` of the Adam run. Everything else, such as the momentum of a Muon body or the
    accumulator of `optax.MultiSteps`, has its initial value. `optax.adamax` and `optax.yogi` keep other moments in a state of the
    same type. Do not convert their states, and do not convert for a `tx` that contains them. With `feature_mean="active_rows"`,
    the result is not the state after the same gradients: Adam's state does not show how many rows each batch touched, and
    :math:`\nu^{feature}` of that form is larger by the inverse of their share.

    Args:
      tx: the transformation to continue with, for example `ember(1e-2, optax.adamw(1e-3))`.
      params: the parameters, a tree of arrays.
      adam_state: the optimizer state of the Adam run for the same parameters: any state that contains `optax.ScaleByAdamState`,
        also from `nnx.state(optimizer)`.
      adam_b2: the `b2` of the Adam run, which is needed unless `adam_state` keeps it. The default of `optax.adam` and
        `optax.adamw` is 0.999.

    Returns:
      A state with the structure, shapes and dtypes of `tx.init(params)`. Under `jax.jit` with
      `out_shardings=state_shardings(tx, params, ...)` each device makes its own shards.

    Raises:
      TypeError: `tx` is not a transformation, `params` or the moments are not arrays, or `adam_b2` is missing.
      ValueError: `adam_b2` differs from the one in `adam_state`; there is no Adam state; it does not have a parameter that `tx`
        needs, or has it in another shape (a resized vocabulary); its second moment is negative or not finite; two parameters
        have the same path.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember, state_from_adam
      >>> params = {"embed": {"embedding": jnp.ones((8, 4))}, "dense": {"kernel": jnp.ones((4, 4))}}
      >>> adam = optax.adamw(1e-3)
      >>> _, adam_state = adam.update(params, adam.init(params), params)
      >>> tx = ember(1e-2, optax.adamw(1e-3))
      >>> opt_state = state_from_adam(tx, params, adam_state, adam_b2=0.999)
      >>> print(optax.tree.get(opt_state, "ScaleByEmberState").count["embed"]["embedding"])
      1

    References:
      docs/checkpoints.md
    """
    check_tx_and_params(tx, params)
    origins = axis_origins(tx, params)
    names, leaves, _ = flatten_named(params)
    parameters = dict(zip(names, leaves, strict=True))
    adam = _moments_by_name(adam_state)
    step = _step(adam_state, adam)
    with watched_tables(is_quiet=False) as seen:
        initial = tx.init(params)
    rates = {table.name: checked_b2(tree.b2) for tree in seen if tree.b2 is not None for table in tree.tables}
    adam_rates = _adam_rates(adam_b2, adam_b2s(adam_state), rates)

    def find(name: str) -> optax.ScaleByAdamState:
        if name not in adam:
            raise ValueError(
                f"the Adam state has no moments of {name!r}; it has those of {sorted(adam)}: pass the state of the same model."
            )
        _check_moments(name, adam[name], np.shape(unbox(parameters[name])))
        return adam[name]._replace(count=jnp.asarray(adam[name].count))

    def convert(state, state_origins):
        match state:
            case ScaleByEmberState():
                return _ember_state(state, state_origins, find, rates, adam_rates)
            case optax.ScaleByAdamState():
                return _adam_state(state, find)
            case _ if _is_step_counter(state):
                return state._replace(count=jnp.asarray(step, state.count.dtype))
            case _:
                return state

    return jax.tree.map(convert, initial, origins, is_leaf=_is_converted)


def _adam_rates(adam_b2: Any, kept: dict[str, Any], of: Iterable[str]) -> dict[str, Any]:
    """The `b2` of the Adam of each of these parameters, from the state or else from the argument. Raises if it is in neither."""
    given = None if adam_b2 is None else checked_b2(adam_b2, "adam_b2")
    if given is None and (unknown := [name for name in of if name in kept and kept[name] is None]):
        raise TypeError(
            f"adam_b2 is missing: the Adam state does not keep the b2 with which the moments of {unknown[0]!r} were made, and "
            f"with another one the first steps have another size. Pass adam_b2=0.999 if optax.adam or optax.adamw had its "
            f"default."
        )
    return {name: given if kept.get(name) is None else _agreed(given, kept[name], name) for name in of}


def _agreed(given: Any, kept: Any, name: str) -> Any:
    """The `b2` that a state keeps. Raises if another one was given."""
    are_known = given is not None and not isinstance(given, Tracer) and not isinstance(kept, Tracer)
    if are_known and jnp.asarray(given, jnp.result_type(kept)) != kept:
        raise ValueError(
            f"adam_b2 is {given}, but the Adam state keeps b2={kept} of {name!r}: leave adam_b2 out, or pass the state that was "
            f"made with it."
        )
    return checked_b2(kept, "the b2 that adam_state keeps")


def _check_moments(name: str, adam: Any, wanted: tuple[int, ...]) -> None:
    """Raises if a known moment is negative or not finite. Ember would skip every batch of the table, or have steps of NaN."""
    for field, moment in (("nu", adam.nu), ("mu", adam.mu)):
        check_array(moment, f"Adam's {field} of {name!r}")
        if np.shape(moment) != wanted:
            raise ValueError(
                f"Adam's {field} of {name!r} has shape {np.shape(moment)}, but the parameter has {wanted}: convert with the "
                f"parameters that the Adam run had; rows of the table and of nu_token are then added or taken away together."
            )
    if (
        np.shape(adam.count) != ()
        or isinstance(adam.count, bool)
        or not jnp.issubdtype(getattr(adam.count, "dtype", type(adam.count)), jnp.integer)
    ):
        raise TypeError(
            f"Adam's count of {name!r} must be one integer, got {shown(adam.count)}: restore it as adam.init makes it."
        )
    if not isinstance(adam.count, Tracer) and adam.count < 0:
        raise ValueError(f"Adam's count of {name!r} is {adam.count}, but counts steps: pass the state that optax.adam made.")
    nu = adam.nu
    if isinstance(nu, Tracer):
        return
    if bool(jnp.any(jnp.asarray(nu, jnp.float32) < 0)):
        raise ValueError(
            f"Adam's nu of {name!r} is negative somewhere, but is an average of squares: pass the state that optax.adam made."
        )
    if not bool(jnp.all(jnp.isfinite(jnp.asarray(nu, jnp.float32)))):
        raise ValueError(
            f"Adam's nu of {name!r} is not finite, so Ember's averages would not be either and every batch would be skipped; "
            f"convert an earlier checkpoint, or start with tx.init(params)."
        )


def _is_step_counter(node: Any) -> bool:
    """Whether a node only counts steps: `optax.ScaleByScheduleState`, or a schedule's state in `optax.inject_hyperparams`."""
    return getattr(node, "_fields", None) == ("count",)


def _is_converted(node: Any) -> bool:
    return isinstance(node, ScaleByEmberState | optax.ScaleByAdamState) or _is_step_counter(node)


def _moments_by_name(adam_state: Any) -> dict[str, optax.ScaleByAdamState]:
    """The moments of every parameter by path, from one Adam state or from several with different parameters."""
    moments = adam_moments(adam_state, "adam_state")
    if not moments:
        raise ValueError(
            f"adam_state holds no optax.ScaleByAdamState with moments, but {shown(adam_state)}; pass the state "
            f"that optax.adam or optax.adamw made, restored from a checkpoint into jax.eval_shape(adam.init, params)."
        )
    return moments


def _step(adam_state: Any, adam: dict[str, optax.ScaleByAdamState]) -> Any:
    """The step of the Adam run, from the counter of a schedule, or without schedules from Adam's counter."""
    nodes = jax.tree.leaves(optax_state(adam_state), is_leaf=_is_converted)
    counters = [node.count for node in nodes if _is_step_counter(node)]
    return unbox(counters[0]) if counters else next(iter(adam.values())).count


def _ember_state(state: ScaleByEmberState, origins: ScaleByEmberState, find, rates, adam_rates) -> ScaleByEmberState:
    def count(name: str, leaf):
        return jnp.broadcast_to(jnp.asarray(find(name).count, jnp.int32), leaf.shape)

    def mean_of_nu(name: str, leaf, leaf_origins: Origins):
        del leaf
        adam = find(name)
        kept = {origin.axis for origin in leaf_origins.axes if origin is not None}
        nu = jnp.asarray(adam.nu, jnp.float32)
        mean = jnp.mean(nu, tuple(axis for axis in range(nu.ndim) if axis not in kept))
        ours, theirs = (bias_correction(adam.count, decay_rate(b2)) for b2 in (rates[name], adam_rates[name]))
        return jnp.where(adam.count > 0, mean * (ours / theirs), 0.0)

    return state._replace(
        count=_map_named(count, state.count),
        **{field: _map_named(mean_of_nu, getattr(state, field), getattr(origins, field)) for field in AVERAGES},
    )


def _adam_state(state: optax.ScaleByAdamState, find) -> optax.ScaleByAdamState:
    counts = [find(name).count for name in flatten_named(state.mu)[0]]
    return state._replace(
        count=jnp.asarray(counts[0], jnp.int32) if counts else state.count,
        mu=_map_named(lambda name, leaf: jnp.asarray(find(name).mu, leaf.dtype), state.mu),
        nu=_map_named(lambda name, leaf: jnp.asarray(find(name).nu, leaf.dtype), state.nu),
    )


def _map_named(function, tree: Any, *trees: Any) -> Any:
    """Maps `function(name, leaf, ...)` over the unboxed leaves of trees of one structure, and boxes the results."""
    names, boxes, treedef = flatten_named(tree)
    leaves = [map(unbox, flatten_named(one)[1]) for one in (tree, *trees)]
    return treedef.unflatten(map(rebox, boxes, map(function, names, *leaves)))
