"""Counts of skipped batches."""

import jax
import jax.numpy as jnp

from bad_inputs.examples import ADAM, PARAMS, TABLE, TX, WTE, state
from ember_optax import check_skipped_batches, skipped_batches

BAD = {
    f"skipped_batches of {what}": (
        lambda value=value: skipped_batches(value),
        ValueError,
        r"^opt_state has no ScaleByEmberS.*: pass the state of",
    )
    for what, value in {
        "None": None,
        "Adam's state": ADAM.init(PARAMS),
        "parameters": PARAMS,
        "text": "x",
        "the transformation": TX,
    }.items()
}
BAD |= {
    "skipped_batches inside jit": (
        lambda: jax.jit(skipped_batches)(state(TX)),
        TypeError,
        r"^opt_state is traced \(total_notfinite of 'embed/embedding'\).*: call this outside of jax\.jit",
    ),
    "check_skipped_batches at most -1": (
        lambda: check_skipped_batches(state(TX), at_most=-1),
        ValueError,
        r"^at_most must not be negative, got -1; 0 allows",
    ),
    "check_skipped_batches at most 2.5": (
        lambda: check_skipped_batches(state(TX), at_most=2.5),  # type: ignore[arg-type]
        TypeError,
        r"^at_most must be an integer, got 2.5 of type float; pass a number like 5",
    ),
    "check_skipped_batches since before the table": (
        lambda: check_skipped_batches(TX.update({"wte": TABLE * jnp.nan}, TX.init(WTE), WTE)[1], since={}),
        FloatingPointError,
        r"^1 batch more than at_most=0 was skipped by 'wte' \(1\): its gradient was not finite",
    ),
    "check_skipped_batches since a number": (
        lambda: check_skipped_batches(state(TX), since=3),  # type: ignore[arg-type]
        TypeError,
        r"^since must be what an earlier call returned, got 3 of type int; pass that",
    ),
}

GOOD = {"so many as are allowed": lambda: check_skipped_batches(state(TX), at_most=0)}
