"""Compact and fused gradients go through the train steps that people have: one line changes, and the steps are the dense ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from next_token import needs_nnx_optimizer
from products import in_turn

from ember_optax import ember, row_sparse
from ember_optax.integrations.nnx import Embed
from ember_optax.losses import linear_softmax_cross_entropy

V, D, T, STEPS = 96, 8, 6, 20
RATES = {
    "numbers": {"learning_rate": 1e-2, "head_learning_rate": 4e-2},
    "schedules": {
        "learning_rate": optax.linear_schedule(1e-2, 1e-3, STEPS),
        "head_learning_rate": optax.linear_schedule(1e-3, 4e-2, STEPS),
    },
    "one rate": {"learning_rate": 1e-2},
}
HEADS = {"dense": None, "row-sparse": (), "fused": "lm_head/kernel"}


def transformation(rates):
    return ember(**RATES[rates], body=optax.adamw(1e-3))


def params():
    rng = np.random.default_rng(0)
    return {
        "embed": {"embedding": jnp.asarray(rng.normal(size=(V, D)), jnp.float32)},
        "body": jnp.asarray(rng.normal(size=(D, D)) / 3, jnp.float32),
        "lm_head": {"kernel": jnp.asarray(rng.normal(size=(D, V)) / 3, jnp.float32)},
    }


def batch(number):
    return jnp.asarray(np.random.default_rng(number).integers(0, V, (4, T + 1)), jnp.int32)


def loss_of(hidden, kernel, ids):
    return linear_softmax_cross_entropy(hidden, kernel, ids[:, 1:], token_axis=1, chunk=32).mean()


def plain_loss(params, ids):
    return loss_of(jnp.tanh(params["embed"]["embedding"][ids[:, :-1]]) @ params["body"], params["lm_head"]["kernel"], ids)


def value_and_grad(loss_fn, form, params, ids):
    """The one line that changes."""
    if form == "dense":
        return jax.value_and_grad(loss_fn)(params, ids)
    return row_sparse.value_and_grad(loss_fn, heads=HEADS[form])(params, {"embed/embedding": ids[:, :-1]}, ids)


def train_plainly(tx, form):
    @jax.jit
    def step(params, opt_state, ids):
        loss, grads = value_and_grad(plain_loss, form, params, ids)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    now = params()
    opt_state = jax.jit(tx.init)(now)
    for number in range(STEPS):
        now, opt_state, _ = step(now, opt_state, batch(number))
    assert step._cache_size() == 1
    return now, opt_state


def train_a_train_state(tx, form):
    @jax.jit
    def step(state, ids):
        loss, grads = value_and_grad(plain_loss, form, state.params, ids)
        return state.apply_gradients(grads=grads), loss

    state = jax.jit(lambda: TrainState.create(apply_fn=None, params=params(), tx=tx))()
    for number in range(STEPS):
        state, _ = step(state, batch(number))
    return state.params, state.opt_state


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = Embed(V, D, rngs=rngs)
        self.body = nnx.Linear(D, D, use_bias=False, rngs=rngs)
        self.lm_head = nnx.Linear(D, V, use_bias=False, rngs=rngs)


def train_an_nnx_optimizer(tx, form):
    model, start = Model(nnx.Rngs(0)), params()
    model.embed.embedding[...] = start["embed"]["embedding"]
    model.body.kernel[...] = start["body"]
    model.lm_head.kernel[...] = start["lm_head"]["kernel"]
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, ids):
        graph, weights = nnx.split(model)

        def loss_fn(weights, ids):
            model = nnx.merge(graph, weights)
            return loss_of(model.body(jnp.tanh(model.embed(ids[:, :-1]))), model.lm_head.kernel[...], ids)

        loss, grads = value_and_grad(loss_fn, form, weights, ids)
        optimizer.update(model, grads)
        return loss

    for number in range(STEPS):
        step(model, optimizer, batch(number))
    weights = nnx.to_pure_dict(nnx.state(model))
    return weights | {"body": weights["body"]["kernel"]}, nnx.to_pure_dict(nnx.state(optimizer.opt_state))


TRAINERS = {
    "apply_updates": train_plainly,
    "TrainState": train_a_train_state,
    "nnx.Optimizer": pytest.param(train_an_nnx_optimizer, marks=needs_nnx_optimizer),
}


@functools.cache
def trained_densely(rates):
    return train_plainly(transformation(rates), "dense")


def assert_is_the_dense_step(train, form, rates):
    (found, state), (expected, expected_state) = train(transformation(rates), form), trained_densely(rates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    if train is not train_an_nnx_optimizer:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, expected_state)


@pytest.mark.parametrize("form", ["row-sparse", "fused"])
@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_one_changed_line_is_the_dense_step(train, form):
    assert_is_the_dense_step(train, form, "schedules")


@pytest.mark.parametrize("form, rates", in_turn(["row-sparse", "fused"], ["numbers", "one rate"]))
def test_so_it_is_with_other_rates(form, rates):
    assert_is_the_dense_step(train_plainly, form, rates)


def test_two_rates_are_two():
    """The first step of a row is its learning rate, so the tables tell which one they had."""
    tx = transformation("numbers")
    grads = jax.tree.map(jnp.ones_like, params())
    updates, _ = tx.update(grads, tx.init(params()), params())
    np.testing.assert_allclose(updates["embed"]["embedding"], -1e-2, rtol=1e-5)
    np.testing.assert_allclose(updates["lm_head"]["kernel"], -4e-2, rtol=1e-5)


def test_a_tied_table_has_the_learning_rate():
    tied = {name: leaf for name, leaf in params().items() if name != "lm_head"}
    with pytest.raises(ValueError, match=r"head_learning_rate is given, but no table is a head .*'embed/embedding'"):
        transformation("numbers").init(tied)


def test_injected_rates_can_be_changed():
    given = {"learning_rate": 1e-2, "head_learning_rate": 4e-2, "body": optax.adamw(1e-3)}
    tx = optax.inject_hyperparams(ember, hyperparam_dtype=jnp.float32)(**given)
    state, grads = tx.init(params()), jax.tree.map(jnp.ones_like, params())
    state.hyperparams["head_learning_rate"] = jnp.float32(5e-3)
    updates, _ = jax.jit(tx.update)(grads, state, params())
    np.testing.assert_allclose(updates["lm_head"]["kernel"], -5e-3, rtol=1e-5)
    np.testing.assert_allclose(updates["embed"]["embedding"], -1e-2, rtol=1e-5)


def test_a_third_rate_by_the_recipe():
    """docs/recipes.md: the updates of one more table are scaled."""
    with pytest.raises(TypeError, match=r"learning_rate must be one number or schedule, .* optax.masked\(optax.scale\(0.3\)"):
        ember({"embed": 1e-2}, optax.adamw(1e-3))  # pyright: ignore
    mask = {"embed": True, "body": False, "lm_head": False}
    tx = optax.chain(ember(1e-2, optax.adamw(1e-3)), optax.masked(optax.scale(0.3), mask))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params()), tx.init(params()), params())
    np.testing.assert_allclose(updates["embed"]["embedding"], -3e-3, rtol=1e-5)
    np.testing.assert_allclose(updates["lm_head"]["kernel"], -1e-2, rtol=1e-5)


@pytest.mark.parametrize("old, new", [("numbers", "one rate"), ("one rate", "numbers"), ("schedules", "one rate")])
def test_a_state_of_other_rates_is_refused_by_name(old, new):
    grads = jax.tree.map(jnp.ones_like, params())
    with pytest.raises(ValueError, match=r"the state was made with(out)? head_learning_rate, but this ember has .*tx.init"):
        transformation(new).update(grads, transformation(old).init(params()), params())


@pytest.mark.parametrize("tied", [False, True])
def test_weight_decay_is_that_of_the_parameters_where_updates_go_elsewhere(tied):
    """Schedule-free training adds updates to another copy. The decay is a part of the update, as in the dense step."""
    tx = optax.contrib.schedule_free(ember(1e-2, optax.sgd(1e-2), weight_decay=0.5), 1e-2)
    path = "embed/embedding" if tied else "lm_head/kernel"
    start = {name: leaf for name, leaf in params().items() if not (tied and name == "lm_head")}

    def loss_fn(params, ids):
        if not tied:
            return plain_loss(params, ids)
        hidden = jnp.tanh(params["embed"]["embedding"][ids[:, :-1]]) @ params["body"]
        table = params["embed"]["embedding"]
        return linear_softmax_cross_entropy(hidden, table, ids[:, 1:], chunk=32, num_tokens=V - 5).mean()

    def trained(gradient):
        @jax.jit
        def step(now, state, ids):
            updates, state = tx.update(gradient(now, ids), state, now)
            return optax.apply_updates(now, updates), state

        now, state = start, tx.init(start)
        for number in range(6):
            now, state = step(now, state, jnp.minimum(batch(number), V - 6))
        return now

    def fused(now, ids):
        looked_up = {path: ids[:, :-1]} if tied else {}
        return row_sparse.value_and_grad(loss_fn, heads=path)(now, looked_up, ids)[1]

    expected, found = trained(jax.grad(loss_fn)), trained(fused)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)
