"""A table in a file with its saves, and steps that follow from their number."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from host_table_steps import stored_bytes

from ember_optax import large_tables

V, D, BETWEEN_SAVES = 5000, 6, 4
PARAMS = {"w": jnp.arange(3.0), "narrow": jnp.ones(2, jnp.bfloat16), "step": jnp.int32(0)}
_update = jax.jit(large_tables.update)


def open_table(path, dtype=jnp.float32, **options):
    return large_tables.HostTable((V, D), dtype, path=path, **{"seed": 0, **options})


def take_step(table):
    """A step whose batch and gradient follow from the step's number; every seventh is not finite."""
    number = table.count + table.total_notfinite
    rng = np.random.default_rng(number)
    fetched = table.fetch(rng.integers(0, 200 if number % 3 else V, 300))
    row_grads = rng.normal(size=fetched.rows.shape).astype(np.float32)
    row_grads[np.asarray(fetched.ids) >= V] = 0
    if number % 7 == 3:
        row_grads[0] = np.inf
    table.write(_update(fetched, row_grads, 0.1))


def tree_at(step):
    return {**PARAMS, "step": jnp.int32(step)}


def contents(table):
    return zlib.crc32(stored_bytes(table)), np.asarray(table.nu_feature).tobytes(), table.count, table.total_notfinite
