"""Memory of compiled row-sparse steps: no gradient of the table's size."""

import jax
import jax.numpy as jnp
import optax
import pytest
from steps import sparse_step, sparse_train_step

from ember_optax import EmberDimensionNumbers, ember, row_sparse

pytestmark = pytest.mark.fully_compiled


@pytest.mark.parametrize("dtype, most", [(jnp.float16, 0.02), (jnp.bfloat16, 1.02)])
def test_copies_of_a_half_precision_table(dtype, most):
    """XLA on CPU copies a bfloat16 table once, not twice as float32."""
    table, ids = jax.ShapeDtypeStruct((100_000, 64), dtype), jax.ShapeDtypeStruct((128,), jnp.int32)
    step = jax.jit(row_sparse.apply_updates, donate_argnums=0)
    memory = step.lower(table, jax.ShapeDtypeStruct((128, 64), dtype), ids).compile().memory_analysis()
    assert memory.temp_size_in_bytes < most * table.size * table.dtype.itemsize


def test_a_compiled_step_has_no_table_sized_gradient():
    """Optimizer step below 2 % of the table, a train step below 5 %, where AdamW's has the V x D gradient."""
    size, width, tokens = 262_144, 1024, 2048
    tx = ember(1e-3, optax.adamw(1e-3), tables=EmberDimensionNumbers())
    table = jax.ShapeDtypeStruct((size, width), jnp.float32)
    rows, ids = jax.ShapeDtypeStruct((tokens, width), jnp.float32), jax.ShapeDtypeStruct((tokens,), jnp.int32)

    arguments = (table, jax.eval_shape(tx.init, table), rows, ids)
    memory = jax.jit(sparse_step(tx), donate_argnums=(0, 1)).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.02 * size * width * 4

    def loss_fn(table, ids):
        return jnp.mean(jnp.tanh(table[ids]) ** 2)

    step = jax.jit(sparse_train_step(tx, loss_fn), donate_argnums=(0, 1))
    memory = step.lower(*arguments[:2], ids, ids).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * size * width * 4
