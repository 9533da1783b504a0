"""Bugs that Optax, Flax and their users met with other optimizers, each with the issue that told of it: not here."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from equinox.internal import closure_to_pytree
from flax import nnx, serialization
from flax.core import freeze
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from products import in_turn
from three_matrices import assert_trees_close, assert_trees_equal, initial_params

from ember_optax import ember, scale_by_ember, skipped_batches

LARGEST = np.iinfo(np.int32).max


@pytest.mark.parametrize("rate", [1e-2, np.float32(1e-2), np.asarray(1e-2, jnp.bfloat16), jnp.bfloat16(1e-2)], ids=type)
def test_updates_have_the_dtype_of_gradients_whatever_kind_of_number_the_rate_is(rate):
    """google-deepmind/optax issue 1405: a NumPy scalar of bfloat16 made updates float32."""
    params = initial_params(jnp.bfloat16)
    tx = ember(rate, optax.adamw(rate))
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert {updates[name][leaf].dtype for name, leaf in (("embed", "embedding"), ("lm_head", "kernel"))} == {
        jnp.dtype("bfloat16")
    }


def test_micro_batches_in_another_dtype_than_the_parameters():
    """google-deepmind/optax pull request 1039: `MultiSteps` failed where gradients are wider than parameters."""
    params = initial_params(jnp.bfloat16)
    grads = initial_params(jnp.float32)
    tx = optax.MultiSteps(ember(1e-2, optax.adamw(1e-2)), 2)
    state, types = tx.init(params), []
    for _ in range(4):
        updates, state = jax.jit(tx.update)(grads, state, params)
        types.append(jax.tree.map(jnp.result_type, updates))
    assert types[0] == types[1] == types[2] == types[3]
    assert jax.tree.map(jnp.result_type, optax.apply_updates(params, updates)) == jax.tree.map(jnp.result_type, params)


@pytest.mark.parametrize(
    "make, dtype", in_turn([scale_by_ember, lambda: ember(1e-2, optax.adamw(1e-2))], ["bfloat16", "float16"])
)
def test_micro_batches_of_half_precision(make, dtype):
    """google-deepmind/optax issue 377: `MultiSteps` failed around what made updates of half precision float32."""
    grads = initial_params(dtype)
    tx = optax.MultiSteps(make(), 2)
    state = tx.init(grads)
    for changes in (False, True, False, True):
        updates, state = jax.jit(tx.update)(grads, state, grads)
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, grads)
        assert bool(jnp.any(updates["embed"]["embedding"] != 0)) == changes


def test_every_hyperparameter_is_injected():
    """google-deepmind/optax issue 412: optimizers that ask whether a hyperparameter is None failed in `inject_hyperparams`."""
    params = initial_params()
    given = {"learning_rate": 1e-2, "head_learning_rate": 2e-2, "b2": 0.9, "eps": 1e-6, "weight_decay": 0.1}
    body = optax.adamw(1e-2)
    plain, injected = ember(body=body, **given), optax.inject_hyperparams(ember)(body=body, **given)
    state = injected.init(params)
    assert set(given) <= set(state.hyperparams)
    updates, _ = jax.jit(injected.update)(params, state, params)
    assert_trees_close(updates, plain.update(params, plain.init(params), params)[0], rtol=1e-6)


def test_an_optimizer_made_of_traced_numbers():
    """google-deepmind/optax issue 577: an optimizer is a closure, no pytree, so the numbers that it holds are easily lost."""
    params, rates = initial_params(), jnp.array([1e-3, 1e-2, 1e-1])

    def updated(tx):
        return tx.update(params, tx.init(params), params)[0]

    many = jax.jit(jax.vmap(lambda rate: updated(ember(rate, optax.adamw(rate)))))(rates)
    taken_apart = eqx.filter_jit(lambda optimizer: updated(optax.GradientTransformationExtraArgs(*optimizer)))
    for i, rate in enumerate(rates):
        expected = updated(ember(rate, optax.adamw(rate)))
        assert_trees_close(jax.tree.map(lambda u, i=i: u[i], many), expected, rtol=1e-6)
        assert_trees_close(taken_apart(closure_to_pytree(ember(rate, optax.adamw(rate)))), expected, rtol=1e-6)


def test_micro_batches_without_their_nans():
    """google-deepmind/optax issue 828: `MultiSteps` failed around a chain that begins with `zero_nans`."""
    params = initial_params()
    tx = optax.MultiSteps(optax.chain(optax.zero_nans(), ember(1e-2, optax.adamw(1e-2))), 2)
    state, grads = tx.init(params), jax.tree.map(lambda p: p.at[0].set(jnp.nan), params)
    for batch in (grads, params):
        updates, state = jax.jit(tx.update)(batch, state, params)
    assert skipped_batches(state.inner_opt_state) == {"embed/embedding": 0, "lm_head/kernel": 0}
    expected = jax.tree.map(lambda p: p.at[0].set(0), params)
    assert_trees_close(
        updates,
        ember(1e-2, optax.adamw(1e-2)).update(expected, ember(1e-2, optax.adamw(1e-2)).init(params), params)[0],
        rtol=1e-5,
    )


def test_frozen_dictionaries():
    """google-deepmind/optax issue 160: masks and partitions failed on Flax's FrozenDict."""
    params = initial_params()
    tx = ember(1e-2, optax.adamw(1e-2))
    expected, _ = tx.update(params, tx.init(params), params)
    found, _ = tx.update(freeze(params), tx.init(freeze(params)), freeze(params))
    assert_trees_equal(found.unfreeze(), expected)


def test_a_mask_around_what_masks_itself():
    """google-deepmind/optax issue 271: a masked transformation under another mask failed."""
    params = initial_params()
    mask = {"embed": True, "lm_head": True, "dense": False}
    tx = optax.masked(optax.chain(optax.masked(optax.clip(1.0), mask), ember(1e-2, optax.adamw(1e-2))), mask)
    updates, state = tx.update(params, tx.init(params), params)
    assert skipped_batches(state) == {"embed/embedding": 0, "lm_head/kernel": 0}
    np.testing.assert_array_equal(updates["dense"]["kernel"], params["dense"]["kernel"])
    assert not np.array_equal(updates["embed"]["embedding"], params["embed"]["embedding"])


def test_a_deserialised_state_is_the_same_type_under_cond():
    """google/flax issues 1429 and 1550: a restored state had other named tuples, and `lax.cond` refused it."""
    params, tx = initial_params(), ember(1e-2, optax.adamw(1e-2))
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
    optimizer = nnx.Optimizer(model, ember(1e-2, optax.adamw(1e-2)), wrt=nnx.Param)

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
