"""`ember`: trains token tables with Ember, and everything else with a body optimizer."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import optax

from .._tree.declared import AUTO, DimensionNumbersLike, check_declaration
from .._tree.find_states import ember_states
from .._tree.hyperparameters import checked_learning_rate
from .._tree.inputs import check_array, check_tree, shown
from .._tree.paths import flatten_named, is_complete
from .._tree.suspects import warn_of_suspects
from .._tree.tables import Table, TableTree, found_tables
from .._tree.token_ids import token_ids_by_name
from .._tree.watching import is_observed, tables_at_init
from .checks import check_found, check_given, check_kinds, check_transformation, checked_params
from .scale_by_ember import FeatureMean, scale_tables

P = ParamSpec("P")
T = TypeVar("T")

_NO_BODY = (
    "ember() needs a body, the optimizer of everything that is not a token table, with its own learning rate: "
    "ember(1e-2, optax.adamw(1e-3)). Tables usually want about ten times the rate of the body."
)


class _Rates(NamedTuple):
    """The learning rates of the tables. `head` is None if heads have the same rate as the others."""

    others: Any
    head: Any


def _shows_the_call(make: Callable[P, T]) -> Callable[P, T]:
    """`make` with an error that shows the call if `body` is missing. Python's own error only names the argument."""

    @functools.wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if len(args) < 2 and "body" not in kwargs:
            raise TypeError(_NO_BODY)
        return make(*args, **kwargs)

    return call


@_shows_the_call
def ember(
    learning_rate: optax.ScalarOrSchedule,
    body: optax.GradientTransformation,
    *,
    head_learning_rate: optax.ScalarOrSchedule | None = None,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: jax.typing.ArrayLike = 0.0,
    feature_mean: FeatureMean = "all_rows",
    tables: DimensionNumbersLike = AUTO,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains token tables with Ember and everything else with `body`, the optimizer that you used before.

    .. math:: p \leftarrow p - \eta\, (u + \lambda p)

    where :math:`u` is the update of `scale_by_ember`, :math:`\eta` the learning rate and :math:`\lambda` the decoupled
    weight decay. The optimizer state of a (V, D) table is 4 (V + D) bytes and two counters, against 8 V D for Adam.

    A table whose batch is not finite does not move in that step, not even by weight decay. A learning-rate schedule counts that
    step too.

    Args:
      learning_rate: step size for input tables and tied tables, a number or an `optax` schedule. Tables usually want about ten
        times the rate of the body (docs/choose.md).
      body: transformation for all other parameters, with its own learning rate, for example `optax.adamw(1e-3)` or
        `optax.contrib.muon(2e-2)`.
      head_learning_rate: step size for heads that are not tied; a number or a schedule. None: `learning_rate`.
        `describe_token_tables` shows which table has which rate.
      b2: decay rate of Ember's averages, in [0, 1).
      eps: added to Ember's denominator after the root.
      weight_decay: decoupled weight decay of the tables, in units of the learning rate as in `optax.adamw`. The default is zero.
        The body has its own weight decay (1e-4 in `optax.adamw`).
      feature_mean: "all_rows", or "active_rows" for the form of the paper's code, as in `scale_by_ember`.
      tables: which parameters are tables, and their axes. It is a function from parameters to a tree of `EmberDimensionNumbers`
        (table) and None (body), such a tree or a prefix of it, or one `EmberDimensionNumbers` for every leaf. "auto" means the
        tables that `token_tables` finds. Pass patterns for its search as `TokenTables(include=[r"head/kernel"])`. For more than
        two learning rates see docs/recipes.md.

    Returns:
      A `GradientTransformationExtraArgs`, which is an `optax.partition` of "ember" and "body". Both get the extra arguments.

    Raises:
      TypeError: a hyperparameter is not a real number, or lost its digits in a dtype below float32; `body` is not a
        transformation.
      ValueError: a hyperparameter is out of range; at `init`, no table is found, or two leaves have the same path; at `init` with
        a `head_learning_rate`, there is no head, or nothing shows whether a table is a head.

    Warns:
      UserWarning: at `init`, a matrix of the body has the vocabulary of a table, a stack of tables has more tables than tokens,
        or nothing shows the token axis of an included table. One warning says what to write in each case.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember
      >>> params = {"embed": {"embedding": jnp.ones((8, 4))}, "dense": {"kernel": jnp.ones((4, 4))}}
      >>> tx = ember(1e-2, optax.adamw(1e-3))  # was: optax.adamw(1e-3)
      >>> opt_state = tx.init(params)
      >>> updates, opt_state = tx.update(params, opt_state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(f"{params['embed']['embedding'][0, 0]:.6f}")
      0.990000

      Input tables and heads with rates of their own:

      >>> tx = ember(5e-3, optax.adamw(1e-3), head_learning_rate=2e-2)

      A learning rate that can be changed while training:

      >>> tx = optax.inject_hyperparams(ember, hyperparam_dtype=jnp.float32)(learning_rate=1e-2, body=optax.adamw(1e-3))
      >>> opt_state = tx.init(params)
      >>> opt_state.hyperparams["learning_rate"] = jnp.float32(5e-3)

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """
    check_declaration(tables, "tables")
    check_transformation(body, "body", "pass one with its own learning rate, for example optax.adamw(1e-3)")
    learning_rate = checked_learning_rate(learning_rate)
    if head_learning_rate is not None:
        head_learning_rate = checked_learning_rate(head_learning_rate, "head_learning_rate")
    scaling = functools.partial(scale_tables, b2=b2, eps=eps, feature_mean=feature_mean, weight_decay=weight_decay)
    scaling(found_tables)  # checks the numbers, here where they are written
    find = functools.partial(found_tables, declaration=tables)
    return _partitioned(find, scaling, _Rates(learning_rate, head_learning_rate), body)


def _partitioned(
    find: Callable[..., TableTree],
    scaling: Callable[..., optax.GradientTransformation],
    rates: _Rates,
    body: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The `optax.partition` of the tables that `find` finds in a tree, and of the rest.

    Each call builds a partition, because its labels belong to one tree: a library may show parameters in boxes at `init` and bare
    at `update`, and only the tree of this call says which updates are compact. The partition keeps nothing between calls, and
    under `jax.jit` it is built once.
    """

    partition = functools.partial(_partition, scaling=scaling, rates=rates, body=body)

    def init_fn(params):
        check_tree(params, "params")
        found = tables_at_init(find, params)
        _check_arrays(found, "parameter")
        complete = is_complete(params)
        check_found(found, complete=complete)
        if not is_observed():
            warn_of_suspects(found, "ember")
        if rates.head is not None:
            check_kinds(found, complete=complete)
        return partition(found).init(params)

    def update_fn(updates, state, params=None, *, token_ids=None, **extra_args):
        check_tree(updates, "updates", may_be_empty=True)
        _check_state(state, with_head_rate=rates.head is not None)
        check_tree(params, "params", may_be_empty=True, may_be_missing=True)
        ids = token_ids_by_name(token_ids)
        check_given(params, with_ids=bool(ids))
        found = find(updates, token_ids=ids, params=params)
        _check_arrays(found, "the gradient of")
        _check_ids_of_body(found, state.inner_states["body"])
        if params is not None:
            params = found.treedef.unflatten(checked_params(found, params))
        given = {"token_ids": ids} if ids else {}
        return partition(found).update(updates, state, params, **given, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _partition(found: TableTree, *, scaling, rates: _Rates, body) -> optax.GradientTransformationExtraArgs:
    labels = found.treedef.unflatten(["ember" if isinstance(leaf, Table) else "body" for leaf in found.leaves])
    of_tables = optax.chain(scaling(lambda tree, **_: found.part(tree)), _scale_by_rates(found, rates))
    # A function, because `optax.partition` calls labels that are callable, such as an Equinox model.
    return optax.partition({"ember": of_tables, "body": body}, lambda _: labels)


def _scale_by_rates(found: TableTree, rates: _Rates) -> optax.GradientTransformation:
    """A transformation that multiplies the updates of the tables by the learning rate of their kind."""
    others = optax.scale_by_learning_rate(rates.others)
    if rates.head is None:
        return others

    def labels(tree):
        part = found.part(tree)
        return part.treedef.unflatten(["head" if table.kind == "head" else "others" for table in part.tables])

    return optax.partition({"head": optax.scale_by_learning_rate(rates.head), "others": others}, labels)


def _check_arrays(found: TableTree, what: str) -> None:
    for leaf in found.leaves:
        check_array(leaf.box, f"{what} {leaf.name!r}")


def _check_state(state: Any, *, with_head_rate: bool) -> None:
    inner = getattr(state, "inner_states", None)
    if not isinstance(inner, Mapping) or set(inner) != {"ember", "body"}:
        raise TypeError(
            f"state must be the one that init or the last update of this ember returned, got {shown(state)}: call "
            f"update(updates, state, params)."
        )
    of_tables = getattr(inner["ember"], "inner_state", None)
    if isinstance(of_tables, tuple) and len(of_tables) == 2 and hasattr(of_tables[1], "inner_states") != with_head_rate:
        made, has = ("without", "has one") if with_head_rate else ("with", "has none")
        raise ValueError(
            f"the state was made {made} head_learning_rate, but this ember {has}: make a new state with tx.init(params) and put "
            f"the ScaleByEmberState and the body's state of the old one into it."
        )


def _check_ids_of_body(found: TableTree, body_state: Any) -> None:
    """Raises if ids are given for a parameter of the body. The body ignores them, unless an Ember in it trains the parameter."""
    of_body = [leaf for leaf in found.leaves if leaf.ids is not None and not isinstance(leaf, Table)]
    if not of_body:
        return
    of_embers = {name for _, state in ember_states(body_state) for name in flatten_named(state.nu_token)[0]}
    if refused := [f"{leaf.name!r} of shape {leaf.shape}" for leaf in of_body if leaf.name not in of_embers]:
        raise ValueError(
            f"token ids are given for {', '.join(refused)}, trained by the body: only token tables take row-sparse steps. Name "
            f"the table in the `tables` argument of ember, or declare no ids for it."
        )
