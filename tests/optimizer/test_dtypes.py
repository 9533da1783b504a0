"""Dtypes and modes in which JAX is strict: as `optax.adamw` does, or with a clear error."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember

TABLE = EmberDimensionNumbers()
IDS = jnp.array([1, 2])


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_float8_tables_with_decay(dtype):
    table = jnp.ones((6, 4), dtype)
    moved = []
    for tx in (ember(0.1, optax.adamw(0.1), tables=TABLE, weight_decay=0.1), optax.adamw(0.1, weight_decay=0.1)):
        updates, _ = tx.update(table, tx.init(table), table)
        assert updates.dtype == dtype
        moved.append(optax.apply_updates(table, updates))
    np.testing.assert_array_equal(*(table.astype(jnp.float32) for table in moved))


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_strict_promotion_with_decay(strict_promotion, dtype, compact):
    table = jnp.ones((6, 4), dtype)
    tx = ember(0.1, optax.sgd(1.0), tables=TABLE, weight_decay=0.1)
    ids = IDS if compact else None
    grads = jnp.ones((2, 4), dtype) if compact else table
    updates, _ = tx.update(grads, tx.init(table), table, token_ids=ids)
    found = row_sparse.apply_updates(table, updates, ids)
    assert found.dtype == dtype
    np.testing.assert_allclose(found[1].astype(jnp.float32), 1 - 0.1 * 1.1, rtol=1e-2)


def test_numpy_parameters():
    table, rows = np.ones((6, 4), np.float32), np.ones((2, 4), np.float32)
    found = row_sparse.apply_updates({"wte": table}, {"wte": rows}, {"wte": np.array([1, 1])})["wte"]
    np.testing.assert_array_equal(found[:, 0], [1, 3, 1, 1, 1, 1])
    updates, _ = (tx := ember(0.1, optax.adamw(0.1), tables=TABLE, weight_decay=0.1)).update(table, tx.init(table), table)
    np.testing.assert_allclose(updates, -0.11, rtol=1e-5)


def test_debug_nans_where_the_first_batch_is_skipped():
    tx, g = scale_by_ember(), jnp.full((4, 3), jnp.inf)
    with jax.debug_nans(True), jax.disable_jit():
        _, state = tx.update(g, tx.init(g))
    assert state.total_notfinite == 1


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-25])
@pytest.mark.parametrize("exponent", range(-37, -16))
def test_gradients_whose_squares_vanish_take_no_large_step(eps, exponent):
    """g / eps would be 1e10 where eps is 1e-30 and the squares of g are zero in float32."""
    g = jnp.full((6, 4), 10.0**exponent)
    tx = scale_by_ember(eps=eps)
    state = tx.init(g)
    for _ in range(3):
        updates, state = tx.update(g, state)
        assert (updates >= 0).all()
        assert (updates <= 1.001).all()


@pytest.mark.parametrize("shape", [(1, 4), (6, 1), (), (4, 6)])
def test_decay_of_a_parameter_of_another_shape(shape):
    tx, table = ember(0.1, optax.adamw(0.1), tables=TABLE, weight_decay=0.1), jnp.ones((6, 4))
    with pytest.raises(ValueError, match=re.escape(f"parameter '' has shape {shape}, but its gradient has (6, 4)")):
        tx.update(table, tx.init(table), jnp.ones(shape))
