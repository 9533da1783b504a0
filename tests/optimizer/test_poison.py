"""One bad batch must not outlive itself: 60 drills, and what goes on beside the poisoned table."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from poison import POISONS, POSITIONS
from steps import dense_step, jitted

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember

DRILLS = list(itertools.product(POISONS, POSITIONS, ("float32", "bfloat16")))
STEPS, POISONED = 6, 3
DRILLED = ember(1e-2, optax.adamw(1e-2), weight_decay=0.1, tables=EmberDimensionNumbers())


def gradients(dtype):
    grads = np.random.default_rng(0).normal(size=(STEPS, 12, 8))
    grads[:, 5] = 0.0
    return [jnp.asarray(g, dtype) for g in grads]


def train(tx, params, grads):
    """Parameters after each step, and the last state."""
    opt_state, history, step = tx.init(params), [], jitted(dense_step, tx)
    for g in grads:
        params, opt_state = step(params, opt_state, g)
        history.append(params)
    return history, opt_state


def test_there_are_sixty_drills():
    assert len(DRILLS) == 60


@pytest.mark.parametrize("poison, position, dtype", DRILLS)
def test_poisoned_batch_is_skipped_without_trace(poison, position, dtype):
    params = jnp.ones((12, 8), dtype)
    clean = gradients(dtype)
    poisoned = [*clean[:POISONED], clean[POISONED].at[POSITIONS[position]].set(POISONS[poison]), *clean[POISONED:]]
    expected, expected_state = train(DRILLED, params, clean)
    history, state = train(DRILLED, params, poisoned)
    np.testing.assert_array_equal(history[POISONED], history[POISONED - 1])
    np.testing.assert_array_equal(history[:POISONED] + history[POISONED + 1 :], expected)
    ours, theirs = (optax.tree.get(s, "ScaleByEmberState") for s in (state, expected_state))
    for field in ("count", "nu_token", "nu_feature"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    assert (ours.total_notfinite, theirs.total_notfinite) == (1, 0)


def test_other_tables_and_the_body_go_on():
    params = {
        "embed": {"embedding": jnp.ones((12, 8))},
        "lm_head": {"kernel": jnp.ones((8, 12))},
        "dense": {"kernel": jnp.ones((8, 8))},
    }
    clean = jax.tree.map(lambda p: p * 0.5, params)
    bad = {**clean, "embed": {"embedding": clean["embed"]["embedding"].at[1, 1].set(jnp.nan)}}
    tx = ember(1e-2, optax.adamw(1e-2))
    expected, _ = train(tx, params, [clean, clean, clean])
    history, state = train(tx, params, [clean, bad, clean])
    for name in ("lm_head", "dense"):
        np.testing.assert_array_equal(history[-1][name]["kernel"], expected[-1][name]["kernel"])
    np.testing.assert_array_equal(history[1]["embed"]["embedding"], history[0]["embed"]["embedding"])
    skipped = optax.tree.get(state, "total_notfinite")
    assert skipped["embed"]["embedding"] == 1
    assert skipped["lm_head"]["kernel"] == 0


def test_a_run_of_poison_from_the_first_step():
    tx = scale_by_ember()
    state = tx.init(jnp.ones((4, 3)))
    for _ in range(5):
        u, state = tx.update(jnp.full((4, 3), jnp.inf), state)
        np.testing.assert_array_equal(u, 0.0)
    u, after = tx.update(jnp.ones((4, 3)), state)
    fresh, _ = tx.update(jnp.ones((4, 3)), tx.init(jnp.ones((4, 3))))
    np.testing.assert_array_equal(u, fresh)
    assert (after.count, after.total_notfinite) == (1, 5)


def test_the_largest_finite_squares_are_no_poison():
    u, state = scale_by_ember().update(jnp.full((4, 3), 5e18), scale_by_ember().init(jnp.ones((4, 3))))
    np.testing.assert_allclose(u, 1.0, rtol=1e-6)
    assert state.total_notfinite == 0


@pytest.mark.parametrize("skip", [False, True])
def test_a_poisoned_micro_batch_under_multi_steps(skip):
    """optax keeps 0 * NaN in its accumulator, so that every later mean is poisoned too, unless it is told to skip."""
    tx = ember(1e-2, optax.sgd(1e-2))
    params = {"embed": {"embedding": jnp.ones((12, 8))}, "dense": {"kernel": jnp.ones((8, 8))}}
    bad = jax.tree.map(lambda p: p * jnp.nan, params)
    options = {"should_skip_update_fn": optax.skip_not_finite} if skip else {}
    accumulating = optax.MultiSteps(tx, 2, **options)
    state, update = accumulating.init(params), jax.jit(accumulating.update)
    moved = []
    for step in range(8):
        updates, state = update(bad if step == 1 else params, state, params)
        moved.append(bool(updates["embed"]["embedding"].any()))
    skipped = optax.tree.get(state.inner_opt_state, "total_notfinite")["embed"]["embedding"]
    assert (any(moved[2:]), int(skipped)) == ((True, 0) if skip else (False, 4))


def test_apply_if_finite_protects_the_body_too():
    """Ember's guard is for its tables; a body becomes NaN, and a clip by the global norm before Ember spreads the NaN."""
    params = {"embed": {"embedding": jnp.ones((12, 8))}, "dense": {"kernel": jnp.ones((8, 8))}}
    bad = {**params, "embed": {"embedding": params["embed"]["embedding"].at[0, 0].set(jnp.nan)}}
    plain = optax.chain(optax.clip_by_global_norm(1.0), ember(1e-2, optax.adamw(1e-2)))
    history, _ = train(plain, params, [params, bad, params])
    assert jnp.isnan(history[-1]["dense"]["kernel"]).all()
    guarded = optax.apply_if_finite(plain, max_consecutive_errors=5)
    history, _ = train(guarded, params, [params, bad, params])
    expected, _ = train(guarded, params, [params, params])
    jax.tree.map(np.testing.assert_array_equal, history[-1], expected[-1])
