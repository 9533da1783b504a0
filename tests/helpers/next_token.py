"""The task on which the tests train models of many libraries: the next of a few random tokens."""

import itertools

import flax
import jax
import optax
import pytest
from flax import nnx
from steps import dense_train_step, losses_of

V, D, T = 96, 16, 12  # V divides the meshes below
TOKENS = jax.random.randint(jax.random.key(0), (4, T + 1), 0, V)
needs_nnx_optimizer = pytest.mark.skipif(
    tuple(map(int, flax.__version__.split(".")[:2])) < (0, 12),
    reason="nnx.Optimizer of Flax 0.11 fails on any optax.partition: tuple indices must be integers",
)


def next_token_loss(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).mean()


def train(params, loss_fn, tx):
    losses, _ = losses_of(jax.jit(dense_train_step(tx, loss_fn)), params, jax.jit(tx.init)(params))
    return losses


def train_nnx(model, optimizer, steps=5):
    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: next_token_loss(m(TOKENS[:, :-1])))(model)
        optimizer.update(model, grads)
        return loss

    return [float(step(model, optimizer)) for _ in range(steps)]


def assert_falls(losses):
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses
