"""The steps that tests repeat: given gradients or a loss, dense or row-sparse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ember_optax import row_sparse


def dense_step(tx):
    """`(params, opt_state, grads)` to the next parameters and state."""

    def step(params, opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def sparse_step(tx, **options):
    """The same with compact gradients as arrays and their ids beside them; `options` are those of `row_sparse.apply_updates`."""

    def step(params, opt_state, grads, token_ids):
        updates, opt_state = tx.update(grads, opt_state, params, token_ids=token_ids)
        return row_sparse.apply_updates(params, updates, token_ids, **options), opt_state

    return step


def split_value_and_grad(loss_fn, **options):
    """`row_sparse.value_and_grad` with its compact gradients as arrays and their ids, which `jax.jit` can return."""

    def value_and_grad(*args, **kwargs):
        value, grads = row_sparse.value_and_grad(loss_fn, **options)(*args, **kwargs)
        return value, *row_sparse.split(grads)

    return value_and_grad


def dense_train_step(tx, loss_fn):
    """`(params, opt_state, *batch)` to the next parameters and state and the loss before them."""
    apply = dense_step(tx)

    def step(params, opt_state, *batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        return *apply(params, opt_state, grads), loss

    return step


def sparse_train_step(tx, loss_fn):
    """The same with the ids by path before the batch."""
    apply = dense_step(tx)

    def step(params, opt_state, token_ids, *batch):
        loss, grads = row_sparse.value_and_grad(loss_fn)(params, token_ids, *batch)
        return *apply(params, opt_state, grads), loss

    return step


@functools.cache
def jitted(step_of, tx):
    """`jax.jit(step_of(tx))`, one for all tests of one `tx`, so that it is compiled once for each shape."""
    return jax.jit(step_of(tx))


def losses_of(step, params, opt_state, steps=5):
    """The losses of some train steps without a batch, and the last parameters and state."""
    losses = []
    for _ in range(steps):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    return losses, (params, opt_state)


def to_dense(compact, ids, shape):
    """The dense gradient for which compact rows stand, token axis first."""
    dense, ids = np.zeros(shape, np.float64), np.asarray(ids).reshape(-1)
    kept = (ids >= 0) & (ids < shape[0])
    np.add.at(dense, ids[kept], np.asarray(compact, np.float64).reshape(-1, *shape[1:])[kept])
    return jnp.asarray(dense, jnp.float32)
