"""Planted tokens that were never trained come first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ember_optax import geometry

V, D = 60, 8
UNUSED = np.array([3, 17, 31, 44, 59])


def head(noise=0.02):
    """Rows of meaning around a common row; those that never occur were all pushed in one direction from it, by less."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(V, D)) + 3 * np.eye(D)[0]
    table[:, 1] += 4 * rng.normal(size=V)  # a first component that hides the rest
    table[UNUSED] = 3 * np.eye(D)[0] - 0.5 * np.eye(D)[2] + noise * rng.normal(size=(len(UNUSED), D))
    return table.astype(np.float32)


@pytest.mark.parametrize("token_axis", [0, 1])
def test_a_head(token_axis):
    table = head()
    found = geometry.under_trained_tokens(
        table.T if token_axis else table, tied=True, known_unused=UNUSED[:2], token_axis=token_axis
    )
    assert set(found.order[:5].tolist()) == set(UNUSED.tolist())
    np.testing.assert_array_equal(found.score, found.distance_without_first)
    reference = head()[UNUSED[:2]].mean(0)
    cosines = head() @ reference / np.linalg.norm(head(), axis=1) / np.linalg.norm(reference)
    np.testing.assert_allclose(found.distance, 1 - cosines, atol=1e-6)
    centered = head() - head().mean(0)
    first = np.linalg.svd(centered)[2][0]
    for got, rows in (
        (found.distance_centered, centered),
        (found.distance_without_first, centered - np.outer(centered @ first, first)),
    ):
        reference = rows[UNUSED[:2]].mean(0)
        cosines = rows @ reference / np.linalg.norm(rows, axis=1) / np.linalg.norm(reference)
        np.testing.assert_allclose(got, 1 - cosines, atol=2e-5)


def test_an_input_table():
    table = head()
    table[UNUSED] *= 0.1
    found = geometry.under_trained_tokens(table, tied=False)
    assert set(found.order[:5].tolist()) == set(UNUSED.tolist())
    np.testing.assert_allclose(found.score, np.linalg.norm(table, axis=1), rtol=1e-6)


def test_without_known_tokens_those_that_say_nothing_of_their_own_stand_for_them():
    """Not the shortest rows: in SmolLM2-135M unused rows are as long as others."""
    table = head()
    table[UNUSED, 0] += 1
    guess = geometry.under_trained_tokens(table, tied=True)
    assert set(guess.order[:5].tolist()) == set(UNUSED.tolist())


def test_zeros_and_compiled():
    table = head()
    table[7] = 0
    found = jax.jit(lambda table: geometry.under_trained_tokens(table, tied=True, known_unused=UNUSED))(table)
    assert found.distance[7] == 1
    assert found.order.dtype == jnp.int32
    assert sorted(found.order.tolist()) == list(range(V))


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e30])
def test_distances_do_not_depend_on_scale(scale):
    """Squares of small and of large numbers leave float32; rows of length zero and one would then look alike."""
    expected = geometry.under_trained_tokens(head(), tied=True, known_unused=UNUSED[:2])
    found = geometry.under_trained_tokens(head() * np.float32(scale), tied=True, known_unused=UNUSED[:2])
    for field in ("distance", "distance_centered", "distance_without_first"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), atol=2e-6, err_msg=field)


def test_rows_that_decayed_to_almost_nothing_lie_together():
    table = head()
    table[UNUSED] = 1e-25
    found = geometry.under_trained_tokens(table, tied=True, known_unused=UNUSED[:1])
    np.testing.assert_allclose(found.distance[UNUSED], 0, atol=1e-6)


def test_a_row_of_nan_does_not_hide_the_distances_of_others():
    table = head()
    expected = geometry.under_trained_tokens(table, tied=True, known_unused=UNUSED).distance
    table[0] = np.nan
    found = geometry.under_trained_tokens(table, tied=True, known_unused=UNUSED).distance
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected[1:], atol=1e-6)
