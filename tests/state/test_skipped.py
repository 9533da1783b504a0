"""The counts of skipped batches, through what wraps a state, and the error when they are too many."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from ember_optax import EmberDimensionNumbers, check_skipped_batches, ember, scale_by_ember, skipped_batches

PARAMS = {
    "embed": {"embedding": jnp.ones((12, 8))},
    "lm_head": {"kernel": jnp.ones((8, 12))},
    "dense": {"kernel": jnp.ones((8, 8))},
}
BAD = {**PARAMS, "embed": {"embedding": PARAMS["embed"]["embedding"].at[1, 1].set(jnp.nan)}}
WRAPPED = {
    "alone": lambda rate: ember(rate, optax.adamw(rate)),
    "under a clip": lambda rate: optax.chain(optax.clip(1.0), ember(rate, optax.adamw(rate))),
    "with injected hyperparameters": lambda rate: optax.inject_hyperparams(ember, ("body", "tables"))(rate, optax.adamw(rate)),
    "under a mask": lambda rate: optax.masked(ember(rate, optax.adamw(rate)), {"embed": True, "lm_head": True, "dense": False}),
    "under apply_if_finite that gives up at once": lambda rate: optax.apply_if_finite(ember(rate, optax.adamw(rate)), 0),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_counts_by_path_through_wrappers(wrapped):
    tx = WRAPPED[wrapped](1e-2)
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for grads in (PARAMS, BAD, BAD, PARAMS):
        _, state = update(grads, state, PARAMS)
    assert skipped_batches(state) == {"embed/embedding": 2, "lm_head/kernel": 0}


def test_counts_of_an_nnx_optimizer():
    optimizer = nnx.Optimizer(model := nnx.Embed(12, 8, rngs=nnx.Rngs(0)), ember(1e-2, optax.adamw(1e-2)), wrt=nnx.Param)
    grads = jax.tree.map(lambda p: p * jnp.nan, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    assert skipped_batches(optimizer.opt_state) == {"embedding": 1}


def test_counts_of_a_stack_are_added_up():
    tx = scale_by_ember(dimension_numbers=EmberDimensionNumbers(1, batch_axes=(0,)))
    stack = jnp.ones((3, 12, 8))
    _, state = tx.update(stack.at[:2].set(jnp.inf), tx.init(stack))
    assert list(skipped_batches(state).values()) == [2]


def test_raises_above_what_is_allowed_since_the_last_look():
    tx = ember(1e-2, optax.adamw(1e-2))
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    seen = check_skipped_batches(state)
    for _ in range(3):
        _, state = update(BAD, state, PARAMS)
    assert check_skipped_batches(state, at_most=3, since=seen) == {"embed/embedding": 3, "lm_head/kernel": 0}
    with pytest.raises(
        FloatingPointError, match=r"2 batches more than at_most=1 were skipped by 'embed/embedding' \(3\): its grad"
    ):
        check_skipped_batches(state, at_most=1, since=seen)
    seen = check_skipped_batches(state, at_most=3)
    check_skipped_batches(state, since=seen)
    _, state = update(BAD, state, PARAMS)
    with pytest.raises(FloatingPointError, match=r"1 batch more than at_most=0 was skipped by 'embed/embedding' \(1\)"):
        check_skipped_batches(state, since=seen)
