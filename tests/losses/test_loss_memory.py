"""Memory of the compiled loss: nothing of N x V elements, nothing else of the table's size."""

import jax
import jax.numpy as jnp
import pytest

from ember_optax.losses import linear_softmax_cross_entropy

pytestmark = pytest.mark.fully_compiled

TOKENS, WIDTH, SIZE, CHUNK = 96, 64, 20_000, 512


def losses(hidden, table, labels):
    return linear_softmax_cross_entropy(hidden, table, labels, chunk=CHUNK).sum()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("function", [losses, jax.value_and_grad(losses, (0, 1))], ids=["loss", "gradient"])
def test_no_array_has_the_size_of_the_logits(dtype, function):
    """Nor is there another copy of the table, in bfloat16 neither: XLA on CPU likes to convert it whole."""
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((TOKENS, WIDTH), (SIZE, WIDTH))]
    compiled = jax.jit(function).lower(*shapes, jax.ShapeDtypeStruct((TOKENS,), jnp.int32)).compile()
    text = compiled.as_text()
    assert f"[{TOKENS},{CHUNK}]" in text  # those of a chunk are seen, so those of all would be
    assert f"[{TOKENS},{SIZE}]" not in text and f"[{SIZE},{TOKENS}]" not in text
    # Logits, their exponentials and gradient, and the chunk in float32.
    most = 4 * TOKENS * CHUNK * 4 + 4 * CHUNK * WIDTH * 4
    assert compiled.memory_analysis().temp_size_in_bytes < most < SIZE * WIDTH * 2
