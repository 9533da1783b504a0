"""Optimizers of a memory's rows: Ember, and those that it is compared with.

Each takes fetched rows, their gradient and a rate, and changes the rows of the batch alone. A row that no batch has does not
move, and its averages decay by the same power when a batch has it again. So each of them equals its dense step.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ember_optax import large_tables
from ember_optax.large_tables import FetchedRows

_NUMBER = 4  # bytes of a number, float32 or int32


class MemoryOptimizer(NamedTuple):
    """One way to train a memory.

    Attributes:
      title: how documents call it.
      update: a function of the fetched rows, their gradient and the rate.
      parts: the arrays of a row's width that are kept for it. The first is the row itself.
      numbers: numbers of state for each row, besides the parts.
      shared: arrays of a row's width that all rows share.
    """

    title: str
    update: Callable[[FetchedRows, jax.Array, jax.Array], FetchedRows]
    parts: int = 1
    numbers: int = 2
    shared: int = 0

    def state_bytes(self, rows: int, width: int) -> int:
        """Bytes of state for a memory of `rows` rows."""
        of_rows = rows * ((self.parts - 1) * width + self.numbers)
        return _NUMBER * (of_rows + self.shared * width) if rows else 0


def _rowwise_rmsprop(fetched: FetchedRows, row_grads: jax.Array, rate: jax.Array) -> FetchedRows:
    nu, v_hat = _averages(fetched, fetched.nu_token, _mean_square(row_grads))
    return _stepped(fetched, fetched.rows - rate * _divided(row_grads, v_hat), nu)


def _rowwise_adagrad(fetched: FetchedRows, row_grads: jax.Array, rate: jax.Array) -> FetchedRows:
    nu = fetched.nu_token + _mean_square(row_grads)
    return _stepped(fetched, fetched.rows - rate * _divided(row_grads, nu), nu)


def _rmsprop(fetched: FetchedRows, row_grads: jax.Array, rate: jax.Array) -> FetchedRows:
    """Rows are (2, D): the row, and an average for each of its numbers."""
    rows, nu = fetched.rows[:, 0], fetched.rows[:, 1]
    grads = row_grads[:, 0]
    nu, v_hat = _averages(fetched, nu, jnp.square(grads))
    rows = rows - rate * grads / (jnp.sqrt(v_hat) + fetched.eps)
    return _stepped(fetched, jnp.stack([rows, nu], 1), fetched.nu_token)


MEMORY_OPTIMIZERS = {
    "ember": MemoryOptimizer("Ember", large_tables.update, shared=1),
    "rowwise_rmsprop": MemoryOptimizer("row-wise RMSProp", _rowwise_rmsprop),
    "rowwise_adagrad": MemoryOptimizer("row-wise Adagrad", _rowwise_adagrad, numbers=1),
    "rmsprop": MemoryOptimizer("Adam without momentum", _rmsprop, parts=2, numbers=1),
}


def _mean_square(row_grads: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(row_grads), -1)


def _averages(fetched: FetchedRows, nu: jax.Array, squares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The averages after this step, and the same without the bias to zero."""
    silent = (fetched.count - fetched.last).astype(jnp.float32)
    factor = jnp.power(fetched.b2, silent + 1).reshape(-1, *(1 for _ in nu.shape[1:]))
    nu = factor * nu + (1 - fetched.b2) * squares
    return nu, nu / -jnp.expm1((fetched.count + 1) * math.log(fetched.b2))


def _divided(row_grads: jax.Array, v_hat_N: jax.Array) -> jax.Array:
    return row_grads / (jnp.sqrt(v_hat_N) + 1e-8)[:, None]


def _stepped(fetched: FetchedRows, rows: jax.Array, nu_token: jax.Array) -> FetchedRows:
    count = fetched.count + 1
    return dataclasses.replace(fetched, rows=rows, nu_token=nu_token, last=jnp.full_like(fetched.last, count), count=count)
