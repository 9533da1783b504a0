"""Ids that stand several times in a batch are added up."""

import jax.numpy as jnp
import numpy as np
import optax
from steps import to_dense

from ember_optax import row_sparse, scale_by_ember


def test_duplicates_of_bfloat16_rows_are_added_in_float32():
    compact = jnp.concatenate([jnp.full((1, 4), 256.0), jnp.full((64, 4), 1.0)]).astype(jnp.bfloat16)
    tx = scale_by_ember(b2=0.0)
    table = jnp.zeros((3, 4))
    _, state = tx.update(compact, tx.init(table), table, token_ids=jnp.zeros(65, jnp.int32))
    np.testing.assert_allclose(state.nu_token[0], 320.0**2, rtol=1e-6)


def test_sum_over_duplicates_gives_the_dense_norm():
    ids = jnp.array([[4, -1, 4], [2, 4, 9]])
    compact = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    summed = row_sparse.sum_over_duplicates({"wte": compact}, {"wte": ids}, {"wte": jnp.zeros((10, 5))})["wte"]
    assert summed.shape == compact.shape
    dense = to_dense(compact, ids, (10, 5))
    np.testing.assert_allclose(optax.tree.norm(summed), optax.tree.norm(dense), rtol=1e-6)
    np.testing.assert_allclose(to_dense(summed, ids, (10, 5)), dense, rtol=1e-6)


def test_updates_of_sgd_are_added_up():
    """`apply_updates` is right for any optimizer's compact updates, also where ids stand twice."""
    for dtype in (jnp.float32, jnp.bfloat16):
        table = jnp.ones((4, 2), dtype)
        found = row_sparse.apply_updates({"wte": table}, {"wte": jnp.ones((3, 2))}, {"wte": jnp.array([2, -1, 2])})
        np.testing.assert_array_equal(found["wte"][:, 0], [1.0, 1.0, 3.0, 1.0])
        assert found["wte"].dtype == dtype
