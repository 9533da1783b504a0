"""The mathematics against other implementations of it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import NumpyEmber
from products import in_turn

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember

pytestmark = [pytest.mark.fully_compiled, pytest.mark.usefixtures("strict_promotion")]

CONFORMANCE = sorted((Path(__file__).parents[1] / "data" / "conformance").glob("*.npz"))


EMBER = scale_by_ember()


def run(tx, grads, params=None):
    """All updates of a run and the last state, each step jitted: once for each shape, where `tx` is the same object."""
    state, update, updates = tx.init(grads[0] if params is None else params), jax.jit(tx.update), []
    for g in grads:
        u, state = update(g, state, params)
        updates.append(u)
    return updates, state


def random_gradients(steps, shape, scale=1.0, seed=0):
    """Gradients whose rows and columns differ by orders of magnitude; in each step half of the rows are silent."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(size=(shape[0], 1))) * np.exp(rng.normal(size=(1, shape[1])))
    awake = rng.random((steps, shape[0], 1)) < 0.5
    return jnp.asarray(scale * rng.normal(size=(steps, *shape)) * spread * awake, jnp.float32)


def test_conformance_data_is_complete():
    assert [path.stem for path in CONFORMANCE] == ["input_table", "lm_head", "short_memory", "weight_decay"]


@pytest.mark.parametrize(
    "path, transposed", in_turn(CONFORMANCE, [False, True]), ids=lambda value: getattr(value, "stem", str(value))
)
def test_matches_published_trajectory(path, transposed):
    data = np.load(path)
    hyperparameters = json.loads(str(data["hyperparameters"]))
    turn = np.transpose if transposed else np.asarray
    tables = EmberDimensionNumbers(token_axis=1 if transposed else 0)
    tx = ember(body=optax.sgd(1.0), tables=tables, **hyperparameters)
    params = jnp.asarray(turn(data["initial_table"]))
    opt_state, update = tx.init(params), jax.jit(tx.update)
    expected = dict(zip(data["table_steps"].tolist(), data["tables"], strict=True))
    for step, g in enumerate(data["grads"]):
        updates, opt_state = update(jnp.asarray(turn(g)), opt_state, params)
        params = optax.apply_updates(params, updates)
        if step in expected:
            largest_change = np.abs(expected[step] - data["initial_table"]).max()
            assert np.abs(turn(params) - expected[step]).max() <= 2e-6 * largest_change
            del expected[step]
    assert not expected
    state = optax.tree.get(opt_state, "ScaleByEmberState")
    np.testing.assert_allclose(state.nu_token, data["row"], rtol=1e-5)
    np.testing.assert_allclose(state.nu_feature, data["column"], rtol=1e-5)
    np.testing.assert_allclose(state.nu_feature.mean(), data["mean"], rtol=1e-5)


@pytest.mark.parametrize("exponent", range(-22, 18))
def test_matches_float64_at_every_magnitude(exponent):
    rng = np.random.default_rng(exponent + 100)
    size = (5, 48, 12)
    grads = jnp.asarray(10.0**exponent * rng.uniform(0.1, 1.0, size) * rng.choice([-1, 1], size), jnp.float32)
    oracle = NumpyEmber(grads.shape[1:])
    updates, _ = run(EMBER, grads)
    for u, g in zip(updates, grads, strict=True):
        np.testing.assert_allclose(u, oracle.update(g), rtol=1e-6)


@pytest.mark.parametrize(
    "b2, eps",
    [
        # Each value of both, and the corner where nothing remains of a silent row; the rest of the product is slow.
        pytest.param(b2, eps, marks=() if eps == 1e-8 or b2 in (0.999, eps) else pytest.mark.slow)
        for b2 in (0.0, 0.5, 0.95, 0.999, 1 - 1e-6)
        for eps in (0.0, 1e-8, 1e-3)
    ],
)
def test_matches_float64_with_silent_rows(b2, eps):
    grads = random_gradients(30, (40, 8), scale=1e-3)
    oracle = NumpyEmber((40, 8), b2, eps)
    updates, state = run(scale_by_ember(b2, eps), grads)
    for u, g in zip(updates, grads, strict=True):
        np.testing.assert_allclose(u, oracle.update(g), rtol=3e-6, atol=1e-9)
    np.testing.assert_allclose(state.nu_token, oracle.token, rtol=3e-6)
    np.testing.assert_allclose(state.nu_feature, oracle.feature, rtol=3e-6)


def test_without_memory_every_step_is_a_first_step():
    grads = random_gradients(3, (6, 4))
    updates, _ = run(scale_by_ember(0.0), grads)
    for u, g in zip(updates, grads, strict=True):
        np.testing.assert_allclose(u, NumpyEmber(g.shape).update(g), rtol=1e-6)


def test_average_is_unbiased_over_thousands_of_steps():
    """b2 * nu with b2 rounded to float32 would settle 1.25e-5 too high; rounding noise alone stays below 5e-6."""
    grads = np.random.default_rng(0).normal(size=(5000, 64, 4)).astype(np.float32) + 1
    tx = scale_by_ember(0.999)
    state, _ = jax.lax.scan(lambda state, g: (tx.update(g, state)[1], None), tx.init(grads[0]), jnp.asarray(grads))
    oracle = NumpyEmber((64, 4))
    for g in grads:
        oracle.update(g)
    np.testing.assert_allclose(state.nu_token, oracle.token, rtol=5e-6)


@pytest.mark.parametrize("large, small", [(1e17, 1e-5), (1e15, 1e-6), (1e8, 1e-10)])
def test_one_huge_row_leaves_the_others_accurate(large, small):
    """A quotient of squares, 1e-44 here, would underflow; the quotient of roots does not."""
    g = jnp.full((1000, 16), small).at[0].set(large)
    oracle = NumpyEmber(g.shape)
    silent = g.at[0].set(0.0)
    updates, _ = run(EMBER, [g, silent, silent])
    for u, grad in zip(updates, (g, silent, silent), strict=True):
        np.testing.assert_allclose(u, oracle.update(grad), rtol=2e-6)


@pytest.mark.parametrize("shape, value", [((4, 1024), 1e18), ((1024, 4), 1e18)])
def test_a_sum_of_squares_beyond_float32_is_poison(shape, value):
    """Every square is finite, but not their sum over a row or over a column."""
    (u,), state = run(EMBER, [jnp.full(shape, value)])
    np.testing.assert_array_equal(u, 0.0)
    assert (state.count, state.total_notfinite) == (0, 1)


def test_matches_factored_rms_of_optax():
    """Adafactor's second moment with the decay b2 (1 - b2^(t-1)) / (1 - b2^t), which is bias correction, and tiny eps."""
    b2, grads = 0.99, random_gradients(20, (160, 132)) + 0.1

    def decay(step, _):
        t = jnp.asarray(step + 1, jnp.float32)
        return b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)

    theirs, _ = run(optax.scale_by_factored_rms(decay_rate_fn=decay, epsilon=1e-30), grads, grads[0])
    ours, _ = run(scale_by_ember(b2, eps=1e-15), grads)
    for u, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(u, expected, rtol=2e-5)  # their decay is computed in float32


def test_rank_0_and_1_are_bias_corrected_rms():
    grads = random_gradients(5, (6, 1))
    vector, _ = run(EMBER, [g[:, 0] for g in grads])
    oracle = NumpyEmber((6, 1))
    for u, g in zip(vector, grads, strict=True):
        np.testing.assert_allclose(u, oracle.update(g)[:, 0], rtol=1e-6)
    scalar, state = run(EMBER, [g[2, 0] for g in grads])
    oracle = NumpyEmber((1, 1))
    for u, g in zip(scalar, grads, strict=True):
        np.testing.assert_allclose(u, oracle.update(g[2:3])[0, 0], rtol=1e-6)
    assert state.nu_token.shape == state.nu_feature.shape == ()


def test_several_feature_axes_are_one():
    grads = random_gradients(4, (10, 12))
    flat, flat_state = run(EMBER, grads)
    folded, state = run(EMBER, [g.reshape(10, 3, 4) for g in grads])
    for u, expected in zip(folded, flat, strict=True):
        np.testing.assert_allclose(u.reshape(10, 12), expected, rtol=1e-6)
    assert state.nu_feature.shape == (3, 4)
    np.testing.assert_allclose(state.nu_feature.reshape(12), flat_state.nu_feature, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stacked_tables_are_separate_tables(axis):
    """Statistics, counters and guard of each: one of the stacked tables gets a poisoned batch."""
    tables = [random_gradients(4, (10, 6), seed=seed) for seed in range(3)]
    tables[1] = tables[1].at[2, 0, 0].set(jnp.nan)
    token_axis = 1 if axis == 0 else 0
    stacked, state = run(
        scale_by_ember(dimension_numbers=EmberDimensionNumbers(token_axis, (axis,))),
        [np.stack([table[step] for table in map(np.asarray, tables)], axis) for step in range(4)],
    )
    for i, grads in enumerate(tables):
        alone, alone_state = run(EMBER, grads)
        for u, expected in zip(stacked, alone, strict=True):
            np.testing.assert_allclose(np.take(np.asarray(u), i, axis), expected, rtol=1e-6)
        assert state.count[i] == alone_state.count
        assert state.total_notfinite[i] == alone_state.total_notfinite == (1 if i == 1 else 0)


def test_state_is_two_vectors_and_scalars():
    state = scale_by_ember().init(jnp.zeros((300, 20), jnp.bfloat16))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 4 * (300 + 20) + 8
    assert state.nu_token.dtype == state.nu_feature.dtype == jnp.float32
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_the_count_saturates():
    tx = scale_by_ember()
    g = random_gradients(1, (6, 4))[0] + 1.0
    state = tx.init(g)._replace(count=jnp.int32(2**31 - 1), nu_token=jnp.ones(6), nu_feature=jnp.ones(4))
    u, state = tx.update(g, state)
    assert state.count == 2**31 - 1
    assert np.isfinite(u).all()


def test_debug_nans_finds_none():
    """An all-zero gradient with eps = 0 is a legal batch."""
    tx, g = scale_by_ember(eps=0.0), jnp.zeros((4, 3))
    with jax.debug_nans(True), jax.debug_infs(True):
        u, _ = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(u, 0.0)
