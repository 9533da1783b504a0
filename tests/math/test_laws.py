"""Properties that follow from the equations, for shapes of every kind and any gradient."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from ember_optax import EmberDimensionNumbers, scale_by_ember

pytestmark = pytest.mark.usefixtures("strict_promotion")

law = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)

# Zero, or far from both ends of float32 so that squares neither underflow nor overflow.
elements = st.one_of(st.just(0.0), st.floats(2**-20, 2**10, width=32), st.floats(-(2**10), -(2**-20), width=32))
# Scalars, vectors, tall, wide and square: few, since each is compiled once.
shapes = st.sampled_from([(1, 1), (1, 6), (7, 1), (2, 9), (9, 2), (3, 4), (5, 5), (8, 6)])
runs = st.tuples(st.integers(1, 4), shapes).flatmap(lambda size: hnp.arrays(np.float32, (size[0], *size[1]), elements=elements))


@functools.partial(jax.jit, static_argnames="token_axis")
def step(g, state, eps, token_axis):
    return scale_by_ember(0.99, eps, dimension_numbers=EmberDimensionNumbers(token_axis)).update(g, state)


def run(grads, eps=1e-8, token_axis=0):
    state, updates = scale_by_ember(dimension_numbers=EmberDimensionNumbers(token_axis)).init(grads[0]), []
    for g in grads:
        u, state = step(g, state, np.float32(eps), token_axis=token_axis)
        updates.append(np.asarray(u))
    return np.stack(updates), jax.tree.map(np.asarray, state)


@law
@hypothesis.given(runs, st.integers(-20, 20))
def test_scaling_gradient_and_eps_by_a_power_of_two_changes_nothing(grads, exponent):
    factor = 2.0**exponent
    updates, _ = run(grads)
    scaled, _ = run(grads * np.float32(factor), 1e-8 * factor)
    np.testing.assert_array_equal(scaled, updates)


@law
@hypothesis.given(runs, st.randoms(use_true_random=False))
def test_permuting_rows_and_columns_permutes_the_update(grads, random):
    rows, columns = list(range(grads.shape[1])), list(range(grads.shape[2]))
    random.shuffle(rows)
    random.shuffle(columns)
    updates, state = run(grads)
    permuted, permuted_state = run(grads[:, rows][:, :, columns])
    np.testing.assert_allclose(permuted, updates[:, rows][:, :, columns], rtol=2e-6)
    np.testing.assert_allclose(permuted_state.nu_token, state.nu_token[rows], rtol=2e-6)
    np.testing.assert_allclose(permuted_state.nu_feature, state.nu_feature[columns], rtol=2e-6)


@law
@hypothesis.given(runs)
def test_transposing_swaps_the_two_vectors(grads):
    updates, state = run(grads)
    turned = grads.transpose(0, 2, 1)
    as_head, head_state = run(turned, token_axis=1)
    as_table, table_state = run(turned, token_axis=0)
    np.testing.assert_allclose(as_head.transpose(0, 2, 1), updates, rtol=2e-6)
    np.testing.assert_allclose(as_table, as_head, rtol=2e-6)
    np.testing.assert_allclose(head_state.nu_token, state.nu_token, rtol=2e-6)
    np.testing.assert_allclose(table_state.nu_token, state.nu_feature, rtol=2e-6)
    np.testing.assert_allclose(table_state.nu_feature, state.nu_token, rtol=2e-6)


magnitudes = st.floats(2**-10, 2**10, width=32)


@law
@hypothesis.given(
    shapes.flatmap(lambda shape: st.tuples(*(hnp.arrays(np.float32, side, elements=magnitudes) for side in shape))),
    st.randoms(use_true_random=False),
)
def test_first_step_on_a_rank_one_magnitude_is_the_sign(factors, random):
    rows, columns = factors
    signs = np.array([[random.choice([-1, 1]) for _ in columns] for _ in rows])
    grads = (np.outer(rows, columns) * signs).astype(np.float32)[None]
    updates, _ = run(grads, eps=0.0)
    np.testing.assert_allclose(updates[0], signs, rtol=1e-6)


@law
@hypothesis.given(runs, st.sampled_from([1, 4, 20]))
def test_zero_rows_change_nothing_else(grads, padding):
    updates, state = run(grads)
    padded, padded_state = run(np.pad(grads, ((0, 0), (0, padding), (0, 0))))
    rows = grads.shape[1]
    np.testing.assert_allclose(padded[:, :rows], updates, rtol=2e-6)
    np.testing.assert_array_equal(padded[:, rows:], 0.0)
    np.testing.assert_allclose(padded_state.nu_token[:rows], state.nu_token, rtol=2e-6)
    np.testing.assert_array_equal(padded_state.nu_token[rows:], 0.0)


@law
@hypothesis.given(runs)
def test_both_vectors_have_the_same_mean(grads):
    _, state = run(grads)
    np.testing.assert_allclose(state.nu_token.mean(), state.nu_feature.mean(), rtol=2e-6)


@law
@hypothesis.given(runs)
def test_rows_without_gradient_do_not_move(grads):
    updates, _ = run(grads)
    silent = (grads == 0).all(axis=2)
    np.testing.assert_array_equal(updates[silent], 0.0)
