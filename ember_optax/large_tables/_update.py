"""`update`: one step of Ember on fetched rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from .._math.axes import TableAxes
from .._math.mesh import in_shard_map
from .._math.moments import DecayRate, Moments, decay_rate
from .._math.rounding import bits_at, key_of, places_along, rounded_update
from .._math.step import Hyperparameters
from .._optimizer.row_step import ember_row_step
from .._tree.hyperparameters import checked_learning_rate
from .._tree.inputs import shown
from ._fetched import FetchedRows
from ._layouts.collectives import over_devices


def update(fetched: FetchedRows, row_grads: jax.Array, learning_rate: Any) -> FetchedRows:
    """One step of Ember on the rows of a batch. It equals the step with the whole table on the device.

    .. math:: nu_i \\leftarrow b_2^{t - last_i} nu_i + (1 - b_2) \\operatorname{mean}_j g_{ij}^2

    The rest of the step is that of `scale_by_ember`. `nu_token` of a row that no batch has decays by the same power when a batch
    has the row again. Rows of 16 bits are rounded stochastically, with the bits of `stochastic_rounding(seed)`. A batch that is
    not finite changes only `total_notfinite`. Call it inside `jax.jit`.

    Args:
      fetched: the rows of the batch, from `HostTable.fetch`.
      row_grads: the gradient of the loss with respect to `fetched.rows`, of its shape.
      learning_rate: a number or a scalar array, for example `schedule(fetched.count)`.

    Returns:
      The rows and their state after the step. `HostTable.write` stores them.

    Raises:
      TypeError: `fetched` is not a `FetchedRows`, `row_grads` is not an array of floats, or the rate is not a number.
      ValueError: `row_grads` has another shape than the rows, or the rate is negative.

    Example:
      >>> import jax
      >>> from ember_optax import large_tables
      >>> table = large_tables.HostTable((1000, 4), seed=0)
      >>> fetched = table.fetch(jnp.array([3, 7, 3]))
      >>> row_grads = jax.grad(lambda rows: large_tables.lookup(rows, fetched.places).sum())(fetched.rows)
      >>> table.write(jax.jit(large_tables.update)(fetched, row_grads, 0.1))
      >>> table.count
      1

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/large_tables.md
    """
    check_gradient(fetched, row_grads)
    if in_shard_map() and fetched.mesh is not None:
        raise ValueError("update of a table with a mesh was called inside jax.shard_map: call it in jax.jit, outside of it.")
    if callable(learning_rate):
        raise TypeError("learning_rate must be a number, got a function: pass schedule(fetched.count).")
    checked_learning_rate(learning_rate)
    if fetched.mesh is None:
        return _stepped(fetched, row_grads, learning_rate)
    split, whole = PartitionSpec(fetched.mesh.axis_names), PartitionSpec()
    places, fetched = fetched.places, dataclasses.replace(fetched, places=())
    of_fetched = dataclasses.replace(
        fetched,
        rows=split,
        ids=split,
        nu_token=split,
        last=split,
        count=whole,
        nu_feature=whole,
        total_notfinite=whole,
        table=whole,
    )
    step = over_devices(fetched.mesh, _stepped, (of_fetched, split, whole), of_fetched)
    return dataclasses.replace(step(fetched, row_grads, jnp.asarray(learning_rate)), places=places)


def _stepped(fetched: FetchedRows, row_grads: jax.Array, learning_rate: Any) -> FetchedRows:
    """The step, also on the rows of one device of a mesh, whose statistics are those of all devices."""
    mesh_axes = () if fetched.mesh is None else fetched.mesh.axis_names
    num_devices = 1 if fetched.mesh is None else fetched.mesh.size
    num_places = len(fetched.rows)
    rate = decay_rate(fetched.b2)
    old = Moments(fetched.count, _decayed(fetched, rate), fetched.nu_feature, fetched.total_notfinite)
    places_N = jnp.arange(num_places, dtype=jnp.int32)
    places_N = jnp.where(fetched.ids < np.uint32(fetched.num_rows), places_N, num_places)
    axes = TableAxes(token=(0,), feature=tuple(range(1, fetched.rows.ndim)), batch=(), token_mesh=mesh_axes)
    by = Hyperparameters(rate, fetched.eps, weight_decay=0.0)
    # The statistics are a mean over the devices of parts of equal size.
    num_rows = fetched.num_rows / num_devices
    steps, new = ember_row_step(row_grads, places_N, old, by, axes=axes, num_rows=num_rows)
    steps = -jnp.asarray(learning_rate, steps.dtype) * steps
    rows = fetched.rows + _rounded(fetched, steps)
    counts = new.count > fetched.count
    return dataclasses.replace(
        fetched,
        rows=rows.astype(fetched.rows.dtype),
        # A skipped batch leaves what the table has, bit for bit.
        nu_token=jnp.where(counts, new.nu_token, fetched.nu_token),
        last=jnp.where(counts, new.count, fetched.last),
        count=new.count,
        nu_feature=new.nu_feature,
        total_notfinite=new.total_notfinite,
    )


def _decayed(fetched: FetchedRows, rate: DecayRate) -> jax.Array:
    """`nu_token` of the rows as it is now, after the steps in which no batch had them."""
    silent = fetched.count - fetched.last
    factor = jnp.where(silent > 0, jnp.exp(silent.astype(jnp.float32) * rate.log), 1.0)  # 0 * log(0) is NaN
    return fetched.nu_token * factor


def _rounded(fetched: FetchedRows, steps: jax.Array) -> jax.Array:
    if fetched.dtype.itemsize > 2:
        return steps
    # The word 0 is the name of a parameter that is not in a tree, as `stochastic_rounding` hashes it.
    key = key_of(fetched.seed, fetched.count + fetched.total_notfinite, 0)
    return rounded_update(steps, fetched.rows.astype(fetched.dtype), bits_at(key, places_of_rows(fetched.ids, steps.shape)))


def places_of_rows(ids_N: jax.Array, shape: tuple[int, ...]) -> list[tuple[int, jax.Array]]:
    """The indices of the elements of some rows in the whole table, in the form that `bits_at` takes."""
    of_features = [(axis, places_along(axis, size, len(shape))) for axis, size in enumerate(shape) if axis]
    return [(0, ids_N.reshape(-1, *(1 for _ in shape[1:]))), *of_features]


def check_gradient(fetched: Any, row_grads: Any) -> None:
    """Raises unless `row_grads` is a gradient of the rows of `fetched`."""
    if not isinstance(fetched, FetchedRows):
        raise TypeError(f"fetched must be what HostTable.fetch returned, got {shown(fetched)}.")
    if not jnp.issubdtype(getattr(row_grads, "dtype", jnp.int32), jnp.floating):
        raise TypeError(f"row_grads must be an array of floats, got {shown(row_grads)}: differentiate by fetched.rows.")
    if row_grads.shape != fetched.rows.shape:
        raise ValueError(
            f"row_grads has shape {row_grads.shape}, but the rows have {fetched.rows.shape}: differentiate the loss with respect "
            f"to fetched.rows of the same batch."
        )
