"""What trainers hold and save of an optimizer: `nnx.Optimizer` and its `nnx.state`, `TrainState`, dictionaries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from next_token import needs_nnx_optimizer

from ember_optax import check_skipped_batches, checksums, ember, geometry, skipped_batches, state_from_adam, vocab

pytestmark = needs_nnx_optimizer
V, D = 16, 4
TX, ADAM = ember(1e-2, optax.adamw(1e-3)), optax.inject_hyperparams(optax.adamw, hyperparam_dtype=jnp.float32)(1e-3, b2=0.95)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.lm_head = nnx.Linear(D, V, use_bias=False, rngs=rngs)
        self.mlp = nnx.Linear(D, D, rngs=rngs)


@functools.cache
def optimizer_of(tx):
    """The optimizer after two steps, the second of them with a bad batch for the head."""
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.state(model, nnx.Param)
    optimizer.update(model, grads)
    if tx is TX:
        grads["lm_head"]["kernel"] = jax.tree.map(lambda p: p * jnp.nan, grads["lm_head"]["kernel"])
        optimizer.update(model, grads)
    return optimizer


def params():
    return nnx.state(Model(nnx.Rngs(0)), nnx.Param)


def train_state(optimizer):
    made = TrainState.create(apply_fn=None, params=nnx.to_pure_dict(params()), tx=optimizer.tx)
    return made.replace(opt_state=optimizer.opt_state)


HELD = {
    "nnx.Optimizer": lambda optimizer: optimizer,
    "nnx.state(optimizer)": nnx.state,
    "nnx.state(optimizer)['opt_state']": lambda optimizer: nnx.state(optimizer)["opt_state"],
    "nnx.to_pure_dict": lambda optimizer: nnx.to_pure_dict(nnx.state(optimizer)),
    "TrainState": train_state,
    "flax.serialization": lambda optimizer: serialization.to_state_dict(nnx.to_pure_dict(nnx.state(optimizer))["opt_state"]),
}
EACH = pytest.mark.parametrize("held", HELD)


@EACH
def test_skipped_batches(held):
    state = HELD[held](optimizer_of(TX))
    assert skipped_batches(state) == check_skipped_batches(state, 1) == {"embed/embedding": 0, "lm_head/kernel": 1}


@EACH
@pytest.mark.parametrize("tx", [TX, ADAM], ids=["ember", "adam"])
def test_the_report_has_every_metric(held, tx):
    optimizer = optimizer_of(tx)
    ours, expected = (
        geometry.report(params(), params(), state, spectral=False) for state in (HELD[held](optimizer), optimizer.opt_state)
    )
    assert "geometry/embed/embedding/median_row_step" in expected
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@EACH
def test_conversion(held):
    optimizer = optimizer_of(ADAM)
    ours, expected = (state_from_adam(TX, params(), state) for state in (HELD[held](optimizer), optimizer.opt_state))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert int(jax.tree.leaves(skipped_batches(ours))[0]) == 0


@pytest.mark.parametrize("held", ["nnx.Optimizer", "nnx.state(optimizer)", "nnx.state(optimizer)['opt_state']", "TrainState"])
def test_checksums(held):
    expected = sorted(checksums(optimizer_of(TX).opt_state).values())
    assert set(expected) <= set(checksums(HELD[held](optimizer_of(TX))).values())


@pytest.mark.parametrize(
    "change", [functools.partial(vocab.resize, size=V + 3), functools.partial(vocab.take, token_ids=[5, 2, 2])]
)
@pytest.mark.parametrize("held", ["nnx.state(optimizer)['opt_state']", "to_pure_dict"])
def test_a_vocabulary_changes_in_the_form_that_was_given(change, held):
    optimizer = optimizer_of(TX)
    state = nnx.state(optimizer)["opt_state"]
    state = nnx.to_pure_dict(state) if held == "to_pure_dict" else state
    ours, expected = (change(TX, params(), one) for one in (state, optimizer.opt_state))
    assert type(ours.opt_state) is type(state)
    jax.tree.map(np.testing.assert_array_equal, ours.params, expected.params)
    assert checksums(ours.opt_state) == checksums(state_of(expected.opt_state, held))


def state_of(opt_state, held):
    """The same arrays as `nnx.state` has them."""
    optimizer = nnx.Optimizer(Model(nnx.Rngs(0)), TX, wrt=nnx.Param)
    optimizer.opt_state = opt_state
    state = nnx.state(optimizer)["opt_state"]
    return nnx.to_pure_dict(state) if held == "to_pure_dict" else state


@pytest.mark.parametrize("held", ["nnx.Optimizer", "nnx.state(optimizer)", "nnx.to_pure_dict", "TrainState"])
def test_a_vocabulary_is_changed_of_the_state_alone(held):
    with pytest.raises(TypeError, match=r"^opt_state is a \w+, which holds .* pass its opt_state, and put the changed one back"):
        vocab.resize(TX, params(), HELD[held](optimizer_of(TX)), V + 1)


def test_removed_share():
    optimizer = optimizer_of(TX)
    ours, expected = (vocab.removed_share(params(), state, [0, 1]) for state in (optimizer, optimizer.opt_state))
    assert ours == expected


def test_a_state_of_optax_that_has_an_opt_state_is_whole():
    tx = optax.contrib.sam(ember(1e-2, optax.adamw(1e-3)), optax.sgd(1e-2), sync_period=2)
    state = tx.init(nnx.to_pure_dict(params()))
    assert set(skipped_batches(state)) == {"embed/embedding", "lm_head/kernel"}
    grown = vocab.resize(tx, nnx.to_pure_dict(params()), state, V + 1)
    assert jax.tree.structure(grown.opt_state) == jax.tree.structure(state)
