"""Bad hyperparameters and tables are refused by name, with the value and the fix."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember

PARAMS = {"embed": {"embedding": jnp.ones((6, 4))}}
ALL = EmberDimensionNumbers()


def scaled(leaf, **numbers):
    return scale_by_ember(dimension_numbers=EmberDimensionNumbers(**numbers)).init({"wte": leaf})


MISTAKES = {
    "negative learning rate": (lambda: ember(-1e-3), ValueError, r"learning_rate .* -0.001; pass"),
    "NaN learning rate": (lambda: ember(float("nan")), ValueError, r"learning_rate .* nan; pass"),
    "infinite learning rate": (lambda: ember(float("inf")), ValueError, r"learning_rate .* inf; pass"),
    "text learning rate": (lambda: ember("1e-3"), TypeError, r"learning_rate .* '1e-3' of type str; pass"),
    "no learning rate": (lambda: ember(None), TypeError, r"learning_rate .* None of type NoneType; pass"),
    "boolean learning rate": (lambda: ember(True), TypeError, r"learning_rate .* True of type bool; pass"),
    "complex learning rate": (lambda: ember(1j), TypeError, r"learning_rate .* 1j of type complex; pass"),
    "vector learning rate": (lambda: ember(jnp.ones(3)), TypeError, r"learning_rate .* shape \(3,\) .*; pass"),
    "negative array learning rate": (lambda: ember(jnp.float32(-1)), ValueError, r"learning_rate .*; pass"),
    "NaN NumPy learning rate": (lambda: ember(np.float32("nan")), ValueError, r"learning_rate .*; pass"),
    "b2 of one": (lambda: ember(1e-3, b2=1.0), ValueError, r"b2 must be in \[0, 1\), got 1.0; 0.999 is the default"),
    "b2 above one": (lambda: scale_by_ember(1.5), ValueError, r"b2 must be in \[0, 1\), got 1.5"),
    "negative b2": (lambda: scale_by_ember(-0.1), ValueError, r"b2 must be in \[0, 1\), got -0.1"),
    "NaN b2": (lambda: scale_by_ember(float("nan")), ValueError, r"b2 must be in \[0, 1\), got nan"),
    "text b2": (lambda: scale_by_ember("0.9"), TypeError, r"b2 .* '0.9' of type str; pass"),
    "b2 in half precision": (lambda: scale_by_ember(jnp.float16(0.9)), TypeError, r"b2 arrived as float16.*hyperparam_dtype"),
    "eps in half precision": (lambda: scale_by_ember(eps=jnp.bfloat16(1e-8)), TypeError, r"eps arrived as bfloat16"),
    "negative eps": (lambda: ember(1e-3, eps=-1e-8), ValueError, r"eps must be finite and not negative, got -1e-08; pass"),
    "NaN eps": (lambda: scale_by_ember(eps=float("nan")), ValueError, r"eps .* nan; pass"),
    "infinite eps": (lambda: scale_by_ember(eps=float("inf")), ValueError, r"eps .* inf; pass"),
    "eps of None": (lambda: scale_by_ember(eps=None), TypeError, r"eps .* None of type NoneType; pass"),
    "negative decay": (lambda: ember(1e-3, weight_decay=-0.1), ValueError, r"weight_decay .* -0.1; pass"),
    "NaN decay": (lambda: ember(1e-3, weight_decay=float("nan")), ValueError, r"weight_decay .* nan; pass"),
    "text decay": (lambda: ember(1e-3, weight_decay="0.1"), TypeError, r"weight_decay .* '0.1' of type str; pass"),
    "body is a function": (lambda: ember(1e-3, optax.adamw), TypeError, r"body must be .* for example optax.adamw\(1e-3\)"),
    "body is a rate": (lambda: ember(1e-3, 1e-3), TypeError, r"body must be .* got 0.001 of type float"),
    "fractional axis": (lambda: EmberDimensionNumbers(0.5), TypeError, r"token_axis must be made of integers, got 0.5"),
    "text axis": (lambda: EmberDimensionNumbers("0"), TypeError, r"token_axis must be made of integers, got '0'"),
    "boolean axis": (lambda: EmberDimensionNumbers(True), TypeError, r"token_axis must be made of integers, got True"),
    "bare batch axis": (lambda: EmberDimensionNumbers(1, 0), TypeError, r"batch_axes must be a tuple .* batch_axes=\(0,\)"),
    "axis named twice": (lambda: EmberDimensionNumbers(0, (0,)), ValueError, r"names an axis twice"),
    "axis out of range": (lambda: scaled(jnp.ones((6, 4)), token_axis=2), ValueError, r"'wte' of shape \(6, 4\).*-2 to 1"),
    "axis below range": (lambda: scaled(jnp.ones((6, 4)), token_axis=-3), ValueError, r"'wte' of shape \(6, 4\).*-2 to 1"),
    "batch axis out of range": (lambda: scaled(jnp.ones((6, 4)), batch_axes=(2,)), ValueError, r"'wte' .* axis 2 is out"),
    "one axis by two names": (lambda: scaled(jnp.ones((6, 4)), token_axis=1, batch_axes=(-1,)), ValueError, r"'wte' .* twice"),
    "empty table": (lambda: scaled(jnp.ones((0, 4))), ValueError, r"'wte' of shape \(0, 4\) is empty.*remove"),
    "integer table": (lambda: scaled(jnp.ones((6, 4), jnp.int32)), TypeError, r"'wte' .* dtype int32.*optax.masked"),
    "complex table": (lambda: scaled(jnp.ones((6, 4), jnp.complex64)), TypeError, r"'wte' .* dtype complex64.*optax.masked"),
    "function leaf": (lambda: scaled(jnp.tanh), TypeError, r"'wte' is .* not an array; filter"),
    "no table": (
        lambda: ember(1e-3).init({"dense": {"kernel": jnp.ones((4, 4))}}),
        ValueError,
        r"no token table .* 'dense/kernel' \(4, 4\).*include=",
    ),
    "tables of wrong type": (lambda: ember(1e-3, tables={"embed": 0}).init(PARAMS), TypeError, r"'embed' must be Ember.*got 0"),
    "tables without an entry": (lambda: ember(1e-3, tables={"head": ALL}).init(PARAMS), ValueError, r"'embed/embedding'.*head"),
    "tables with a wrong path": (
        lambda: ember(1e-3, tables={"embed": ALL, "head": ALL}).init(PARAMS),
        ValueError,
        r"declared for \['head'\], but the parameters are \['embed/embedding'\]; correct",
    ),
    "decay without parameters": (
        lambda: ember(1e-3, optax.sgd(1.0), weight_decay=0.1).update(PARAMS, ember(1e-3, optax.sgd(1.0)).init(PARAMS)),
        ValueError,
        r"weight_decay needs the parameters: call update\(updates, state, params\)",
    ),
    "gradient of another table": (
        lambda: scale_by_ember().update({"wte": jnp.ones((5, 4))}, scaled(jnp.ones((6, 4)))),
        ValueError,
        r"gradient of 'wte' has shape \(5, 4\).* nu_token of shape \(5,\) .* but has \(6,\)",
    ),
    "state of another model": (
        lambda: scale_by_ember().update({"wte": jnp.ones((6, 4))}, scale_by_ember().init({"embed": jnp.ones((6, 4))})),
        ValueError,
        r"the updates have the tables \['wte'\], but the state has \['embed'\]",
    ),
    "gradient with other features": (
        lambda: scale_by_ember().update({"wte": jnp.ones((6, 5))}, scaled(jnp.ones((6, 4)))),
        ValueError,
        r"gradient of 'wte' has shape \(6, 5\).* nu_feature of shape \(5,\), but has \(6,\) and \(4,\)",
    ),
    "no table declared for a table": (
        lambda: scale_by_ember(dimension_numbers={"wte": ALL, "mlp": None}).init({"wte": jnp.ones((6, 4)), "mlp": jnp.ones(4)}),
        ValueError,
        r"says None, no table, of 'mlp' with shape \(4,\).*optax.masked or optax.partition",
    ),
    "paths that collide": (
        lambda: ember(1e-3, tables={"params": {"a": ALL}, "a": None}).init({"params": {"a": jnp.ones((6, 4))}, "a": jnp.ones(4)}),
        ValueError,
        r"paths \['a'\] stand for more than one leaf",
    ),
    "state cast down": (
        lambda: scale_by_ember().update({"wte": jnp.ones((6, 4))}, optax.tree.cast(scaled(jnp.ones((6, 4))), jnp.bfloat16)),
        TypeError,
        r"nu_token of 'wte' is bfloat16, but Ember's state is float32.*jax.eval_shape\(tx.init, params\)",
    ),
    "eps beyond float32": (lambda: scale_by_ember(eps=1e39), ValueError, r"eps must be finite"),
    "complex array": (lambda: ember(jnp.complex64(1)), TypeError, r"learning_rate must be a real scalar.*complex64"),
    "integer gradient": (
        lambda: scale_by_ember().update({"wte": jnp.ones((6, 4), jnp.int32)}, scaled(jnp.ones((6, 4)))),
        TypeError,
        r"'wte' .* int32",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_is_refused(mistake):
    provoke, error, message = MISTAKES[mistake]
    with pytest.raises(error) as raised:
        provoke()
    assert re.search(message, str(raised.value)), str(raised.value)


def test_valid_neighbours_are_accepted():
    """The bounds themselves and other spellings of good values."""
    for b2 in (0, 0.0, np.float32(0.9), jnp.float32(0.9), 1 - 1e-8):
        scale_by_ember(b2)
    for rate in (0, 0.0, np.float64(1e-3), jnp.float32(1e-3), jnp.bfloat16(1e-3), optax.constant_schedule(0.1)):
        ember(rate, eps=0, weight_decay=0)
    scaled(jnp.ones((6, 4)), token_axis=-1)
    scaled(jnp.ones(()))
    scaled(jnp.ones(5), token_axis=-1)
