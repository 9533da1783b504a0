"""A train step is traced once in a hundred steps, whatever is around the optimizer and wherever its state came from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from steps import dense_step, sparse_step
from three_matrices import initial_params

from ember_optax import ember, losses, row_sparse

STEPS = 100
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, STEPS)
WRAPPED = {
    "a number": ember(1e-2, optax.adamw(1e-2)),
    "a schedule": ember(SCHEDULE, optax.adamw(SCHEDULE)),
    "weight decay": ember(SCHEDULE, optax.adamw(SCHEDULE), weight_decay=0.1),
    "injected schedules": optax.inject_hyperparams(ember, ("body", "tables"))(
        SCHEDULE, optax.adamw(SCHEDULE), b2=lambda step: 0.9 + 0.0001 * step
    ),
    "micro-batches": optax.MultiSteps(ember(SCHEDULE, optax.adamw(SCHEDULE)), 3),
    "a guard": optax.apply_if_finite(ember(SCHEDULE, optax.adamw(SCHEDULE)), 5),
    "a clip before it": optax.chain(optax.clip_by_global_norm(1.0), ember(SCHEDULE, optax.adamw(SCHEDULE))),
    "another body": ember(SCHEDULE, optax.contrib.muon(SCHEDULE)),
}


class Counted:
    """A jitted step with its first two arguments donated, and how often it was traced."""

    def __init__(self, step):
        self.traces = 0

        def counted(*arguments):
            self.traces += 1
            return step(*arguments)

        self.step = jax.jit(counted, donate_argnums=(0, 1))

    def run(self, params, state, steps=STEPS):
        for _ in range(steps):
            params, state = self.step(params, state, initial_params())
        return params, state


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_from_the_first_state(wrapped):
    tx = WRAPPED[wrapped]
    counted = Counted(dense_step(tx))
    counted.run(initial_params(), tx.init(initial_params()))
    assert counted.traces == 1


@pytest.mark.parametrize("wrapped", ["a schedule", "injected schedules", "micro-batches"])
def test_with_a_restored_state_too(wrapped, tmp_path):
    """What a checkpoint gives back goes through the program that was traced before."""
    tx = WRAPPED[wrapped]
    counted = Counted(dense_step(tx))
    saved = counted.run(initial_params(), tx.init(initial_params()), steps=3)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", saved)
        restored = checkpointer.restore(
            tmp_path / "saved", item=saved, restore_args=ocp.checkpoint_utils.construct_restore_args(saved)
        )
    counted.run(*restored)
    assert counted.traces == 1


def test_row_sparse_steps():
    tx, rng = WRAPPED["a schedule"], np.random.default_rng(0)
    counted, params = Counted(sparse_step(tx)), initial_params()
    state = tx.init(params)
    for _ in range(STEPS):
        ids = jnp.asarray(rng.integers(-1, 12, 5))
        grads = {**initial_params(), "embed": {"embedding": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)}}
        params, state = counted.step(params, state, grads, {"embed/embedding": ids})
    assert counted.traces == 1


def test_steps_with_a_fused_head():
    tx, rng = WRAPPED["a schedule"], np.random.default_rng(0)

    def loss_fn(params, ids, labels):
        hidden = jnp.tanh(params["embed"]["embedding"][ids] @ params["dense"]["kernel"])
        return losses.linear_softmax_cross_entropy(hidden, params["lm_head"]["kernel"], labels, token_axis=1).mean()

    def step(params, state, ids, labels):
        _, grads = row_sparse.value_and_grad(loss_fn, heads="lm_head/kernel")(params, {}, ids, labels)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    counted, params = Counted(step), initial_params()
    state = tx.init(params)
    for _ in range(STEPS):
        params, state = counted.step(params, state, *jnp.asarray(rng.integers(0, 12, (2, 5))))
    assert counted.traces == 1
