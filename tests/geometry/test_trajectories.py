"""Rays: exact where the sketch holds everything, bounded where it does not, and their nulls."""

import functools

import geometry_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ember_optax import geometry

V, D = 9, 16
WALK = np.cumsum(np.random.default_rng(0).normal(size=(13, V, D)), 0).astype(np.float32)


@functools.cache
def compiled(rank, token_axis=0):
    init, update, value = geometry.ray(rank=rank, token_axis=token_axis)

    @jax.jit
    def rays(snapshots):
        state, _ = jax.lax.scan(lambda state, table: (update(state, table), None), init(snapshots[0]), snapshots[1:])
        return value(state)

    return rays


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_few_displacements_are_measured_exactly(scale):
    found = compiled(3)(np.float32(scale) * WALK[:4])
    share, straightness = oracle.ray(WALK[:4])
    np.testing.assert_allclose(found.share, share, rtol=1e-5)
    np.testing.assert_allclose(found.share_at_most, share, rtol=1e-5)
    np.testing.assert_allclose(found.straightness, straightness, rtol=1e-5)
    assert found.num_displacements == 3


def test_more_are_bounded():
    share, straightness = oracle.ray(WALK)
    found = compiled(3)(WALK)
    assert np.all(found.share <= share + 1e-6)
    assert np.all(share <= found.share_at_most + 1e-6)
    assert np.all(found.share > share - 0.01)  # what three directions dropped of a random walk
    np.testing.assert_allclose(found.straightness, straightness, rtol=1e-5)
    narrow = compiled(1)(WALK)
    assert np.all(narrow.share <= share + 1e-6)
    assert np.all(share <= narrow.share_at_most + 1e-6)


def test_a_ray_and_a_token_that_stays():
    """At any speed, there and back."""
    way = np.float32([0, 1, 5, 2, 7, 7.5])
    direction = np.random.default_rng(1).normal(size=(V, D)).astype(np.float32)
    direction[4] = 0
    found = compiled(3)(1 + way[:, None, None] * direction)
    moved = np.arange(V) != 4
    np.testing.assert_allclose(found.share[moved], 1, rtol=1e-6)
    np.testing.assert_allclose(found.straightness[moved], 7.5 / 13.5, rtol=1e-5)
    assert np.isnan(found.share[4])
    assert np.isnan(found.straightness[4])


def test_layouts():
    head = compiled(3, 1)(WALK.transpose(0, 2, 1))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), head, compiled(3)(WALK))
    init, update, value = geometry.ray()
    state = init(WALK[0].reshape(V, 4, 4))
    for table in WALK[1:3]:
        state = update(state, table.reshape(V, 4, 4))
    np.testing.assert_allclose(value(state).share, oracle.ray(WALK[:3])[0], rtol=1e-5)


def test_the_limit_of_a_random_walk_is_its_formula():
    for steps in (1, 2, 16, 200):
        share, straightness = geometry.random_walk(steps)
        np.testing.assert_allclose(share, 1 / (2 * steps * (steps + 1) * np.sin(np.pi / (4 * steps + 2)) ** 2), rtol=1e-6)
        np.testing.assert_allclose(straightness, steps**-0.5, rtol=1e-6)
    np.testing.assert_allclose(geometry.random_walk(200)[0], 8 / np.pi**2, rtol=1e-2)


def test_simulated_walks_are_near_the_limit():
    lengths = np.geomspace(1, 0.1, 8)  # a learning rate that decays
    limit = geometry.random_walk(lengths)
    simulated = geometry.random_walk(lengths, num_features=400, key=jax.random.key(0), num_walks=32)
    for found, expected in zip(simulated, limit, strict=True):
        assert found.shape == (32,)
        np.testing.assert_allclose(jnp.mean(found), expected, atol=0.01)
    assert limit[0] > geometry.random_walk(8)[0]
