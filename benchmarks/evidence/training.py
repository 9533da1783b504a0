"""What the tasks share: an optimizer whose table rate is an argument of the compiled step, and what is kept of a run."""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.evidence.kinds import kinds
from benchmarks.evidence.records import rounded
from ember_optax import token_table_labels
from examples.lm.optimizers import schedule, state_bytes, with_label

_BINS = 20


class Trained(NamedTuple):
    """What a training step returns besides its state: the loss, and the root mean square of the tables' direction."""

    loss: jax.Array
    table_step: jax.Array


def partitioned(tables: optax.GradientTransformation, table_rate: Any, body_rate: float, steps: int, head_rate: Any = None):
    """`tables` at a peak rate for input tables and one for heads, and AdamW for everything else, on one schedule.

    Both rates may be traced. Heads have that of the input tables where they are given none.
    """
    shape = schedule(1.0, steps)

    def of_tables(rate):
        return optax.chain(tables, optax.scale_by_learning_rate(lambda count: rate * shape(count)))

    parts: dict[Any, Any] = {
        "input": of_tables(table_rate),
        "head": of_tables(table_rate if head_rate is None else head_rate),
        "body": optax.adamw(lambda count: body_rate * shape(count)),
    }
    return optax.partition(parts, kinds)


def table_step(updates: Any, rate: Any) -> jax.Array:
    """Root mean square of all updates of tables, in units of the input tables' peak rate."""
    tables = with_label(updates, "ember")
    squares = sum(jnp.sum(jnp.square(table)) for table in tables)
    return jnp.sqrt(squares / sum(table.size for table in tables)) / rate


def table_numbers(tables: optax.GradientTransformation, params: Any) -> dict[str, int]:
    """Parameters in tables and elsewhere, and the bytes of the tables' optimizer state."""
    labels = token_table_labels(params)
    of_tables = optax.partition({"ember": tables, "body": optax.set_to_zero()}, lambda _: labels)
    return {
        "table_parameters": sum(table.size for table in with_label(params, "ember")),
        "body_parameters": sum(leaf.size for leaf in with_label(params, "body")),
        "table_state_bytes": state_bytes(of_tables, params),
    }


def tree_hash(params: Any) -> str:
    """A short name for exactly these numbers: what a run began with."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    parts = (part for path, leaf in leaves for part in (jax.tree_util.keystr(path).encode(), np.asarray(leaf).tobytes()))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def curve(values: list[float]) -> list[float | None]:
    """Means over equal stretches of a run, for pictures."""
    return rounded(float(np.mean(part)) for part in np.array_split(np.asarray(values), min(_BINS, len(values))))
