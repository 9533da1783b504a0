"""What `stochastic_rounding` refuses."""

import jax
import jax.numpy as jnp
import numpy as np

from bad_inputs.examples import IDS, PARAMS, TABLE, TX, state
from ember_optax import stochastic_rounding

NARROW = {"wte": TABLE.astype(jnp.bfloat16)}
UPDATES = {"wte": TABLE}
ROUNDING = stochastic_rounding(0)


def seeded(seed):
    return lambda: stochastic_rounding(seed)


def update(updates=UPDATES, params=NARROW, of_state=None, **options):
    return lambda: ROUNDING.update(updates, ROUNDING.init(NARROW) if of_state is None else of_state(), params, **options)


BAD = {
    "seed of None": (seeded(None), TypeError, r"seed must be an integer, got None of type NoneType; pass a number like 0"),
    "seed of text": (seeded("0"), TypeError, r"seed must be an integer, got '0' of type str; pass a number"),
    "seed of a float": (seeded(0.0), TypeError, r"seed must be an integer, got 0.0 of type float; pass a number"),
    "seed of a truth value": (seeded(True), TypeError, r"seed must be an integer, got True of type bool; pass a number"),
    "seed of a key": (seeded(jax.random.key(0)), TypeError, r"seed must be one integer, got .* dtype key<fry>; pass seed=0"),
    "seed of an old key": (
        seeded(jax.random.PRNGKey(0)),
        TypeError,
        r"seed must be one integer, .* shape \(2,\) .*; pass seed=0",
    ),
    "seed below zero": (seeded(-1), ValueError, r"seed must be in 0 to 2\^32 - 1, got -1; pass seed=0"),
    "seed beyond 32 bits": (seeded(1 << 32), ValueError, r"seed must be in 0 to 2\^32 - 1, got 4294967296; pass"),
    "no parameters": (
        update(params=None),
        ValueError,
        r"stochastic_rounding needs the parameters.*: call update\(updates, st",
    ),
    "parameters of another shape": (
        update(params={"wte": NARROW["wte"][:5]}),
        ValueError,
        r"parameter 'wte' has shape \(5, 4\), but its gradient has \(6, 4\): pass",
    ),
    "parameters of another model": (update(params=PARAMS), ValueError, r"tables \['wte'\], but the parameter tree has .*; pass"),
    "parameters of 8 bits": (
        update(params={"wte": TABLE.astype(jnp.float8_e4m3fn)}),
        TypeError,
        r"parameter 'wte' of shape \(6, 4\) has dtype float8_e4m3fn; .*: keep this leaf out with optax.masked",
    ),
    "updates of text": (update({"wte": "x"}), TypeError, r"update of 'wte' is 'x' of type str, not an array"),
    "updates of None": (update(None), TypeError, r"updates must be a tree of arrays, got None"),
    "a state of another": (update(of_state=state), TypeError, r"state must be the one that init .* of type PartitionState"),
    "ids of a dense update": (
        update(token_ids={"wte": IDS}),
        ValueError,
        r"the update of 'wte' is dense, of shape \(6, 4\), but token_ids gives it ids of shape \(2,\)",
    ),
    "ids of another": (update(token_ids={"x": IDS}), ValueError, r"token_ids names \['x'\], but the updates have \['wte'\]"),
    "a transformation for updates": (lambda: ROUNDING.update(TX, None, NARROW), TypeError, r"updates must be a tree of arrays"),
}
GOOD = {
    "a seed of NumPy": seeded(np.int64(3)),
    "an array of one seed": seeded(jnp.uint32(3)),
    "the largest seed": seeded((1 << 32) - 1),
    "no parameters of 16 bits": update(params=UPDATES),
    "rows": update({"wte": TABLE[:2]}, token_ids={"wte": IDS}),
    "updates of 16 bits": update(NARROW),
}
