"""Sharding, conversion and checkpoints of a state."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bad_inputs.examples import (
    ADAM,
    PARAMS,
    SPECS,
    TX,
    WTE,
    a_function,
    each,
    mesh,
    shardings,
    state,
)
from bad_inputs.steps import NO_TREES
from ember_optax import (
    ember,
    state_from_adam,
    state_partition_specs,
    state_shardings,
)


def specs(tx=TX, params=PARAMS, param_specs=SPECS, **options):
    return lambda: state_partition_specs(tx, params, param_specs, **options)


def placed(tx=TX, params=PARAMS, param_shardings=None, **options):
    return lambda: state_shardings(tx, params, shardings() if param_shardings is None else param_shardings(), **options)


def from_adam(tx=TX, params=PARAMS, **options):
    return lambda: state_from_adam(tx, params, state(ADAM), **{"adam_b2": 0.999, **options})


def adam(of_state):
    return lambda: state_from_adam(TX, PARAMS, of_state(), adam_b2=0.999)


def moments(mu=PARAMS, nu=PARAMS, count=jnp.int32(1)):  # noqa: B008 -- an immutable array
    return adam(lambda: optax.ScaleByAdamState(count, mu, nu))


def with_kernel(leaf):
    return {**PARAMS, "dense": {"kernel": leaf}}


TAKES_TX = {"state_partition_specs": specs, "state_shardings": placed, "state_from_adam": from_adam}
NO_TX = {
    "None": (None, r"got None of type NoneType"),
    "a number": (3, r"got 3 of type int"),
    "text": ("adamw", r"got 'adamw' of type str"),
    "a function": (ember, r"got <function .* of type function"),
    "init": (TX.init, r"got <function .* of type function"),
    "the parameters": (PARAMS, r"got {'dense'.* of type dict"),
    "something like it": (types.SimpleNamespace(init=3, update=3), r"got namespace\(init=3.* of type SimpleNamespace"),
}
BAD = {
    f"tx of {name}: {what}": (take(value), TypeError, rf"^tx must be an optax.GradientTransformation, {got}: pass the trans")
    for name, take in TAKES_TX.items()
    for what, (value, got) in NO_TX.items()
}
BAD |= {
    f"params of {name}: {what}": (take(params=value), error, rf"^params must be a tree of arrays, {got}: pass params")
    for name, take in TAKES_TX.items()
    for what, (value, error, got) in NO_TREES.items()
}
BAD |= {
    f"params of {name} with {what}": (take(params=value), error, message)
    for name, take in TAKES_TX.items()
    for what, (value, error, message) in {
        "nothing in it": ({}, ValueError, r"^params has no array in it, got {} of type dict: pass the tree"),
        "text": (with_kernel("x"), TypeError, r"'dense/kernel' is 'x' of type str, not an array.*eqx\.filter"),
        "functions": (each(a_function), TypeError, r"'dense/kernel' is <function.*not an array.*eqx\.filter"),
        "a random key": (with_kernel(jax.random.key(0)), TypeError, r"'dense/kernel' of shape \(\) has dtype key<fry>.*convert"),
    }.items()
}
BAD |= {
    f"replicate_ember of {value!r}": (
        specs(replicate_ember=value),
        TypeError,
        rf"replicate_ember must be True or False, got .* of type {type(value).__name__}; pass",
    )
    for value in ("yes", None, 3, np.ones(2))
}
BAD |= {
    f"param_specs: {what}": (specs(param_specs=value), error, message)
    for what, (value, error, message) in {
        "None": (
            None,
            ValueError,
            r"^param_specs, None of type NoneType, do not .*'embed/embedding'\].*replicated is PartitionSpec\(",
        ),
        "a number": (3, (TypeError, ValueError), r"(spec|param_specs).* 3 of type int.*PartitionSpec\("),
        "text": ("fsdp", (TypeError, ValueError), r"(spec|param_specs).* 'fsdp' of type str.*PartitionSpec\("),
        "a mesh": (P, (TypeError, ValueError), r"(spec|param_specs).* of type .*PartitionSpec\("),
        "an empty tree": ({}, ValueError, r"^param_specs, {} of type dict, do not have the structure .*: give each one a leaf"),
        "half a tree": ({"embed": P()}, ValueError, r"^param_specs, .* of type dict, do not have the structure .*: give each"),
        "one too many": (
            {**SPECS, "x": P()},
            ValueError,
            r"^param_specs, .* of type dict, do not have the structure .*: give each",
        ),
        "a list": ([P(), P()], ValueError, r"^param_specs, .* of type list, do not have the structure .*: give each"),
        "text for one": ({**SPECS, "dense": "fsdp"}, TypeError, r"spec of 'dense/kernel' must .* 'fsdp' of type str; write Part"),
        "a tuple for one": (
            {**SPECS, "dense": ("fsdp", None)},
            ValueError,
            r"^param_specs, .* of type dict, do not .*: give each",
        ),
        "None for one": (
            {**SPECS, "dense": None},
            ValueError,
            r"^param_specs, .* of type dict, do not .*replicated is Partition",
        ),
        "shardings": (NamedSharding(mesh(), P()), TypeError, r"spec of 'dense/kernel' must .* of type NamedSharding; write Part"),
        "too long": (P(None, None, "tp"), ValueError, r"spec .* of 'dense/kernel' has 3 entries, .*\(4, 4\) has 2 axes; name at"),
        "an axis twice": (P("tp", "tp"), ValueError, r"spec .*'tp', 'tp'.* of 'dense/kernel' names a mesh axis twice; it can"),
        "a number for an axis": (P(3), TypeError, r"spec .*3.* of 'dense/kernel' must hold names .*\[3\]; write their names"),
        "the transformation": (TX, ValueError, r"^param_specs, .* of type Gradient.*, do not have the structure .*: give each"),
    }.items()
}
BAD |= {
    f"param_shardings: {what}": (placed(param_shardings=value), error, message)
    for what, (value, error, message) in {
        "specs": (P, TypeError, r"sharding of 'dense/kernel' must .* of type P.*; write NamedSharding\(mesh"),
        "a mesh": (mesh, (TypeError, ValueError), r"(sharding|param_shardings).* of type Mesh.*(NamedSharding|PartitionSpec)\("),
        "a device": (lambda: jax.devices()[0], TypeError, r"sharding of 'dense/kernel' must .* of type Device; write Named"),
        "one device": (
            lambda: jax.sharding.SingleDeviceSharding(jax.devices()[0]),
            TypeError,
            r"sharding of 'dense/kernel' must be a NamedSharding, .* of type SingleDeviceSharding; write NamedSharding\(mesh",
        ),
        "half a tree": (lambda: {"embed": shardings()}, ValueError, r"^param_shardings, .* do not have .*: give each one a leaf"),
        "too long": (
            lambda: shardings(None, None, "tp"),
            ValueError,
            r"spec .* of 'dense/kernel' has 3 entries.* 2 axes; name at",
        ),
        "two meshes": (
            lambda: {
                "dense": shardings(),
                "embed": NamedSharding(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)), P()),
            },
            ValueError,
            r"param_shardings name 2 different meshes: .*; put all parameters on one",
        ),
        "an axis that does not divide": (
            lambda: shardings("fsdp"),
            ValueError,
            r"axis 0 of 'embed/embedding', of size 6, does not divide by the 4 devices .*Pad it with zeros to 256",
        ),
    }.items()
}
BAD |= {
    "specs of (params, tx)": (
        lambda: state_partition_specs(PARAMS, TX, SPECS),
        TypeError,
        r"tx must .* type dict: pass the trans",
    ),
    "specs of (tx, specs, params)": (
        lambda: state_partition_specs(TX, SPECS, PARAMS),
        TypeError,
        r"'dense/kernel' is P.*not an array",
    ),
    "shardings of (params, tx)": (
        lambda: state_shardings(PARAMS, TX, shardings()),
        TypeError,
        r"tx must .* type dict: pass the tr",
    ),
    "from_adam(params, tx, state)": (
        lambda: state_from_adam(PARAMS, TX, state(ADAM)),
        TypeError,
        r"tx must .* dict: pass the tran",
    ),
    "from_adam(state, params, tx)": (
        lambda: state_from_adam(state(ADAM), PARAMS, TX),
        TypeError,
        r"tx must .* tuple: pass the tra",
    ),
    "from_adam(tx, state, params)": (
        lambda: state_from_adam(TX, state(ADAM), PARAMS),
        TypeError,
        r"params must be a tree .*ScaleByAdam.* of type tuple: pass params",
    ),
    "from_adam of another model": (
        from_adam(params=WTE),
        ValueError,
        r"no moments of 'wte'; it has those of \['dense.*: pass the",
    ),
    "from_adam of another vocabulary": (
        from_adam(params={**PARAMS, "embed": {"embedding": jnp.ones((9, 4))}}),
        ValueError,
        r"nu of 'embed/embedding' has shape \(6, 4\), but the parameter has \(9, 4\): convert with",
    ),
}
BAD |= {
    f"adam_state: {what}": (
        adam(value),
        ValueError,
        rf"adam_state holds no optax.ScaleByAdamState.* of type {name}; pass the state",
    )
    for what, (value, name) in {
        "None": (lambda: None, "NoneType"),
        "a number": (lambda: 3, "int"),
        "text": (lambda: "adam", "str"),
        "the parameters": (lambda: PARAMS, "dict"),
        "the transformation": (lambda: ADAM, "GradientTransformationExtraArgs"),
        "of sgd": (lambda: optax.sgd(0.1).init(PARAMS), "tuple"),
    }.items()
}
BAD |= {
    "moments of two models": (
        moments(nu=WTE),
        ValueError,
        r"adam_state has mu of \['dense.*, but nu of \['wte'\]: pass the state",
    ),
    "no second moments": (moments(nu={}), ValueError, r"adam_state has mu of \['dense.*, but nu of \[\]: pass the state"),
    "moments of text": (moments(nu=each("x")), TypeError, r"Adam's nu of 'dense/kernel' is 'x' of type str, not an array"),
    "first moment of another shape": (
        moments(mu=with_kernel(jnp.ones((1, 4)))),
        ValueError,
        r"Adam's mu of 'dense/kernel' has shape \(1, 4\), but the parameter has \(4, 4\): convert with",
    ),
    "second moment of NaN": (
        moments(nu=with_kernel(jnp.full((4, 4), jnp.nan))),
        ValueError,
        r"nu of 'dense/kernel' is not finite.*; convert an earlier checkpoint",
    ),
    "negative second moment": (
        moments(nu=with_kernel(-jnp.ones((4, 4)))),
        ValueError,
        r"nu of 'dense/kernel' is negative somewhere.*: pass the state",
    ),
    "count of text": (moments(count="a"), TypeError, r"count of 'dense/kernel' must be one integer, got 'a' .*: restore"),
    "count of None": (moments(count=None), TypeError, r"count of 'dense/kernel' must be one integer, got None .*: restore"),
    "count of floats": (moments(count=jnp.float32(1.5)), TypeError, r"count of 'dense/kernel' must .* got Array\(1.5.*: restore"),
    "count of several": (
        moments(count=jnp.ones(3, int)),
        TypeError,
        r"count of 'dense/kernel' must .* got Array\(\[1.*: restore",
    ),
    "negative count": (moments(count=-3), ValueError, r"count of 'dense/kernel' is -3, but counts steps: pass the state"),
    "no b2 of Adam": (from_adam(adam_b2=None), TypeError, r"^adam_b2 is missing: .* Pass adam_b2=0.999 if optax.adam"),
    "Adam's b2 of the conversion": (from_adam(adam_b2="x"), TypeError, r"^adam_b2 must be .* got 'x' of type str; pass a number"),
}
GOOD = {
    "specs as a prefix": specs(param_specs=P()),
    "specs of shapes": specs(params=jax.eval_shape(lambda: PARAMS)),
    "replicated vectors": specs(replicate_ember=np.bool_(True)),
    "several mesh axes of one axis": specs(param_specs=P(("tp", "fsdp"))),
    "an axis left to the compiler": specs(param_specs=P(P.UNCONSTRAINED)),
    "one sharding for all": placed(param_shardings=lambda: shardings(None, "tp")),
    "a restored count": moments(count=np.int64(3)),
    "a count of Python": moments(count=3),
    "a run that never stepped": from_adam(),
}
