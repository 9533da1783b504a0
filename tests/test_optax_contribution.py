"""The file for `optax.contrib` computes what `scale_by_ember` of this package computes."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import EmberDimensionNumbers, scale_by_ember

FILE = Path(__file__).parents[1] / "contrib" / "optax" / "_ember.py"


@pytest.fixture(scope="module")
def contribution():
    pytest.importorskip("optax.tree", reason="this Optax is older than the contribution's names")
    spec = importlib.util.spec_from_file_location("contributed_ember", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("token_axis", [0, 1])
def test_same_steps_and_state(contribution, token_axis):
    theirs = contribution.scale_by_ember(dimension_numbers=contribution.EmberDimensionNumbers(token_axis))
    ours = scale_by_ember(dimension_numbers=EmberDimensionNumbers(token_axis))
    params = {"table": jnp.zeros((6, 5))}
    their_state, our_state = theirs.init(params), ours.init(params)
    for step in range(4):
        gradients = {"table": jax.random.normal(jax.random.key(step), (6, 5)).at[step].set(0)}
        their_updates, their_state = theirs.update(gradients, their_state)
        our_updates, our_state = ours.update(gradients, our_state)
        np.testing.assert_allclose(their_updates["table"], our_updates["table"], rtol=1e-4, atol=1e-6)
    for field in ("nu_token", "nu_feature"):
        np.testing.assert_allclose(getattr(their_state, field)["table"], getattr(our_state, field)["table"], rtol=1e-5)


def test_same_training(contribution):
    params = {"table": jnp.ones((6, 5))}
    tx = contribution.ember(1e-2, weight_decay=0.1)
    state = tx.init(params)
    ours = optax.chain(scale_by_ember(), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(1e-2))
    updates, _ = tx.update(params, state, params)
    expected, _ = ours.update(params, ours.init(params), params)
    np.testing.assert_allclose(updates["table"], expected["table"], rtol=1e-5)
