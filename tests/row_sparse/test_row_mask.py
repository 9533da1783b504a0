"""Rows that are frozen: bit-identical, out of norms and of noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import dense_step, sparse_step, to_dense

from ember_optax import ember, row_sparse, scale_by_ember


@pytest.mark.parametrize("compact", [False, True])
def test_frozen_rows_stay_bit_identical(compact):
    params = {"wte": jnp.asarray(np.random.default_rng(0).normal(size=(20, 4)), jnp.float32).at[3].set(-0.0)}
    tx = row_sparse.train_only_rows(ember(1e-2, optax.adamw(1e-2), weight_decay=0.1), {"wte": jnp.array([0, 19])})
    state, found = tx.init(params), params
    alone, alone_state = (
        ember(1e-2, optax.adamw(1e-2), weight_decay=0.1),
        ember(1e-2, optax.adamw(1e-2), weight_decay=0.1).init(params),
    )
    step, step_alone, expected = jax.jit(sparse_step(tx)), jax.jit(dense_step(alone)), params
    for number in range(5):
        ids = jnp.asarray(np.random.default_rng(number).integers(0, 20, 40)).at[:2].set(jnp.array([0, 19]))  # both decay
        rows = jnp.asarray(np.random.default_rng(number).normal(size=(40, 4)), jnp.float32)
        token_ids = {"wte": ids} if compact else None
        grads = {"wte": rows if compact else to_dense(rows, ids, (20, 4))}
        found, state = step(found, state, grads, token_ids)
        grads = {"wte": to_dense(rows, ids, (20, 4)).at[1:19].set(0.0)}
        expected, alone_state = step_alone(expected, alone_state, grads)
    bits = functools.partial(np.asarray, dtype=np.float32)
    np.testing.assert_array_equal(bits(found["wte"][1:19]).view(np.uint32), bits(params["wte"][1:19]).view(np.uint32))
    np.testing.assert_allclose(found["wte"], expected["wte"].at[1:19].set(params["wte"][1:19]), rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state, alone_state)


@pytest.mark.parametrize("compact", [False, True])
def test_frozen_rows_are_out_of_norms_and_of_noise(compact):
    """Their gradients are zero before the inner transformation, their updates after it."""
    inner = optax.chain(optax.clip_by_global_norm(1e-3), scale_by_ember(), optax.scale(-1e-2), optax.add_noise(1e-2, 0.0, 0))
    tx = row_sparse.train_only_rows(inner, {"wte": np.array([1, 2])})
    table, ids = {"wte": jnp.ones((20, 4))}, jnp.array([1, 7, 9])
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32).at[1].set(jnp.nan)
    token_ids = {"wte": ids} if compact else None
    grads = {"wte": rows if compact else jnp.zeros((20, 4)).at[ids].set(rows)}
    state = jax.jit(tx.init)(table)
    updates, state = jax.jit(tx.update)(grads, state, table, token_ids=token_ids)
    found = row_sparse.apply_updates(table, updates, token_ids)["wte"]
    moved = np.flatnonzero((found != 1.0).any(1))
    assert 1 in moved
    assert set(moved) <= {1, 2}
    scaled = optax.tree.get(state, "nu_token")["wte"]
    np.testing.assert_allclose(jnp.sqrt(scaled[1] * 4 / 1e-3), 1e-3, rtol=1e-4)  # the norm is that of row 1 alone
    assert not optax.tree.get(state, "total_notfinite")["wte"]
