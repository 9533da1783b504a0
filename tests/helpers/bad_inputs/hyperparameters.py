"""Numbers, schedules, words, bodies and mesh axes: the arguments of `ember` and `scale_by_ember`."""

from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import optax

from bad_inputs.examples import PARAMS, SCALE, TABLE, TX, WTE, a_function, state
from ember_optax import ember, scale_by_ember

BODY = optax.adamw(1e-3)


def with_number(argument, value):
    return lambda: ember(**({"learning_rate": 1e-3, "body": BODY} | {argument: value}))


def stepped(schedule, body=BODY):
    tx = ember(schedule, body)
    return lambda: tx.update(PARAMS, tx.init(PARAMS), PARAMS)


FIXES = {
    "learning_rate": r"; pass a number >= 0 or a schedule, for example learning_rate=1e-2",
    "b2": r"; (pass a number in \[0, 1\), for example b2=0.999|0.999 is the default)",
    "eps": r"; pass a number >= 0, for example eps=1e-8",
    "weight_decay": r"; pass a number >= 0, for example weight_decay=0.1",
}
NO_NUMBERS = {
    "beyond float": (10**400, ValueError, r"a number of more than 308 digits"),
    "a fraction beyond float": (Fraction(10**400), ValueError, r"a number of more than 308 digits"),
    "beyond float32": (1e39, ValueError, r"got 1e\+39"),
    "infinite": (float("inf"), ValueError, r"got inf"),
    "not a number": (float("nan"), ValueError, r"got nan"),
    "NaN of NumPy": (np.float32("nan"), ValueError, r"got np.float32\(nan\)"),
    "negative": (-0.1, ValueError, r"got -0.1"),
    "a negative fraction": (Fraction(-1, 2), ValueError, r"got Fraction\(-1, 2\)"),
    "a negative array": (jnp.float32(-1), ValueError, r"got Array\(-1"),
    "text": ("0.9", TypeError, r"got '0.9' of type str"),
    "None": (None, TypeError, r"got None of type NoneType"),
    "a truth value": (True, TypeError, r"got True of type bool"),
    "a truth value of NumPy": (np.bool_(True), TypeError, r"array of shape \(\) and dtype bool"),
    "complex": (1j, TypeError, r"got 1j of type complex"),
    "a complex array": (jnp.complex64(1), TypeError, r"array of shape \(\) and dtype complex64"),
    "a decimal": (Decimal("0.1"), TypeError, r"got Decimal\('0.1'\) of type Decimal"),
    "a list": ([0.1], TypeError, r"got \[0.1\] of type list"),
    "a vector": (jnp.ones(3), TypeError, r"array of shape \(3,\) and dtype float32"),
    "a transformation": (TX, TypeError, r"got GradientTrans.* of type GradientTransformationExtraArgs"),
}
BAD = {
    f"{argument}: {what}": (with_number(argument, value), error, rf"^{argument} must be .*{got}.*{fix}")
    for argument, fix in FIXES.items()
    for what, (value, error, got) in NO_NUMBERS.items()
}
BAD |= {
    "negative learning rate": (lambda: ember(-1e-3, optax.adamw(-1e-3)), ValueError, r"learning_rate .* -0.001; pass"),
    "b2 of one": (
        lambda: ember(1e-3, optax.adamw(1e-3), b2=1.0),
        ValueError,
        r"b2 must be in \[0, 1\), got 1.0; 0.999 is the default",
    ),
    "b2 above one": (lambda: scale_by_ember(1.5), ValueError, r"b2 must be in \[0, 1\), got 1.5; 0.999"),
    "b2 is a function": (lambda: scale_by_ember(a_function), TypeError, r"b2 must be .* got <function .*; pass a number"),
    "b2 in half precision": (
        lambda: scale_by_ember(jnp.bfloat16(0.999)),
        TypeError,
        r"b2 arrived as bfloat16.1.0.*hyperparam_dtype",
    ),
    "eps in half precision": (
        lambda: scale_by_ember(eps=jnp.float16(1e-8)),
        TypeError,
        r"eps arrived as float16.0.0.*hyperparam",
    ),
    "body is a function": (lambda: ember(1e-3, optax.adamw), TypeError, r"body must be .* for example optax.adamw\(1e-3\)"),
    "body is a rate": (lambda: ember(1e-3, 1e-3), TypeError, r"body must be .* got 0.001 of type float.* optax.adamw\(1e-3\)"),
    "body is a word": (lambda: ember(1e-3, "adamw"), TypeError, r"body must be .* got 'adamw' of type str.*pass one with"),
    "body is a state": (lambda: ember(1e-3, state()), TypeError, r"body must be .* of type PartitionState.*pass one with"),
    "body is a list": (lambda: ember(1e-3, [TX]), TypeError, r"body must be .* of type list.*pass one with"),
    "body is a class": (lambda: ember(1e-3, optax.GradientTransformation), TypeError, r"body must be .* of type type.*pass one"),
    "arguments of ember swapped": (lambda: ember(TX, 1e-3), TypeError, r"body must be .* got 0.001 of type float: pass one with"),
    "schedule of None": (stepped(lambda _: None), TypeError, r"learning_rate\(step\) must be .* got None .*; pass a schedule"),
    "schedule of text": (stepped(lambda _: "1"), TypeError, r"learning_rate\(step\) must be .* got '1' .*; pass a schedule"),
    "schedule of a vector": (
        stepped(lambda _: jnp.ones(4)),
        TypeError,
        r"learning_rate\(step\) .* shape \(4,\) .*; pass a sched",
    ),
    "an optimizer for a schedule": (stepped(optax.adamw), TypeError, r"learning_rate\(step\) must be .* got Gradient.*; pass a"),
    "mesh axes of a number": (lambda: scale_by_ember(token_mesh_axes=3), TypeError, r"token_mesh_axes must .* got 3; pass"),
    "mesh axes of None": (lambda: scale_by_ember(feature_mesh_axes=None), TypeError, r"feature_mesh_axes must .* got None; pass"),
    "mesh axes of a mapping": (
        lambda: scale_by_ember(token_mesh_axes={"a": 1}),
        TypeError,
        r"token_mesh_axes must .* got {.*; pass",
    ),
    "mesh axes with a number": (lambda: scale_by_ember(token_mesh_axes=("a", 3)), TypeError, r"token_mesh_axes .*'a', 3\); pass"),
    "mesh axes of bytes": (lambda: scale_by_ember(token_mesh_axes=b"a"), TypeError, r"token_mesh_axes must .* got b'a'; pass"),
    "mesh axis twice": (
        lambda: scale_by_ember(token_mesh_axes=("a", "a")),
        ValueError,
        r"=\('a', 'a'\) .* twice; it splits either",
    ),
    "mesh axis that is not in use": (
        lambda: scale_by_ember(token_mesh_axes="fsdp").update(WTE, state(SCALE, "WTE")),
        ValueError,
        r"token_mesh_axes names 'fsdp', which is no mesh axis .* Name an axis of the mesh, or leave",
    ),
    "decay without parameters": (
        lambda: ember(1e-3, optax.sgd(1.0), weight_decay=0.1).update(PARAMS, state(ember(1e-3, optax.sgd(1.0)))),
        ValueError,
        r"weight_decay needs the parameters: call update\(updates, state, params\)",
    ),
}
BAD |= {
    f"feature_mean of {value!r}": (
        lambda value=value: ember(1e-3, optax.adamw(1e-3), feature_mean=value),
        ValueError,
        rf"feature_mean must be 'all_rows' or 'active_rows', got .* of type {type(value).__name__}; pass one",
    )
    for value in ("mean", "ALL_ROWS", None, 3, ["all_rows"], np.ones(2))
}
GOOD = {
    f"{argument} of {value!r}": with_number(argument, value)
    for argument, values in {
        "learning_rate": (0, 0.0, np.float64(1e-3), jnp.float32(1e-3), jnp.bfloat16(1e-3), Fraction(1, 1000)),
        "b2": (0, 0.0, np.float32(0.9), jnp.float32(0.9), 1 - 1e-8, Fraction(999, 1000)),
        "eps": (0, 1e-30, jnp.bfloat16(1e-8), Fraction(1, 10**8)),
        "weight_decay": (0, 0.1, Fraction(1, 10)),
    }.items()
    for value in values
}
GOOD |= {
    "a schedule": stepped(optax.constant_schedule(0.1)),
    "a schedule of an array": stepped(lambda _: jnp.float32(0.1), optax.sgd(0.1)),
    "a schedule of an integer": stepped(lambda _: 1, optax.sgd(0.1)),
    "mesh axes in a list": lambda: scale_by_ember(token_mesh_axes=["tp", "fsdp"]).init(TABLE),
}
