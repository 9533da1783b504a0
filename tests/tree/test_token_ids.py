"""Ids beyond 32 bits are padding, as any id that is no row; they never wrap around to a row that exists."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from x64 import enable_x64

from ember_optax import row_sparse, scale_by_ember

V, D = 10, 4
PARAMS = {"wte": jnp.ones((V, D))}
IDS = {
    "2^32 + 5": np.array([3, 2**32 + 5]),
    "5 - 2^32": np.array([3, 5 - 2**32]),
    "2^32 + 5, unsigned": np.array([3, 2**32 + 5], np.uint64),
    "2^63 + 5": np.array([3, 2**63 + 5], np.uint64),
    "2^31 + 5": np.array([3, 2**31 + 5], np.uint32),
    "2^32 - 1": np.array([3, 2**32 - 1], np.uint32),
    "250 of 8 bits": np.array([3, 250], np.uint8),
    "-1 of 8 bits": np.array([3, -1], np.int8),
    "-2^63": np.array([3, -(2**63)]),
}


def of_gradient(ids):
    def loss_fn(params):
        return jnp.sum(row_sparse.lookup(params["wte"], ids))

    _, grads = row_sparse.value_and_grad(loss_fn)(PARAMS, {"wte": ids})
    return optax.apply_updates({"wte": jnp.zeros((V, D))}, grads)["wte"]


def of_update(ids):
    tx = scale_by_ember()
    updates, _ = tx.update({"wte": jnp.ones((2, D))}, tx.init(PARAMS), PARAMS, token_ids={"wte": ids})
    return row_sparse.apply_updates({"wte": jnp.zeros((V, D))}, updates, {"wte": ids})["wte"]


def of_lookup(ids):
    return jax.grad(lambda table: jnp.sum(row_sparse.lookup(table, ids)))(PARAMS["wte"])


USES = {"gradient": of_gradient, "update": of_update, "lookup": of_lookup}
EACH = pytest.mark.parametrize("use", [use if use == "lookup" else pytest.param(use, marks=pytest.mark.slow) for use in USES])


@EACH
@pytest.mark.parametrize("ids", IDS)
def test_closed_over(use, ids):
    """As a constant of the compiled step, and outside of one."""
    for call in (USES[use], lambda ids: jax.jit(lambda: USES[use](ids))()):
        assert np.flatnonzero(call(IDS[ids]).any(1)).tolist() == [3]


@EACH
@pytest.mark.parametrize("ids", IDS)
def test_traced(use, ids):
    """Under x64 all of their digits arrive in a compiled step; without, JAX itself cuts 64-bit arguments before."""
    with enable_x64(IDS[ids].dtype.itemsize == 8):
        assert np.flatnonzero(jax.jit(USES[use])(IDS[ids]).any(1)).tolist() == [3]
