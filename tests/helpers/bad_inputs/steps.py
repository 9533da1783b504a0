"""Parameters, updates and states: the arguments of `init` and `update`."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bad_inputs.declarations import scaled
from bad_inputs.examples import (
    ADAM,
    COMPACT,
    PARAMS,
    SCALE,
    TABLE,
    TOKEN_IDS,
    TX,
    WTE,
    D,
    V,
    a_function,
    each,
    row_slice,
    state,
    trainable,
    whole_model,
)
from ember_optax import ScaleByEmberState, describe_token_tables, ember, token_table_labels, token_tables

DECAYING = ember(1e-3, optax.sgd(0.1), weight_decay=0.1)
PLAIN = ember(1e-3, optax.sgd(0.1))


def update(grads=PARAMS, params=PARAMS, tx=TX, of_state=None, **options):
    return lambda: tx.update(grads, state(tx) if of_state is None else of_state(), params, **options)


def scale_update(grads=WTE, params=None, **fields):
    return lambda: SCALE.update(grads, state(SCALE, "WTE")._replace(**fields), params)


def with_state(of_state):
    return update(of_state=of_state)


NO_TREES = {
    "None": (None, TypeError, r"got None of type NoneType"),
    "a number": (3, TypeError, r"got 3 of type int"),
    "text": ("model", TypeError, r"got 'model' of type str"),
    "bytes": (b"model", TypeError, r"got b'model' of type bytes"),
    "a function": (a_function, TypeError, r"got <function .* of type function"),
    "an object": (object(), TypeError, r"got <object .* of type object"),
    "a transformation": (TX, TypeError, r"got GradientTrans.* of type GradientTransformationExtraArgs"),
}
EMPTY = {"a dictionary": {}, "a list": [], "a tuple": (), "nested": {"a": {}}, "of None": {"a": None}}
TAKES_PARAMS = {
    "ember.init": TX.init,
    "scale_by_ember.init": SCALE.init,
    "token_tables": token_tables,
    "token_table_labels": token_table_labels,
}
BAD = {
    f"params of {name}: {what}": (
        lambda take=take, value=value: take(value),
        error,
        rf"^params must be a tree .*{got}: pass params",
    )
    for name, take in TAKES_PARAMS.items()
    for what, (value, error, got) in NO_TREES.items()
}
BAD |= {
    f"params of {name} empty: {what}": (
        lambda take=take, value=value: take(value),
        ValueError,
        r"^params has no array in it, got [\[({].* of type .*: pass the tree",
    )
    for name, take in list(TAKES_PARAMS.items())[:2]
    for what, value in EMPTY.items()
}
BAD |= {
    f"updates of {name}: {what}": (
        lambda tx=tx, value=value: tx.update(value, None, None),
        error,
        rf"^updates must be a tree .*{got}: pass updates",
    )
    for name, tx in (("ember", TX), ("scale_by_ember", SCALE))
    for what, (value, error, got) in NO_TREES.items()
}
BAD |= {
    f"params in update of {name}: {what}": (
        lambda tx=tx, grads=grads, of=of, value=value: tx.update(grads, state(tx, of), value),
        error,
        rf"^params must be a tree .*{got}: pass params",
    )
    for name, tx, grads, of in (("ember", TX, PARAMS, "PARAMS"), ("scale_by_ember", SCALE, WTE, "WTE"))
    for what, (value, error, got) in NO_TREES.items()
    if value is not None
}
OTHER_STATES = {
    "None": (lambda: None, "NoneType"),
    "a number": (lambda: 3, "int"),
    "text": (lambda: "state", "str"),
    "the parameters": (lambda: PARAMS, "dict"),
    "Adam's": (lambda: state(ADAM), "tuple"),
    "an empty one": (optax.EmptyState, "EmptyState"),
    "in a list": (lambda: [state()], "list"),
    "the transformation": (lambda: TX, "GradientTransformationExtraArgs"),
    "something like it": (lambda: types.SimpleNamespace(inner_states=None), "SimpleNamespace"),
}
BAD |= {
    f"state of ember: {what}": (
        with_state(of_state),
        TypeError,
        rf"^state must be the one .* of type {name}: call update\(updates",
    )
    for what, (of_state, name) in (OTHER_STATES | {"of scale_by_ember": (lambda: state(SCALE), "ScaleByEmberState")}).items()
}
BAD |= {
    f"state of scale_by_ember: {what}": (
        lambda of_state=of_state: SCALE.update(WTE, of_state()),
        TypeError,
        rf"^state must be the ScaleByEmberState .* of type {name}: call update\(updates",
    )
    for what, (of_state, name) in (OTHER_STATES | {"of ember": (state, "PartitionState")}).items()
}
# A leading axis of one or none at all would be broadcast by the decay, and say nothing.
BAD |= {
    f"parameter of shape {shape}, {kind}": (
        update(grads, {**PARAMS, "embed": {"embedding": jnp.ones(shape)}}, tx, **options),
        ValueError,
        r"'embed/embedding' of shape .*Name the table|parameter (of )?'embed/embedding' has shape .*(: pass|initialise the)",
    )
    for kind, tx, grads, options in (
        ("with decay", DECAYING, PARAMS, {}),
        ("without decay", PLAIN, PARAMS, {}),
        ("compact", DECAYING, COMPACT, {"token_ids": TOKEN_IDS}),
    )
    for shape in ((1, D), (V, 1), (), (D, V), (D,))
}
BAD |= {
    "update(state, grads)": (lambda: TX.update(state(), PARAMS), TypeError, r"updates must .* type PartitionState: pass updates"),
    "update(state, grads, params)": (
        lambda: TX.update(state(), PARAMS, PARAMS),
        TypeError,
        r"updates must .*PartitionState: pass",
    ),
    "update(grads, params, state)": (
        lambda: TX.update(PARAMS, PARAMS, state()),
        TypeError,
        r"state must .* dict: call update\(up",
    ),
    "update(state, grads) of scale": (
        lambda: SCALE.update(state(SCALE, "WTE"), WTE),
        TypeError,
        r"updates must .* type ScaleByEmberState: pass updates",
    ),
    "update(grads, params, state) of scale": (
        lambda: SCALE.update(WTE, WTE, state(SCALE, "WTE")),
        TypeError,
        r"state must .* of type dict: call update\(updates, state, params\)",
    ),
    "init of a state": (lambda: TX.init(state()), TypeError, r"params must be a tree .* of type PartitionState: pass params"),
    "init of Adam's state": (lambda: TX.init(state(ADAM)), TypeError, r"params must be a tree .*ScaleByAdam.*: pass params"),
    "text in the parameters": (
        lambda: TX.init({**WTE, "name": "x"}),
        TypeError,
        r"'name' is 'x' of type str, not an .*eqx\.filter",
    ),
    "a function in the parameters": (
        lambda: TX.init({**WTE, "f": a_function}),
        TypeError,
        r"'f' is <function.*not an .*eqx\.filter",
    ),
    "an array of text": (
        lambda: TX.init({**WTE, "s": np.array(["a"])}),
        TypeError,
        r"'s' of shape \(1,\) has dtype <U1.*convert",
    ),
    "an array of objects": (lambda: TX.init({**WTE, "o": np.array([None])}), TypeError, r"'o' .* has dtype object.*convert"),
    "a random key": (lambda: TX.init({**WTE, "k": jax.random.key(0)}), TypeError, r"'k' .* has dtype key<fry>.*convert"),
    "an array of text for a table": (lambda: SCALE.init({"s": np.array(["a"])}), TypeError, r"'s' .* has dtype <U1; Ember needs"),
    "a whole Equinox model": (lambda: TX.init(whole_model()), TypeError, r"'activation' is .*not an array.*eqx\.filter\(model"),
    "a whole Equinox model for scale": (lambda: SCALE.init(whole_model()), TypeError, r"'activation' is .*not an array; filter"),
    "a whole Equinox model for gradients": (
        lambda: TX.update(whole_model(), TX.init(trainable(whole_model())), None),
        TypeError,
        r"gradient of 'activation' is .*not an array.*eqx\.filter",
    ),
    "a RowSlice for gradients": (
        lambda: SCALE.update({"wte": row_slice()}, state(SCALE, "WTE")),
        ValueError,
        r"tables \['wte/0', .*\], but the state has \['wte'\]; pass the state",
    ),
    "empty table": (lambda: scaled(jnp.ones((0, 4))), ValueError, r"'wte' of shape \(0, 4\) is empty.*remove"),
    "table without features": (lambda: scaled(jnp.ones((6, 0))), ValueError, r"'wte' of shape \(6, 0\) is empty.*remove"),
    "integer table": (lambda: scaled(jnp.ones((6, 4), jnp.int32)), TypeError, r"'wte' .* dtype int32.*optax.masked"),
    "table of truth values": (lambda: scaled(np.ones((6, 4), bool)), TypeError, r"'wte' .* dtype bool.*optax.masked"),
    "complex table": (lambda: scaled(jnp.ones((6, 4), jnp.complex64)), TypeError, r"'wte' .* dtype complex64.*optax.masked"),
    "function leaf": (lambda: scaled(jnp.tanh), TypeError, r"'wte' is .* not an array; filter"),
    "number leaf": (lambda: scaled(3.0), TypeError, r"'wte' is 3.0 of type float, not an array; .*jnp.asarray"),
    "list leaf": (lambda: scaled([1.0, 2.0]), (TypeError, ValueError), r"'wte/0' is 1.0 .*jnp.asarray"),
    "no table": (
        lambda: ember(1e-3, optax.adamw(1e-3)).init({"dense": {"kernel": jnp.ones((4, 4))}}),
        ValueError,
        r"no token table .* 'dense/kernel' \(4, 4\).*include=",
    ),
    "gradient of another table": (
        scale_update({"wte": jnp.ones((5, 4))}),
        ValueError,
        r"gradient of 'wte' has shape \(5, 4\).* nu_token of shape \(5,\) .* but has \(6,\).*initialise",
    ),
    "gradient with other features": (
        scale_update({"wte": jnp.ones((6, 5))}),
        ValueError,
        r"gradient of 'wte' has shape \(6, 5\).* nu_feature of shape \(5,\), but has \(6,\) and \(4,\).*initialise",
    ),
    "transposed gradient": (
        update(jax.tree.map(jnp.transpose, PARAMS)),
        ValueError,
        r"embedding' has shape \(6, 4\).*\(4, 6\): pass",
    ),
    "gradients of numbers": (
        update(each(3.0)),
        ValueError,
        r"'dense/kernel' has shape \(4, 4\), but its gradient has \(\): pass",
    ),
    "gradients of text": (
        update(each("x")),
        TypeError,
        r"gradient of 'dense/kernel' is 'x' of type str, not an array.*eqx\.filter",
    ),
    "gradients of functions": (
        update(each(a_function)),
        TypeError,
        r"gradient of 'dense/kernel' is <function .*not an .*eqx\.filter",
    ),
    "gradients of lists": (
        update(each([1.0, 2.0])),
        ValueError,
        r"'dense/kernel/0'.* parameter tree has \['dense/kernel'.*; pass",
    ),
    "gradients in a tuple": (update((PARAMS,)), ValueError, r"'0/dense/kernel'.* parameter tree has \['dense/kernel'.*; pass"),
    "gradients of another model": (
        update({"other": TABLE}),
        ValueError,
        r"tables \['other'\], but the parameter tree has .*; pass",
    ),
    "one gradient too many": (update({**PARAMS, "x": TABLE}), ValueError, r"'x'\], but the parameter tree has .*; pass"),
    "no gradients": (update({}, None), ValueError, r"tables \[\], but the state has \['embed/embedding'\]; pass the state"),
    "integer gradient": (scale_update({"wte": jnp.ones((6, 4), jnp.int32)}), TypeError, r"'wte' .* int32.*optax.masked"),
    "complex gradient": (scale_update({"wte": TABLE + 0j}), TypeError, r"'wte' .* complex64.*optax.masked"),
    "text for a gradient": (scale_update({"wte": "x"}), TypeError, r"'wte' is 'x' of type str, not an array"),
    "None for all gradients": (
        scale_update({"wte": None}),
        ValueError,
        r"tables \[\], but the state has \['wte'\]; pass the state",
    ),
    "no parameters of the gradients": (
        update(params={}),
        ValueError,
        r"'embed/embedding'\], but the parameter tree has \[\]; pass",
    ),
    "parameters of None": (update(params=each(None)), ValueError, r"'embed/embedding'\], but the parameter tree has \[\]; pass"),
    "parameters of text": (
        update(params=each("x")),
        TypeError,
        r"parameter 'dense/kernel' is 'x' of type str, not an .*eqx\.filter",
    ),
    "parameters of functions": (
        update(params=each(a_function)),
        TypeError,
        r"parameter 'dense/kernel' is <function .*eqx\.filter",
    ),
    "parameters of another model": (update(params=WTE), ValueError, r"but the parameter tree has \['wte'\]; pass the parameter"),
}
GOOD = {
    "no arrays at all": lambda: SCALE.update({}, ScaleByEmberState({}, {}, {}, {}), {}),
    "the whole Equinox model at update": lambda: TX.update(
        trainable(whole_model()), TX.init(trainable(whole_model())), whole_model()
    ),
    "the whole Equinox model at update, with decay": lambda: DECAYING.update(
        trainable(whole_model()), DECAYING.init(trainable(whole_model())), whole_model()
    ),
    "no parameters without decay": lambda: PLAIN.update(PARAMS, state(PLAIN)),
    "a number in the body": lambda: PLAIN.init({**WTE, "scale": 1.0}),
    "the table alone": lambda: SCALE.update(TABLE, SCALE.init(TABLE), TABLE),
    "shapes instead of arrays": lambda: describe_token_tables(jax.eval_shape(lambda: PARAMS)),
    "None in the parameters": lambda: TX.init({**PARAMS, "frozen": None}),
    "no gradient in the body": lambda: PLAIN.update({**PARAMS, "frozen": None}, state(PLAIN), {**PARAMS, "frozen": TABLE}),
    "a placeholder": lambda: optax.tree.map_params(TX, lambda x: x, state()),
}
