"""Gradients: activity, agreement in time, what token x feature explains, and how far rows step under Ember and Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import EmberDimensionNumbers, ScaleByEmberState, ember, geometry, scale_by_ember

V, D = 12, 6
RNG = np.random.default_rng(0)
GRADS = RNG.normal(size=(9, V, D)).astype(np.float32) * 0.01
GRADS[:, ::3] = 0


@pytest.mark.parametrize("token_axis", [0, 1])
def test_active_rows(token_axis):
    g = GRADS[0].copy()
    g[0, 1], g[3, 2] = 1e-30, np.nan  # a square that vanishes, and what the guard looks for
    expected = np.any(GRADS[0] != 0, 1)
    expected[3] = True
    np.testing.assert_array_equal(geometry.active_rows(g.T if token_axis else g, token_axis=token_axis), expected)


def test_autocorrelation_is_its_definition():
    init, update, value = geometry.gradient_autocorrelation()
    state, _ = jax.lax.scan(lambda state, g: (update(state, g), None), init(GRADS[0]), GRADS)
    found, g = value(state), GRADS.astype(np.float64)
    assert found.num_pairs == len(GRADS) - 1
    product, now, before = (np.sum(a * b, (0, 2)) for a, b in ((g[1:], g[:-1]), (g[1:], g[1:]), (g[:-1], g[:-1])))
    np.testing.assert_allclose(found.table, product.sum() / np.sqrt(now.sum() * before.sum()), rtol=1e-5)
    active = now > 0
    np.testing.assert_allclose(found.rows[active], (product / np.sqrt(np.where(active, now * before, 1)))[active], rtol=1e-5)
    assert np.isnan(found.rows[~active]).all()


def test_autocorrelation_of_a_known_process():
    """g_t = 0.6 g_t-1 + noise, and each step by itself in a (D, V) layout."""
    init, update, value = geometry.gradient_autocorrelation(token_axis=1)
    g, state = np.zeros((50, 40), np.float32), init(np.zeros((50, 40), np.float32))
    for _ in range(40):
        g = 0.6 * g + RNG.normal(size=g.shape).astype(np.float32)
        state = jax.jit(update)(state, g)
    assert abs(value(state).table - 0.6) < 0.02
    assert value(state).rows.shape == (40,)


def test_autocorrelation_needs_a_pair():
    init, update, value = geometry.gradient_autocorrelation()
    assert np.isnan(value(init(GRADS[0])).table)
    assert np.isnan(value(update(init(GRADS[0]), GRADS[0])).table)


def oracle_of_factors(v):
    v = v.astype(np.float64)
    product = np.outer(v.mean(1), v.mean(0)) / v.mean()
    sigma = np.linalg.svd(v, compute_uv=False)
    unexplained = np.sum((v - product) ** 2) / np.sum(v**2)
    known = v > 0
    logs, explained = np.log(v[known]), np.log(product[known])
    in_log = 1 - np.sum((logs - explained) ** 2) / np.sum((logs - logs.mean()) ** 2)
    return np.sqrt(unexplained), 1 - unexplained, sigma[0] ** 2 / np.sum(sigma**2), in_log


@pytest.mark.parametrize("token_axis", [0, 1])
def test_factorization_is_its_definition(token_axis):
    v = np.mean(GRADS**2, 0) * np.geomspace(1e-6, 1, V)[:, None].astype(np.float32)
    found = geometry.factorization_error(v.T if token_axis else v, token_axis=token_axis)
    np.testing.assert_allclose(found, oracle_of_factors(v), rtol=1e-5)
    assert found.explained_energy <= found.rank_one_share


def test_a_product_is_explained():
    v = np.outer(RNG.uniform(0.1, 1, V), RNG.uniform(0.1, 1, D)).astype(np.float32) * np.float32(1e-20)
    np.testing.assert_allclose(geometry.factorization_error(v), (0, 1, 1, 1), atol=2e-6)


def test_a_diagonal_is_not():
    found = geometry.factorization_error(np.eye(6, dtype=np.float32))
    np.testing.assert_allclose(found[:3], (np.sqrt(5 / 6), 1 / 6, 1 / 6), rtol=1e-5)
    assert np.isnan(found.explained_log_variance)
    assert all(map(np.isnan, geometry.factorization_error(np.zeros((6, 6), np.float32))))


WTE = "wte/embedding"
PARAMS = {"wte": {"embedding": jnp.ones((V, D))}, "dense": {"kernel": jnp.ones((3, 3))}}


def grads(g):
    return {"wte": {"embedding": jnp.asarray(g)}, "dense": {"kernel": jnp.ones((3, 3))}}


def masked(inner):
    return optax.masked(inner, {"wte": {"embedding": True}, "dense": {"kernel": False}})


# Each makes an update of lr = 1, in which the rows' root mean squares are seen.
OPTIMIZERS = {
    "scale_by_ember": scale_by_ember(),
    "ember": ember(1.0, optax.adamw(1.0)),
    "ember, other numbers": ember(1.0, optax.adamw(1.0), b2=0.9, eps=1e-3, feature_mean="active_rows"),
    "masked": masked(scale_by_ember()),
    "MultiSteps": optax.MultiSteps(ember(1.0, optax.adamw(1.0)), 1),
    "inject_hyperparams": optax.inject_hyperparams(ember, static_args=("body", "tables"))(1.0, optax.adamw(1.0)),
    "partition": optax.partition({"a": scale_by_ember(), "b": optax.sgd(1.0)}, {"wte": "a", "dense": "b"}),
    "adam": optax.adam(1.0),
    "adam, other numbers": optax.adam(1.0, b1=0.5, b2=0.9, eps=1e-3),
}
NUMBERS = {
    "ember, other numbers": {"b2": 0.9, "eps": 1e-3, "feature_mean": "active_rows"},
    "adam, other numbers": {"b1": 0.5, "b2": 0.9, "eps": 1e-3},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_row_step_is_that_of_the_optimizer(name):
    tx = OPTIMIZERS[name]
    state = tx.init(PARAMS)
    for g in GRADS[:2]:
        _, state = tx.update(grads(g), state, PARAMS)
    updates, _ = tx.update(grads(GRADS[2]), state, PARAMS)
    expected = np.sqrt(np.mean(np.square(updates["wte"]["embedding"], dtype=np.float64), 1))
    of_table = geometry.table_states(state)[WTE]
    # b2 of inject_hyperparams is a float32 number.
    tolerance = 1e-5 if name == "inject_hyperparams" else 2e-6
    np.testing.assert_allclose(geometry.row_step(GRADS[2], of_table, **NUMBERS.get(name, {})), expected, rtol=tolerance)
    assert isinstance(of_table, ScaleByEmberState) == ("adam" not in name)


def test_row_step_of_a_head_and_traced_numbers():
    tx, g = scale_by_ember(dimension_numbers=EmberDimensionNumbers(1)), {"head": jnp.asarray(GRADS[0].T)}
    state = geometry.table_states(tx.init(g))["head"]
    step = jax.jit(lambda b2: geometry.row_step(g["head"], state, token_axis=1, b2=b2))
    np.testing.assert_allclose(step(0.99), geometry.row_step(g["head"], state, token_axis=1, b2=0.99), rtol=1e-4)
    np.testing.assert_allclose(step(0.99)[1], 1.0, atol=0.6)


def test_a_token_after_a_long_silence():
    """The limit that the README names: 1 / sqrt(1 - b2), where all others step by one."""
    g = np.full((V, D), 0.01, np.float32)
    nu_token = np.full(V, 1e-4, np.float32)
    nu_token[5] = 0
    state = ScaleByEmberState(np.int32(10**6), nu_token, np.full(D, 1e-4 * (V - 1) / V, np.float32), np.int32(0))
    steps = geometry.row_step(g, state)
    assert np.argmax(steps) == 5
    np.testing.assert_allclose(geometry.cold_row_ratio(steps), 1 / np.sqrt(1e-3), rtol=1e-3)
    np.testing.assert_allclose(np.delete(steps, 5), 1, rtol=1e-3)


def test_a_skipped_batch_moves_nothing():
    state = geometry.table_states(scale_by_ember().init({"wte": jnp.ones((V, D))}))["wte"]
    steps = geometry.row_step(np.full((V, D), np.nan, np.float32), state)
    np.testing.assert_array_equal(steps, 0)
    assert np.isnan(geometry.cold_row_ratio(steps))


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_cold_row_ratio_is_over_the_median(count):
    steps = np.zeros(9, np.float32)
    steps[:count] = RNG.uniform(0.5, 3, count)
    np.testing.assert_allclose(geometry.cold_row_ratio(steps), steps.max() / np.median(steps[:count]), rtol=1e-6)
    active = np.arange(9) < 1
    np.testing.assert_allclose(geometry.cold_row_ratio(steps, active=active), 1)
