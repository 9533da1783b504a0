"""Rows of padding behind the tokens of a head: no probability, no gradient, no part in the mean of label smoothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunked_loss import OPTIONS, exact, example, largest_error, of
from products import in_turn

from ember_optax.losses import linear_softmax_cross_entropy


def padded(table, size, token_axis, value):
    missing = size - table.shape[token_axis]
    return jnp.pad(table, [(0, missing if axis == token_axis else 0) for axis in range(2)], constant_values=value)


SIZES = [(33, 64, 8), (32, 33, 16), (1, 40, 64), (33, 34, 64), (33, 33, 8)]


@pytest.mark.parametrize("num_tokens, size, chunk, options, token_axis", in_turn(SIZES, OPTIONS, [0, 1]), ids=str)
def test_is_the_dense_loss_of_the_tokens(num_tokens, size, chunk, options, token_axis):
    """Whatever the rows of padding hold."""
    hidden, table, labels, weights = example(num_tokens, 5, (3, 4), token_axis)
    wanted = exact(hidden, table, labels, weights, token_axis=token_axis, **options)
    options = {**options, "token_axis": token_axis, "num_tokens": num_tokens, "chunk": chunk}
    for value in (0.0, np.nan):
        arrays = hidden, padded(table, size, token_axis, value), labels, weights, None
        (of_hidden, of_table), losses = of(linear_softmax_cross_entropy, **options)(*arrays)
        tokens, padding = jnp.split(of_table, [num_tokens], token_axis)
        np.testing.assert_array_equal(padding, 0.0)
        for found, exactly in zip((losses, of_hidden, tokens), wanted, strict=True):
            assert np.abs(np.asarray(found) - np.asarray(exactly)).max() < 1e-5 * max(1.0, np.abs(exactly).max())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_in_half_precision(dtype):
    hidden, table, labels, weights = example(300, 16, (8,), dtype=dtype)
    arrays = hidden, padded(table, 512, 0, 30.0), labels, weights, None
    (of_hidden, of_table), losses = of(linear_softmax_cross_entropy, num_tokens=300, chunk=64)(*arrays)
    wanted = exact(hidden, table, labels, weights)
    for found, exactly in zip((losses, of_hidden, of_table[:300]), wanted, strict=True):
        assert largest_error(found, exactly) < 1e-2


@pytest.mark.parametrize("label", [33, 39, 40, -1])
def test_labels_of_padding_are_outside(label):
    hidden, table, _, weights = example(40, 5, (1,))
    gradients, losses = of(linear_softmax_cross_entropy, num_tokens=33)(hidden, table, jnp.array([label]), weights, None)
    assert jnp.isnan(losses).all() and all(jnp.isnan(gradient[:33]).all() for gradient in gradients)


def test_chunks_of_padding_are_not_computed():
    hidden, table, labels, _ = example(4096, 4, (8,))

    def products(num_tokens):
        loss = lambda hidden, table: linear_softmax_cross_entropy(hidden, table, labels, num_tokens=num_tokens, chunk=16).sum()  # noqa: E731
        jaxpr = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, table))
        return len(re.findall("dot_general", jaxpr)), "while" in jaxpr or "scan" in jaxpr

    # Forward one product, backward three, in one chunk without a loop; and once more for what remains of another.
    assert products(16) == (4, False) and products(17) == (8, False) and products(32)[1]
