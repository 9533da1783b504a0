"""Bugs that Optax, Flax and their users met with other optimizers, each with the issue that told of it: not here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.core import freeze
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from three_matrices import assert_trees_close, assert_trees_equal, initial_params

from ember_optax import ember, scale_by_ember, skipped_batches

pytestmark = pytest.mark.usefixtures("quick_compilation")
LARGEST = np.iinfo(np.int32).max


@pytest.mark.parametrize("rate", [1e-2, np.float32(1e-2), np.asarray(1e-2, jnp.bfloat16), jnp.bfloat16(1e-2)], ids=type)
def test_updates_have_the_dtype_of_gradients_whatever_kind_of_number_the_rate_is(rate):
    """google-deepmind/optax issue 1405: a NumPy scalar of bfloat16 made updates float32."""
    params = initial_params(jnp.bfloat16)
    tx = ember(rate)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert {updates[name][leaf].dtype for name, leaf in (("embed", "embedding"), ("lm_head", "kernel"))} == {
        jnp.dtype("bfloat16")
    }


def test_micro_batches_in_another_dtype_than_the_parameters():
    """google-deepmind/optax pull request 1039: `MultiSteps` failed where gradients are wider than parameters."""
    params = initial_params(jnp.bfloat16)
    grads = initial_params(jnp.float32)
    tx = optax.MultiSteps(ember(1e-2), 2)
    state, types = tx.init(params), []
    for _ in range(4):
        updates, state = jax.jit(tx.update)(grads, state, params)
        types.append(jax.tree.map(jnp.result_type, updates))
    assert types[0] == types[1] == types[2] == types[3]
    assert jax.tree.map(jnp.result_type, optax.apply_updates(params, updates)) == jax.tree.map(jnp.result_type, params)


def test_frozen_dictionaries():
    """google-deepmind/optax issue 160: masks and partitions failed on Flax's FrozenDict."""
    params = initial_params()
    tx = ember(1e-2)
    expected, _ = tx.update(params, tx.init(params), params)
    found, _ = tx.update(freeze(params), tx.init(freeze(params)), freeze(params))
    assert_trees_equal(found.unfreeze(), expected)


def test_a_mask_around_what_masks_itself():
    """google-deepmind/optax issue 271: a masked transformation under another mask failed."""
    params = initial_params()
    mask = {"embed": True, "lm_head": True, "dense": False}
    tx = optax.masked(optax.chain(optax.masked(optax.clip(1.0), mask), ember(1e-2)), mask)
    updates, state = tx.update(params, tx.init(params), params)
    assert skipped_batches(state) == {"embed/embedding": 0, "lm_head/kernel": 0}
    np.testing.assert_array_equal(updates["dense"]["kernel"], params["dense"]["kernel"])
    assert not np.array_equal(updates["embed"]["embedding"], params["embed"]["embedding"])


def test_a_deserialised_state_is_the_same_type_under_cond():
    """google/flax issues 1429 and 1550: a restored state had other named tuples, and `lax.cond` refused it."""
    params, tx = initial_params(), ember(1e-2)
    _, state = tx.update(params, tx.init(params), params)
    restored = serialization.from_bytes(tx.init(params), serialization.to_bytes(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    chosen = jax.lax.cond(True, lambda: tx.update(params, restored, params)[1], lambda: restored)
    assert_trees_close(chosen, tx.update(params, state, params)[1], rtol=1e-6)


def test_an_nnx_optimizer_leaves_the_models_sharding_alone():
    """google/flax issue 5172: a step of `nnx.Optimizer` moved parameters to the state's sharding."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    model = nnx.Embed(16, 8, rngs=nnx.Rngs(0))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    nnx.update(model, jax.device_put(nnx.state(model), rows))
    optimizer = nnx.Optimizer(model, ember(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.sum(model(jnp.arange(4)) ** 2))(model)
        optimizer.update(model, grads)

    for _ in range(2):
        step(model, optimizer)
    (table,) = jax.tree.leaves(nnx.state(model))
    assert table.sharding.is_equivalent_to(rows, 2)
    (token,), (feature,) = (jax.tree.leaves(optax.tree.get(optimizer.opt_state, name)) for name in ("nu_token", "nu_feature"))
    assert token.sharding.is_equivalent_to(rows, 1)
    assert feature.sharding.is_fully_replicated


@pytest.mark.parametrize("field", ["count", "total_notfinite"])
def test_counters_stay_at_their_largest(field):
    """google-deepmind/optax pull request 1791: a step number out of range made a decay rate NaN, for ever."""
    g = jnp.ones((4, 3)) if field == "count" else jnp.full((4, 3), jnp.nan)
    tx = scale_by_ember()
    state = tx.init(g)._replace(**{field: jnp.int32(LARGEST)})
    state = state._replace(nu_token=jnp.ones(4), nu_feature=jnp.ones(3))
    for _ in range(2):
        updates, state = tx.update(g, state)
    assert getattr(state, field) == LARGEST
    np.testing.assert_allclose(updates, 1.0 if field == "count" else 0.0, rtol=1e-6)
