"""The checks of what users pass to `HostTable`."""

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._tree.hyperparameters import checked_b2, checked_eps, checked_flag, checked_number
from .._tree.inputs import checked_seed, shown
from ._fetched import FetchedRows

# Ids are uint32 on the device, and one of them is padding.
_MOST_ROWS = (1 << 32) - 1
_DTYPES = ("float32", "bfloat16", "float16")


class Options(NamedTuple):
    """What a table is. A save has these, and a table with others is refused."""

    shape: tuple[int, ...]
    dtype: Any
    seed: int
    std: float
    b2: float
    eps: float


def checked_options(shape, dtype, seed, std, b2, eps, reserve, sync_log) -> Options:
    """The options of a table. Raises TypeError or ValueError with the name of the argument."""
    checked_flag(reserve, "reserve")
    checked_flag(sync_log, "sync_log")
    std = checked_number(std, "std", "std=0.02, or 0 for rows of zeros")
    of_steps = (
        checked_number(checked_b2(b2), "b2", "a Python number such as b2=0.999"),
        checked_number(checked_eps(eps), "eps", "a Python number such as eps=1e-8"),
    )
    return Options(_checked_shape(shape), _checked_dtype(dtype), checked_seed(seed), std, *of_steps)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    try:
        if isinstance(shape, str | bytes | dict):
            raise TypeError
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"shape must be a tuple of integers, got {shown(shape)}; pass (rows, features).") from None
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"shape must have at least two axes of at least one element, got {sizes}; pass (rows, features).")
    if sizes[0] > _MOST_ROWS:
        raise ValueError(f"shape has {sizes[0]} rows, but at most {_MOST_ROWS} are possible: split the table.")
    return sizes


def _checked_dtype(dtype: Any) -> Any:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be a floating dtype, got {shown(dtype)}; pass one of {', '.join(_DTYPES)}.") from None
    if found.name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {found.name}.")
    return found


def check_batches(batches: Any, ids_of: Any) -> None:
    """Raises unless these are batches and the function that reads their ids."""
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be iterable, got {shown(batches)}; pass an iterator of batches.")
    if not callable(ids_of):
        raise TypeError(f"ids_of must be a function, got {shown(ids_of)}; pass for example lambda batch: batch['ids'].")


def check_written(fetched: Any, table: int, options: Options, mesh: Any, count: int, total_notfinite: int) -> None:
    """Raises unless `fetched` is the result of the next step of this table."""
    if not isinstance(fetched, FetchedRows):
        raise TypeError(f"fetched must be the FetchedRows that update returned, got {shown(fetched)}.")
    if isinstance(fetched.rows, Tracer):
        raise TypeError("fetched is traced, so its rows have no values: return it from the jitted step, and call write then.")
    of_step = Options(
        (fetched.num_rows, *np.shape(fetched.rows)[1:]), fetched.dtype, fetched.seed, options.std, fetched.b2, fetched.eps
    )
    if of_step != options:
        raise ValueError(f"fetched is of another table: it has {of_step}, but this table has {options}; write each to its own.")
    if fetched.mesh != mesh:
        raise ValueError(f"fetched is of another table: it has mesh={fetched.mesh}, but this table has mesh={mesh}.")
    if int(fetched.table) != table:
        raise ValueError("fetched is of another table with the same options: write each to its own.")
    steps, done = int(fetched.count) + int(fetched.total_notfinite), count + total_notfinite
    if (int(fetched.count), int(fetched.total_notfinite)) == (count, total_notfinite):
        raise ValueError(
            f"fetched has taken no step since step {done} of the table: write what large_tables.update returned, once."
        )
    if steps != done + 1 or int(fetched.total_notfinite) < total_notfinite:
        raise ValueError(
            f"fetched is the result of step {steps}, but the table is at step {done}: fetch, update and write each batch before "
            f"the next is fetched, or use prefetch."
        )
