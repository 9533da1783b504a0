"""The parameters on which Optax's contract is tested: an embedding, a head and a dense kernel."""

import jax
import jax.numpy as jnp
import numpy as np

from ember_optax import EmberDimensionNumbers

TABLES = {
    "embed": {"embedding": EmberDimensionNumbers(0)},
    "lm_head": {"kernel": EmberDimensionNumbers(1)},
    "dense": {"kernel": None},
}


def initial_params(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "embed": {"embedding": jax.random.normal(keys[0], (12, 4), dtype)},
        "lm_head": {"kernel": jax.random.normal(keys[1], (4, 12), dtype)},
        "dense": {"kernel": jax.random.normal(keys[2], (4, 4), dtype)},
    }


def assert_trees_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_trees_close(ours, theirs, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), ours, theirs)
