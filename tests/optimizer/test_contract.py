"""What Optax expects of a transformation, run on every public one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import jitted
from three_matrices import TABLES, assert_trees_close, assert_trees_equal, initial_params
from x64 import enable_x64

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember

pytestmark = pytest.mark.usefixtures("quick_compilation")


def tables_only(learning_rate=0.05, b2=0.999):
    """scale_by_ember on every leaf, the dense kernel too."""
    numbers = {**TABLES, "dense": EmberDimensionNumbers(0)}
    return optax.chain(scale_by_ember(b2, dimension_numbers=numbers), optax.scale_by_learning_rate(learning_rate))


TRANSFORMATIONS = {
    "scale_by_ember": tables_only,
    "ember": lambda learning_rate=0.05: ember(learning_rate, optax.adamw(learning_rate)),
    "ember with decay": lambda learning_rate=0.05: ember(learning_rate, optax.adamw(learning_rate), weight_decay=0.01),
    "ember with a tree of tables": lambda learning_rate=0.05: ember(learning_rate, optax.adamw(learning_rate), tables=TABLES),
    "ember over sgd": lambda learning_rate=0.05: ember(learning_rate, optax.sgd(learning_rate, momentum=0.9)),
    "ember over muon": lambda learning_rate=0.05: ember(learning_rate, optax.contrib.muon(learning_rate)),
}


@functools.cache
def made(name):
    """One object for all tests, so that `jitted` finds what it has compiled."""
    return TRANSFORMATIONS[name]()


@pytest.fixture(params=TRANSFORMATIONS)
def tx(request):
    return made(request.param)


def first_step(tx):
    """`(grads, **extra_args)` to the first updates and the state after them; the gradients are the parameters too."""
    return lambda grads, **extra_args: tx.update(grads, tx.init(grads), grads, **extra_args)


def update(tx):
    return tx.update


def of_tables(updates):
    return {name: updates[name] for name in ("embed", "lm_head")}


def language_model_loss(params):
    """Predicts the next of twelve tokens in a ring."""
    hidden = jnp.tanh(params["embed"]["embedding"] @ params["dense"]["kernel"])
    logits = hidden @ params["lm_head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, (jnp.arange(12) + 1) % 12).mean()


def distance_loss(params):
    """Every parameter has a target of its own."""
    targets = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    return sum(jnp.sum(jnp.square(p - t)) for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(targets), strict=True))


def factorisation_loss(params):
    """Embedding times head, as low-rank factors of a fixed matrix."""
    product = params["embed"]["embedding"] @ params["dense"]["kernel"] @ params["lm_head"]["kernel"]
    return jnp.mean(jnp.square(product - jnp.outer(jnp.arange(12.0), jnp.arange(12.0)) / 50))


def trained(tx, loss_fn, steps, params=None):
    params = initial_params() if params is None else params

    def step(carry, _):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), None, length=steps)
    return params, losses


LOSSES = {"language model": (language_model_loss, 0.05), "distance": (distance_loss, 0.01), "factors": (factorisation_loss, 0.05)}


@pytest.mark.parametrize(
    "name, loss",
    [
        pytest.param(name, loss, marks=() if loss == "language model" or name == "ember" else pytest.mark.slow)
        for name in TRANSFORMATIONS
        for loss in LOSSES
    ],
)
def test_converges(name, loss):
    """Inside `lax.scan`, with a schedule."""
    loss_fn, fraction = LOSSES[loss]
    _, losses = trained(TRANSFORMATIONS[name](optax.cosine_decay_schedule(0.05, 600)), loss_fn, 600)
    assert losses[-1] < fraction * losses[0]


def test_accepts_extra_arguments(tx):
    updates, _ = jitted(first_step, tx)(initial_params())
    with_extra, _ = jitted(first_step, tx)(initial_params(), value=jnp.float32(1.0), token_count=3)
    assert_trees_equal(updates, with_extra)


def test_state_keeps_structure_shapes_and_dtypes(tx):
    params = initial_params()
    _, after = jitted(first_step, tx)(params)
    assert jax.tree.map(jax.typeof, tx.init(params)) == jax.tree.map(jax.typeof, after)


def test_may_skip_steps_under_cond(tx):
    params = initial_params()
    opt_state = tx.init(params)

    @jax.jit
    def step(take, opt_state):
        return jax.lax.cond(take, lambda: tx.update(params, opt_state, params), lambda: (params, opt_state))

    assert_trees_equal(step(False, opt_state)[1], opt_state)
    (updates, after), (expected, expected_after) = step(True, opt_state), jitted(first_step, tx)(params)
    assert_trees_close((of_tables(updates), after), (of_tables(expected), expected_after), rtol=1e-6)
    assert_trees_close(updates, expected, rtol=1e-3)  # Muon's iteration enlarges the rounding of one program against the other


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_keeps_the_gradient_dtype(tx, dtype):
    updates, opt_state = jitted(first_step, tx)(initial_params(dtype))
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    for name in ("nu_token", "nu_feature"):
        assert {v.dtype for v in jax.tree.leaves(optax.tree.get(opt_state, name))} == {jnp.dtype("float32")}


def test_low_precision_gradients_are_squared_in_float32():
    """1e-6 squared is zero in float16, and 300 squared is inf."""
    tx = scale_by_ember(eps=0.0)
    for value, dtype in ((1e-6, jnp.float16), (300.0, jnp.float16), (1e-10, jnp.bfloat16)):
        g = jnp.full((4, 3), value, dtype)
        updates, _ = tx.update(g, tx.init(g))
        np.testing.assert_allclose(updates.astype(jnp.float32), 1.0, rtol=1e-2)


def test_maps_params_of_the_state(tx):
    params = initial_params()
    opt_state = tx.init(params)
    masked = {"is_leaf": lambda v: isinstance(v, optax.MaskedNode)}
    doubled = optax.tree.map_params(tx, lambda v: v if isinstance(v, optax.MaskedNode) else v + v, opt_state, **masked)
    assert jax.tree.structure(doubled) == jax.tree.structure(opt_state)
    _, opt_state = jitted(first_step, tx)(params)
    doubled = optax.tree.map_params(tx, lambda v: v if isinstance(v, optax.MaskedNode) else v + v, opt_state, **masked)
    name = "nu_token"
    assert_trees_equal(optax.tree.get(doubled, name), jax.tree.map(lambda v: v + v, optax.tree.get(opt_state, name)))


def test_initialises_from_shapes(tx):
    params = initial_params()
    expected = tx.init(params)
    shapes = jax.eval_shape(lambda: params)
    assert jax.tree.map(jax.typeof, tx.init(shapes)) == jax.tree.map(jax.typeof, expected)
    abstract = jax.eval_shape(tx.init, shapes)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(abstract)] == [(x.shape, x.dtype) for x in jax.tree.leaves(expected)]


def test_vmaps_over_init_and_update(tx):
    """An ensemble of models in one array."""
    ensemble = [jax.tree.map(lambda p, i=i: p + i, initial_params()) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ensemble)
    updates, _ = jax.jit(lambda grads: jax.vmap(tx.update)(grads, jax.vmap(tx.init)(grads), grads))(stacked)
    for i, params in enumerate(ensemble):
        mapped, (alone, _) = jax.tree.map(lambda u, i=i: u[i], updates), jitted(first_step, tx)(params)
        assert_trees_close(of_tables(mapped), of_tables(alone), rtol=1e-5)
        assert_trees_close(mapped, alone, rtol=1e-3)


def test_donates_its_state(tx):
    params = initial_params()
    opt_state = jax.jit(tx.init)(params)
    _, after = jax.jit(tx.update, donate_argnums=1)(params, opt_state, params)
    before = optax.tree.get(opt_state, "nu_token")
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_averages_micro_batches_under_multi_steps(tx):
    """MultiSteps(k) on k gradients is one step on their mean: averaged before squared."""
    params = initial_params()
    grads = [jax.tree.map(lambda p, i=i: p * (i - 0.7), params) for i in range(3)]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
    expected, _ = jitted(update, tx)(mean, tx.init(params), params)
    accumulating = optax.MultiSteps(tx, 3)
    opt_state, accumulate = accumulating.init(params), jax.jit(accumulating.update)
    for g in grads:
        updates, opt_state = accumulate(g, opt_state, params)
    assert_trees_close(updates, expected, rtol=1e-4)


def test_skips_under_apply_if_finite(tx):
    params, skipping = initial_params(), optax.apply_if_finite(tx, max_consecutive_errors=5)
    opt_state, step = skipping.init(params), jax.jit(skipping.update)
    bad = jax.tree.map(lambda p: p * jnp.nan, params)
    updates, after = step(bad, opt_state, params)
    assert all((u == 0).all() for u in jax.tree.leaves(updates))
    assert_trees_equal(after.inner_state, opt_state.inner_state)
    updates, _ = step(params, after, params)
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_works_in_x64(tx):
    """float64 parameters keep float64 updates over float32 state, and a step is as accurate as before."""
    params = initial_params()
    expected, _ = jitted(first_step, tx)(params)
    with enable_x64(True):
        wide = jax.tree.map(lambda p: jnp.asarray(np.asarray(p, np.float64)), params)
        updates, opt_state = jax.jit(first_step(tx))(wide)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float64")}
        assert optax.tree.get(opt_state, "ScaleByEmberState").count["embed"]["embedding"].dtype == jnp.int32
        assert {v.dtype for v in jax.tree.leaves(optax.tree.get(opt_state, "nu_token"))} == {jnp.dtype("float32")}
        assert_trees_close(of_tables(updates), of_tables(expected), rtol=1e-5)


def test_divides_float64_gradients_in_float64():
    with enable_x64(True):
        g = jnp.ones((4, 3), jnp.float64).at[0, 0].add(1e-12)
        updates, _ = scale_by_ember().update(g, scale_by_ember().init(g))
        np.testing.assert_allclose(updates[0, 0] / updates[0, 1] - 1, 1e-12, rtol=1e-3)


def test_schedules_the_learning_rate():
    params = initial_params()
    tx = ember(lambda step: jnp.where(step == 1, 0.0, 0.1), optax.adamw(lambda step: jnp.where(step == 1, 0.0, 0.1)))
    opt_state, moved = tx.init(params), []
    for _ in range(3):
        updates, opt_state = tx.update(params, opt_state, params)
        moved.append(bool(jnp.any(updates["embed"]["embedding"] != 0)))
    assert moved == [True, False, True]
