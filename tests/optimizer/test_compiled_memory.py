"""Memory of compiled steps, as the compiler reports it: nothing is allocated, so the tables are as large as in real models."""

import jax
import jax.numpy as jnp
import optax
import pytest

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember

pytestmark = [
    pytest.mark.fully_compiled,
    pytest.mark.skipif(
        jax.__version_info__ < (0, 10), reason="before jax 0.10 XLA on CPU writes g^2 to memory in any reduction of it"
    ),
]
V, D = 50_257, 768


def compiled_memory(step, *arguments, donate):
    return jax.jit(step, donate_argnums=donate).lower(*arguments).compile().memory_analysis()


SHAPES = [
    ((50_257, 768), EmberDimensionNumbers(0)),
    ((131_072, 1024), EmberDimensionNumbers(0)),
    ((262_144, 640), EmberDimensionNumbers(0)),
    ((1024, 131_072), EmberDimensionNumbers(1)),
    ((262_144, 30, 256), EmberDimensionNumbers(0)),
    ((4, 32_768, 1024), EmberDimensionNumbers(1, (0,))),
    ((765, 50_257), EmberDimensionNumbers(1)),
    ((50_257, 765), EmberDimensionNumbers(0)),
]


# In turn: every shape in one dtype, tables and heads in both. The rest are slow.
@pytest.mark.parametrize(
    "shape, numbers, dtype",
    [
        pytest.param(shape, numbers, dtype, marks=() if (i + j) % 2 else pytest.mark.slow)
        for i, (shape, numbers) in enumerate(SHAPES)
        for j, dtype in enumerate([jnp.float32, jnp.bfloat16])
    ],
)
def test_an_optimizer_step_has_no_table_sized_temporary(shape, numbers, dtype):
    """Of `ember`, whose step is that of `scale_by_ember` with the decay and the rate."""
    tx = ember(1e-3, optax.sgd(1.0), weight_decay=0.1, tables=numbers)

    def step(params, grads, opt_state):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    table = jax.ShapeDtypeStruct(shape, dtype)
    memory = compiled_memory(step, table, table, jax.eval_shape(tx.init, table), donate=(0, 2))
    assert memory.temp_size_in_bytes < 0.01 * table.size * table.dtype.itemsize


def test_a_stack_of_many_small_tables_has_few_temporaries():
    """Their state is a part of 3 %; a mean in the form for large tables would make it 103 % (`_math/step.py`)."""
    tx = scale_by_ember(dimension_numbers=EmberDimensionNumbers(1, (0,)))
    table = jax.ShapeDtypeStruct((4096, 64, 64), jnp.float32)
    memory = compiled_memory(tx.update, table, jax.eval_shape(tx.init, table), donate=(0, 1))
    assert memory.temp_size_in_bytes < 0.1 * table.size * 4


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_a_train_step_peaks_where_sgd_does(dtype):
    """Forward, backward and update of a model with a tied table: above SGD there is only the O(V + D) state."""
    params = {
        "embed": {"embedding": jax.ShapeDtypeStruct((V, D), dtype)},
        "dense": {"kernel": jax.ShapeDtypeStruct((D, D), dtype)},
    }
    ids = jax.ShapeDtypeStruct((2, 65), jnp.int32)

    def loss_fn(params, ids):
        table = params["embed"]["embedding"]
        logits = jnp.tanh(table[ids[:, :-1]] @ params["dense"]["kernel"]) @ table.T
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), ids[:, 1:]).mean()

    def peak(tx):
        def step(params, opt_state, ids):
            loss, grads = jax.value_and_grad(loss_fn)(params, ids)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        memory = compiled_memory(step, params, jax.eval_shape(tx.init, params), ids, donate=(0, 1))
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    table = V * D * jnp.dtype(dtype).itemsize
    of_sgd = peak(optax.sgd(1e-3))
    assert peak(ember(1e-3, optax.sgd(1e-3))) - of_sgd < 0.01 * table
    assert peak(optax.adamw(1e-3)) - of_sgd > 1.9 * table  # such a comparison sees tables
