"""Memory of a compiled step with a fused head: nothing of N x V elements, nothing of the table's size but the table."""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from fused import Model, fused_step, transformation

from ember_optax import stochastic_rounding

pytestmark = pytest.mark.fully_compiled

SIZE, WIDTH, TOKENS, CHUNK = 20_000, 64, 96, 512
BYTES = {jnp.float32: 4, jnp.bfloat16: 2}


@functools.cache
def compiled(dtype, tied, token_axis):
    model = Model(SIZE, WIDTH, TOKENS, token_axis, tied, dtype, options=(("chunk", CHUNK),))
    tx = transformation(model)
    tx = optax.chain(tx, stochastic_rounding(0)) if dtype == jnp.bfloat16 else tx
    shapes = (
        jax.eval_shape(model.params),
        jax.eval_shape(lambda: tx.init(model.params())),
        *jax.eval_shape(lambda: model.batch(0)),
    )
    return jax.jit(fused_step(model, tx).__wrapped__, donate_argnums=(0, 1)).lower(*shapes).compile()


@pytest.mark.parametrize(
    "dtype, tied, token_axis, most_tables",
    [
        (jnp.float32, False, 0, 0.2),
        pytest.param(jnp.float32, True, 0, 0.2, marks=pytest.mark.slow),
        (jnp.float32, True, 1, 0.2 if jax.__version_info__ >= (0, 10) else 1.2),  # the oldest JAX's XLA copies this one once
        pytest.param(jnp.bfloat16, True, 0, 1.6, marks=pytest.mark.slow),  # XLA on CPU copies a bfloat16 table once
    ],
    ids=str,
)
def test_no_temporary_is_as_large_as_logits_or_table(dtype, tied, token_axis, most_tables):
    program = compiled(dtype, tied, token_axis)
    text = program.as_text()
    assert f"[{TOKENS},{CHUNK}]" in text  # those of a chunk are seen, so those of all would be
    assert f"[{TOKENS},{SIZE}]" not in text and f"[{SIZE},{TOKENS}]" not in text
    # Logits, their exponentials and gradient, and a chunk in float32.
    of_chunk = 4 * TOKENS * CHUNK * 4 + 4 * CHUNK * WIDTH * 4
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < of_chunk + most_tables * SIZE * WIDTH * BYTES[dtype]
    # Donated: both tables are written over.
    assert memory.alias_size_in_bytes > (1 if tied else 2) * SIZE * WIDTH * BYTES[dtype]


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["untied", "tied"])
def test_no_copy_of_the_table_is_made(tied):
    """In float32: copies would be instructions of the table's shape."""
    text = compiled(jnp.float32, tied, 0).as_text()
    assert re.search(rf"f32\[{SIZE},{WIDTH}\]", text)
    assert not re.search(rf"= f32\[{SIZE},{WIDTH}\]\S* copy\(", text)
