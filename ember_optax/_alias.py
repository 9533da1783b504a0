"""`ember`: token tables to Ember, everything else to a body optimizer."""

import numbers
from typing import Any

import jax
import optax

from ._boxes import unbox
from ._declared import DimensionNumbersLike, declared_dimension_numbers
from ._describe import check_patterns, no_table_message
from ._hyperparameters import check_learning_rate
from ._paths import flatten_named, is_complete
from ._tables import token_tables
from ._token_ids import check_known, token_ids_by_name
from ._transform import scale_by_ember_with_decay


def ember(
    learning_rate: optax.ScalarOrSchedule,
    body: optax.GradientTransformation | None = None,
    *,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: jax.typing.ArrayLike = 0.0,
    tables: DimensionNumbersLike = token_tables,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains token tables with Ember and everything else with `body`: the one-line swap for `optax.adamw(learning_rate)`.

    .. math:: p \leftarrow p - \eta\, (u + \lambda p)

    where :math:`u` is the update of `scale_by_ember`, :math:`\eta` the learning rate and :math:`\lambda` the decoupled
    weight decay. The optimizer state of a (V, D) table is 4 (V + D) bytes and two counters, against 8 V D for Adam.

    A table whose batch is not finite does not move at all in that step, weight decay included. A learning-rate schedule
    counts that step all the same.

    Args:
      learning_rate: step size for the tables, and for the default body; a number or an `optax` schedule.
      body: transformation for all other parameters, complete with its own learning rate; None means
        `optax.adamw(learning_rate)`. For example `optax.contrib.muon(2e-2)`.
      b2: decay rate of Ember's averages, in [0, 1).
      eps: added to Ember's denominator after the root.
      weight_decay: decoupled weight decay of the tables, in units of the learning rate as in `optax.adamw`.
      tables: which parameters are tables, and their axes: a function from parameters to a tree of
        `EmberDimensionNumbers` (table) and None (body), such a tree or a prefix of it, or one `EmberDimensionNumbers` for
        every leaf. None means `token_tables`.

    Returns:
      A `GradientTransformationExtraArgs`; an `optax.partition` of "ember" and "body". Extra arguments reach both.

    Raises:
      TypeError: a hyperparameter is not a real number or arrives in less than float32; `body` is no transformation.
      ValueError: a hyperparameter is out of range; at `init`, no table is found.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember
      >>> params = {"embed": {"embedding": jnp.ones((8, 4))}, "dense": {"kernel": jnp.ones((4, 4))}}
      >>> tx = ember(1e-3)  # was: optax.adamw(1e-3)
      >>> opt_state = tx.init(params)
      >>> updates, opt_state = tx.update(params, opt_state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(f"{params['embed']['embedding'][0, 0]:.6f}")
      0.999000

      A learning rate that can be changed while training:

      >>> tx = optax.inject_hyperparams(ember, hyperparam_dtype=jnp.float32)(learning_rate=1e-3)
      >>> opt_state = tx.init(params)
      >>> opt_state.hyperparams["learning_rate"] = jnp.float32(5e-4)

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """
    check_learning_rate(learning_rate)
    _check_body(body)
    # optax.inject_hyperparams takes the default for a schedule and passes on what it returns for a step number: None.
    tables = token_tables if tables is None else tables

    def labels(params):
        _, _, treedef = flatten_named(params)
        declared = declared_dimension_numbers(tables, params)
        return treedef.unflatten(["body" if table is None else "ember" for table in declared])

    table_optimizer = optax.chain(
        scale_by_ember_with_decay(b2, eps, weight_decay, tables),
        optax.scale_by_learning_rate(learning_rate),
    )
    body = optax.adamw(learning_rate) if body is None else body
    partition = optax.partition({"ember": table_optimizer, "body": body}, labels)

    def init_fn(params):
        _check_arrays(params)
        # Without a table everything would silently go to the body. In an incomplete tree the tables may be elsewhere.
        if is_complete(params):
            check_patterns(tables, params)
            if "ember" not in jax.tree.leaves(labels(params)):
                raise ValueError(no_table_message(params))
        return partition.init(params)

    def update_fn(updates, state, params=None, *, token_ids=None, **extra_args):
        ids = token_ids_by_name(token_ids)
        if not ids:
            return partition.update(updates, state, params, **extra_args)
        if params is None:
            raise ValueError("token_ids need the parameters: call update(updates, state, params, token_ids=token_ids).")
        # A compact update has not the shape by which its table is found, the parameter has.
        of_params = labels(params)
        _check_tables(ids, params, of_params)
        # As a function, because a tree that is callable, an Equinox model, would be called.
        by_params = optax.partition({"ember": table_optimizer, "body": body}, lambda _: of_params)
        return by_params.update(updates, state, params, token_ids=token_ids, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_tables(ids: dict[str, jax.Array], params: Any, labels: Any) -> None:
    """Ids for a parameter of the body would be ignored there."""
    names, leaves, _ = flatten_named(params)
    check_known(ids, names, "the parameters are")
    of_body = [
        f"{name!r} of shape {unbox(leaf).shape}"
        for name, leaf, label in zip(names, leaves, jax.tree.leaves(labels), strict=True)
        if name in ids and label == "body"
    ]
    if of_body:
        raise ValueError(
            f"token_ids are given for {', '.join(of_body)}, trained by the body: only token tables take row-sparse steps. Name "
            f"the table in the `tables` argument of ember, or give its updates dense."
        )


def _check_body(body: Any) -> None:
    if body is not None and not (hasattr(body, "init") and hasattr(body, "update")):
        raise TypeError(
            f"body must be an optax.GradientTransformation with its own learning rate, for example optax.adamw(1e-3), "
            f"got {body!r} of type {type(body).__name__}."
        )


def _check_arrays(params: Any) -> None:
    names, leaves, _ = flatten_named(params)
    for name, leaf in zip(names, leaves, strict=True):
        if not (hasattr(unbox(leaf), "shape") or isinstance(unbox(leaf), numbers.Number)):
            raise TypeError(
                f"parameter {name!r} is {leaf!r} of type {type(leaf).__name__}, not an array. Keep only the trainable arrays: "
                f"eqx.filter(model, eqx.is_inexact_array) with Equinox."
            )
