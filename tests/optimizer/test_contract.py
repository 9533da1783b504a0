"""What Optax expects of a transformation, asked of every public one."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from public_names import public_names
from steps import jitted
from three_matrices import TABLES, assert_trees_close, assert_trees_equal, initial_params
from x64 import enable_x64

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember

RATE, COUNTS = 0.05, np.arange(12)
EVERY_LEAF = {**TABLES, "dense": EmberDimensionNumbers(0)}
EMBER = {"learning_rate": RATE, "body": optax.adamw(RATE)}
# A line for each public transformation, and for each variant with another kind of state: name (and variant), arguments.
TRANSFORMATIONS = {
    "scale_by_ember": {"dimension_numbers": EVERY_LEAF},
    "ember": EMBER,
    "ember: with decay, over muon": EMBER | {"body": optax.contrib.muon(RATE), "weight_decay": 0.01, "tables": TABLES},
    "stochastic_rounding": {"seed": 7},
    "regularizers.cap_row_steps": {"max_rms": 0.5},
    "regularizers.cap_row_steps: by a schedule": {"max_rms": optax.constant_schedule(0.5)},
    "regularizers.center_rows": {"tables": TABLES},
    "regularizers.center_rows: of the table": {"what": "table"},
    "regularizers.normalize_spectral_norm": {"max_norm": 3.0},
    "regularizers.scale_by_frequency": {"power": 0.5, "token_counts": COUNTS},
    "regularizers.scale_by_frequency: of streamed counts": {"power": 0.5, "decay": 0.5},
    "row_sparse.clip_by_global_norm": {"max_norm": 1.0},
    "row_sparse.train_only_rows": {"inner": ember(RATE, optax.sgd(RATE)), "token_ids": {"embed/embedding": np.array([1, 3])}},
}
PUBLIC = {name.removeprefix("ember_optax."): value for name, value in public_names()}
# What a step is given besides the gradients: the counts of the batch, for the one that streams them.
EXTRA = {"token_counts": jnp.asarray(COUNTS)}


def factory(name):
    return PUBLIC[name.partition(":")[0]]


@functools.cache
def made(name):
    """One object for all tests, so that `jitted` finds what it has compiled."""
    return optax.with_extra_args_support(factory(name)(**TRANSFORMATIONS[name]))


@pytest.fixture(params=TRANSFORMATIONS)
def name(request):
    return request.param


@pytest.fixture
def tx(name):
    return made(name)


def first_step(tx):
    """`(grads, **extra_args)` to the first updates and the state after them; the gradients are the parameters too."""
    return lambda grads, **extra_args: tx.update(grads, tx.init(grads), grads, **EXTRA, **extra_args)


def update(tx):
    return functools.partial(tx.update, **EXTRA)


def of_tables(updates):
    return {name: updates[name] for name in ("embed", "lm_head")}


def types(tree):
    return jax.tree.map(jax.typeof, tree)


def is_masked(leaf):
    return isinstance(leaf, optax.MaskedNode)


def test_every_public_transformation_has_a_line():
    """By what it says that it returns."""
    returns = {name: inspect.signature(value).return_annotation for name, value in PUBLIC.items() if inspect.isfunction(value)}
    found = {
        name for name, type_ in returns.items() if inspect.isclass(type_) and issubclass(type_, optax.GradientTransformation)
    }
    assert found == {name.partition(":")[0] for name in TRANSFORMATIONS}


def test_init_and_update_are_pure(tx):
    """Compiled and not, again and again: the same, and the arguments are left as they were."""
    params = initial_params()
    state = tx.init(params)
    assert_trees_equal(jax.jit(tx.init)(params), state)
    updates, after = tx.update(params, state, params, **EXTRA)
    assert_trees_equal((params, state), (initial_params(), tx.init(params)))
    compiled, compiled_after = jitted(first_step, tx)(params)
    assert_trees_close((of_tables(updates), after), (of_tables(compiled), compiled_after), rtol=1e-5)
    assert_trees_close(updates, compiled, rtol=1e-3)  # Muon's iteration enlarges the rounding of one program against the other


def test_accepts_extra_arguments(tx):
    updates, _ = jitted(first_step, tx)(initial_params())
    with_extra, _ = jitted(first_step, tx)(initial_params(), value=jnp.float32(1.0), token_count=3)
    assert_trees_equal(updates, with_extra)


def test_state_keeps_structure_shapes_and_dtypes(tx):
    params = initial_params()
    updates, after = jitted(first_step, tx)(params)
    assert types(updates) == types(params)
    assert types(tx.init(params)) == types(after)


def test_may_skip_steps_under_cond(tx):
    params = initial_params()
    opt_state = tx.init(params)

    @jax.jit
    def step(take, opt_state):
        return jax.lax.cond(take, lambda: tx.update(params, opt_state, params, **EXTRA), lambda: (params, opt_state))

    assert_trees_equal(step(False, opt_state)[1], opt_state)
    (updates, after), (expected, expected_after) = step(True, opt_state), jitted(first_step, tx)(params)
    assert_trees_close((of_tables(updates), after), (of_tables(expected), expected_after), rtol=1e-5)
    assert_trees_close(updates, expected, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_keeps_the_gradient_dtype(name, tx, dtype):
    """Ember's statistics stay in float32. Stochastic rounding gives the updates that its sums need, in float32."""
    updates, opt_state = jitted(first_step, tx)(initial_params(dtype))
    kept = jnp.float32 if name == "stochastic_rounding" else dtype
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(kept)}
    for field in ("nu_token", "nu_feature"):
        assert {v.dtype for v in jax.tree.leaves(optax.tree.get(opt_state, field))} <= {jnp.dtype("float32")}


def test_maps_params_of_the_state(tx):
    params = initial_params()
    for opt_state in (tx.init(params), jitted(first_step, tx)(params)[1]):
        doubled = optax.tree.map_params(tx, lambda v: v if is_masked(v) else v + v, opt_state, is_leaf=is_masked)
        assert jax.tree.structure(doubled) == jax.tree.structure(opt_state)
        for field in ("nu_token", "token_counts"):
            found, expected = optax.tree.get(doubled, field), optax.tree.get(opt_state, field)
            assert_trees_equal(found, jax.tree.map(lambda v: v + v, expected))


def test_initialises_from_shapes(tx):
    params = initial_params()
    expected = tx.init(params)
    shapes = jax.eval_shape(lambda: params)
    assert types(tx.init(shapes)) == types(expected)
    assert types(jax.eval_shape(tx.init, shapes)) == types(expected)


def test_vmaps_over_init_and_update(tx):
    """An ensemble of models in one array."""
    ensemble = [jax.tree.map(lambda p, i=i: p + i, initial_params()) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ensemble)
    updates, _ = jax.jit(lambda grads: jax.vmap(update(tx))(grads, jax.vmap(tx.init)(grads), grads))(stacked)
    for i, params in enumerate(ensemble):
        mapped, (alone, _) = jax.tree.map(lambda u, i=i: u[i], updates), jitted(first_step, tx)(params)
        assert_trees_close(of_tables(mapped), of_tables(alone), rtol=1e-4)
        assert_trees_close(mapped, alone, rtol=1e-3)


def test_donates_its_state(tx):
    params = initial_params()
    opt_state = jax.jit(tx.init)(params)
    _, after = jax.jit(update(tx), donate_argnums=1)(params, opt_state, params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(opt_state))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_averages_micro_batches_under_multi_steps(tx):
    """MultiSteps(k) on k gradients is one step on their mean: averaged before squared."""
    params = initial_params()
    grads = [jax.tree.map(lambda p, i=i: p * (i - 0.7), params) for i in range(3)]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
    expected, _ = jitted(update, tx)(mean, tx.init(params), params)
    accumulating = optax.MultiSteps(tx, 3)
    opt_state, accumulate = accumulating.init(params), jax.jit(update(accumulating))
    for g in grads:
        updates, opt_state = accumulate(g, opt_state, params)
    assert_trees_close(updates, expected, rtol=1e-4)


def test_skips_under_apply_if_finite(tx):
    params, skipping = initial_params(), optax.apply_if_finite(tx, max_consecutive_errors=5)
    opt_state, step = skipping.init(params), jax.jit(update(skipping))
    bad = jax.tree.map(lambda p: p * jnp.nan, params)
    updates, after = step(bad, opt_state, params)
    assert all((u == 0).all() for u in jax.tree.leaves(updates))
    assert_trees_equal(after.inner_state, opt_state.inner_state)
    updates, _ = step(params, after, params)
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_takes_injected_hyperparameters_in_a_chain(name, tx):
    """Every number is injected, but for `decay`, which is compiled in; the step is the same."""
    params, given = initial_params(), inspect.signature(factory(name)).bind(**TRANSFORMATIONS[name])
    given.apply_defaults()
    static = [name for name, value in given.arguments.items() if not isinstance(value, float) or name == "decay"]
    injected = optax.chain(optax.inject_hyperparams(factory(name), static)(**TRANSFORMATIONS[name]), optax.scale(2.0))
    updates, state = jitted(first_step, injected)(params)
    assert set(state[0].hyperparams) == set(given.arguments) - set(static)
    expected, _ = jitted(first_step, tx)(params)
    assert_trees_close(of_tables(updates), jax.tree.map(lambda u: 2 * u, of_tables(expected)), rtol=1e-4)


def test_works_in_x64(tx):
    """float64 parameters keep float64 updates over float32 statistics, and a step is as accurate as before."""
    params = initial_params()
    expected, _ = jitted(first_step, tx)(params)
    with enable_x64(True):
        wide = jax.tree.map(lambda p: jnp.asarray(np.asarray(p, np.float64)), params)
        updates, opt_state = jax.jit(first_step(tx))(wide)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float64")}
        assert {v.dtype for v in jax.tree.leaves(optax.tree.get(opt_state, "nu_token"))} <= {jnp.dtype("float32")}
        assert_trees_close(of_tables(updates), of_tables(expected), rtol=1e-4)


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


LOSSES = {"language model": (language_model_loss, 0.05), "distance": (distance_loss, 0.01), "factors": (factorisation_loss, 0.05)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [name for name in TRANSFORMATIONS if name.startswith("ember")])
def test_converges(name, loss):
    """Inside `lax.scan`, with a schedule."""
    loss_fn, fraction = LOSSES[loss]
    schedule, params = optax.cosine_decay_schedule(RATE, 600), initial_params()
    tx = factory(name)(**TRANSFORMATIONS[name] | {"learning_rate": schedule})

    def step(carry, _):
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    _, losses = jax.lax.scan(step, (params, tx.init(params)), None, length=600)
    assert losses[-1] < fraction * losses[0]


def test_low_precision_gradients_are_squared_in_float32():
    """1e-6 squared is zero in float16, and 300 squared is inf."""
    tx = scale_by_ember(eps=0.0)
    for value, dtype in ((1e-6, jnp.float16), (300.0, jnp.float16), (1e-10, jnp.bfloat16)):
        g = jnp.full((4, 3), value, dtype)
        updates, _ = tx.update(g, tx.init(g))
        np.testing.assert_allclose(updates.astype(jnp.float32), 1.0, rtol=1e-2)


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
