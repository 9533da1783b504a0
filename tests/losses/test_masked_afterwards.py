"""A token whose loss is masked after the loss adds exactly zero to every gradient, as with Optax's losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunked_loss import OPTIONS, exact, example, largest_error
from products import in_turn

from ember_optax.losses import linear_softmax_cross_entropy

COUNTS = jnp.arange(12).reshape(3, 4) % 3 > 0


def total(hidden, table, labels, weights, counts=COUNTS, **options):
    losses = linear_softmax_cross_entropy(hidden, table, labels, **options)
    return jnp.sum(jnp.where(counts, losses * weights, 0.0))


@functools.cache
def gradient_of(loss, **options):
    return jax.jit(jax.grad(functools.partial(loss, **options), (0, 1)))


def gradients(*arrays, loss=total, **options):
    return gradient_of(loss, **options)(*arrays)


MASKED = [(-100, 1.0), (33, np.nan), (2**31 - 1, np.inf), (-1, -np.inf), (5, np.nan), (5, 1e38)]


@pytest.mark.parametrize("label, state, options, token_axis", in_turn(MASKED, OPTIONS, [0, 1]), ids=str)
def test_adds_exactly_zero(label, state, options, token_axis):
    """Labels outside the vocabulary, hidden states that are not finite, and logits that overflow."""
    hidden, table, labels, weights = example(33, 5, (3, 4), token_axis)
    wanted = exact(hidden, table, labels, weights, COUNTS, token_axis=token_axis, **options)[1:]
    spoilt = jnp.where(COUNTS[..., None], hidden, state), table, jnp.where(COUNTS, labels, label), weights
    of_hidden, of_table = gradients(*spoilt, token_axis=token_axis, chunk=8, **options)
    assert not of_hidden[~COUNTS].any()
    assert largest_error(of_hidden, wanted[0]) < 2e-6 and largest_error(of_table, wanted[1]) < 2e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_in_half_precision(dtype):
    hidden, table, labels, weights = example(33, 5, (3, 4), dtype=dtype)
    wanted = exact(hidden, table, labels, weights, COUNTS)[1:]
    spoilt = jnp.where(COUNTS[..., None], hidden, jnp.asarray(jnp.inf, dtype)), table, jnp.where(COUNTS, labels, -100), weights
    for found, exactly in zip(gradients(*spoilt, chunk=8), wanted, strict=True):
        assert largest_error(found, exactly) < 1e-2


def test_all_tokens_masked():
    """Also where the table holds a row that is not finite: zero times it is NaN."""
    hidden, table, labels, weights = example(33, 5, (3, 4))
    found = gradients(hidden, table.at[7].set(jnp.inf), labels - 100, weights, jnp.zeros((3, 4), bool), chunk=8)
    for gradient in found:
        np.testing.assert_array_equal(gradient, 0.0)


def picked(hidden, table, labels, weights):
    """The tokens that count are picked out, and never named by a mask."""
    losses = linear_softmax_cross_entropy(hidden, table, labels, chunk=8) * weights
    return losses.reshape(-1)[np.flatnonzero(np.asarray(COUNTS))].sum()


def selected(hidden, table, labels, weights):
    losses = linear_softmax_cross_entropy(hidden, table, labels, chunk=8) * weights
    return jax.lax.select(COUNTS, losses, jnp.zeros_like(losses)).sum()


def in_checkpoint(*arrays):
    return jax.checkpoint(total)(*arrays)


def in_vmap(hidden, table, labels, weights):
    return jax.vmap(total, (0, None, 0, 0, 0))(hidden, table, labels, weights, COUNTS).sum()


def in_scan(hidden, table, labels, weights):
    def body(sum_, row):
        return sum_ + total(row[0], table, *row[1:]), None

    return jax.lax.scan(body, jnp.float32(0), (hidden, labels, weights, COUNTS))[0]


@pytest.mark.parametrize("loss", [picked, selected, in_checkpoint, in_vmap, in_scan])
def test_however_it_is_masked(loss):
    hidden, table, labels, weights = example(33, 5, (3, 4))
    wanted = exact(hidden, table, labels, weights, COUNTS)[1:]
    spoilt = jnp.where(COUNTS[..., None], hidden, jnp.nan), table, jnp.where(COUNTS, labels, -100), weights
    for found, exactly in zip(gradients(*spoilt, loss=loss), wanted, strict=True):
        assert largest_error(found, exactly) < 2e-6


def test_a_cotangent_that_is_nan_is_seen():
    hidden, table, labels, weights = example(33, 5, (3, 4))
    for found in gradients(hidden, table, labels, weights.at[0, 1].set(jnp.nan)):
        assert jnp.isnan(found).any()
