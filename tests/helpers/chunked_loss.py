"""The loss of a head as Optax has it, from all logits, in float64: the oracle of the loss in chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from x64 import enable_x64

OPTIONS = [
    {},
    {"soft_cap": 3.0},
    {"z_loss": 0.1},
    {"label_smoothing": 0.2},
    {"soft_cap": 2.0, "z_loss": 0.05, "label_smoothing": 1.0},
]


def dense(hidden, table, labels, *, where=None, soft_cap=None, z_loss=0.0, label_smoothing=0.0, token_axis=0):
    """The loss as Optax has it, from all logits."""
    logits = (hidden @ (table.T if token_axis == 0 else table)).astype(jnp.promote_types(hidden.dtype, jnp.float32))
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    losses = optax.losses.softmax_cross_entropy(logits, optax.losses.smooth_labels(one_hot, label_smoothing))
    losses = losses + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    return losses if where is None else jnp.where(where, losses, 0.0)


def example(size, width, shape, token_axis=0, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((*shape, width))
    table = rng.standard_normal((size, width) if token_axis == 0 else (width, size))
    labels, weights = rng.integers(0, size, shape), rng.standard_normal(shape)
    return jnp.asarray(hidden, dtype), jnp.asarray(table, dtype), jnp.asarray(labels), jnp.asarray(weights, np.float32)


@functools.cache
def of(loss, **options):
    """Losses and the gradients of hidden states and table; each token's loss has a weight of its own."""

    def weighted(hidden, table, labels, weights, where):
        losses = loss(hidden, table, labels, where=where, **options)
        return jnp.sum(losses * weights.astype(losses.dtype)), losses

    return jax.jit(jax.grad(weighted, (0, 1), has_aux=True))


def exact(hidden, table, labels, weights, where=None, **options):
    """The dense loss and its gradients in float64."""
    with enable_x64(True):
        wide = (jnp.asarray(np.asarray(array.astype(jnp.float32)), jnp.float64) for array in (hidden, table))
        gradients, losses = of(dense, **options)(*wide, labels, weights, where)
        return losses, *gradients


def largest_error(found, expected):
    scale = np.abs(np.asarray(expected)).max()
    return np.abs(np.asarray(found, np.float64) - np.asarray(expected)).max() / (scale if scale else 1.0)
