"""`HostTable`: a token table in host memory or in a file."""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import _records, _save_file
from ._agreement import check_same
from ._checks import check_batches, check_written, checked_options
from ._fetched import FetchedRows
from ._folder import Folder
from ._gather import Gathered, gather, to_device
from ._layouts import layout_of
from ._prefetch import Batch, prefetched

# One for each table of this process, so that rows are written to the table that they are from.
_NUMBERS = itertools.count()


class HostTable:
    """A (V, D) token table whose rows are in host memory or in a file, and are on the device only for the steps that need them.

    It is equal to the table on the device with `ember`: `nu_token` of a silent row decays when a batch has the row again. Rows
    exist from the start, as normal numbers from a hash of seed and id, and take no memory until a step writes them. With a path,
    the rows are a memory-mapped file, which may be larger than the memory. `save` is a checkpoint of rows, state and a tree of
    yours together. Whenever the process dies, the next `HostTable` with this path is the table of the last save.

    With a mesh, the rows are split by id over all processes of `jax.distributed`: process `id % P` has the row in its memory or
    in its own folder inside of `path`. Rows and gradients travel between the devices by all-to-all. Each process makes the table,
    fetches, writes and saves at the same steps.

    Args:
      shape: (V, D), or (V, ...) with rows of any shape, whose axes are features together. V is below 2^32.
      dtype: float32, bfloat16 or float16. Rows of 16 bits are rounded stochastically.
      seed: an integer in 0 to 2^32 - 1, for initial rows and for rounding.
      std: the standard deviation of the initial rows; 0 for zeros.
      b2: the decay rate of the averages, a Python number.
      eps: added to the root, a Python number.
      path: a folder, which is made if it does not exist; None for host memory.
      reserve: reserve the space of the file. Without it, a full disk ends the process with a bus error (the last save is kept).
      sync_log: sync the undo log in each step, so that the last save also survives a loss of power.
      mesh: a `jax.sharding.Mesh` of all devices of all processes. Ids are then arrays over this mesh. None for one process.

    Attributes:
      count: steps taken. Skipped batches do not count.
      total_notfinite: batches that were skipped because they were not finite.
      nu_feature: the average over features, on the device.
      steps_lost: steps after the last save that were undone when the folder was opened.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of range, the folder is in use, is damaged, or has another table.
      OSError: the disk has too little space.

    Example:
      >>> import jax
      >>> from ember_optax import large_tables
      >>> table = large_tables.HostTable((1_000_000, 8), seed=0)
      >>> @jax.jit
      ... def train_step(fetched):
      ...     def loss_fn(rows):
      ...         return jnp.square(large_tables.lookup(rows, fetched.places) - 1.0).mean()
      ...     loss, row_grads = jax.value_and_grad(loss_fn)(fetched.rows)
      ...     return loss, large_tables.update(fetched, row_grads, 0.1)
      >>> for step in range(20):
      ...     loss, fetched = train_step(table.fetch(jnp.array([3, 999_999, 3])))
      ...     table.write(fetched)
      >>> print(table.count, loss < 0.01)
      20 True

    References:
      docs/large_tables.md
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any = jnp.float32,
        *,
        seed: int,
        std: float = 0.02,
        b2: float = 0.999,
        eps: float = 1e-8,
        path: Any = None,
        reserve: bool = True,
        sync_log: bool = False,
        mesh: Any = None,
    ):
        options = checked_options(shape, dtype, seed, std, b2, eps, reserve, sync_log)
        self.shape, self.dtype, self._options = options.shape, options.dtype, options
        record = _records.record_dtype(self.shape[1:], self.dtype, in_file=path is not None)
        self.count, self.total_notfinite, self.steps_lost = 0, 0, 0
        self._layout, self._process, self._lock = layout_of(mesh), os.getpid(), threading.Lock()
        self._number, self._written = self._layout.largest(next(_NUMBERS)), np.zeros(0, np.uint32)
        check_same(self._layout, (options, path is None))
        self.nu_feature, self._folder = self._layout.put_everywhere(np.zeros(self.shape[1:], np.float32)), None
        self._records: np.ndarray | None
        if path is None:
            self._records = _records.in_memory(self._layout.rows_here(self.shape[0]), record)
            return
        table = {**options._asdict(), "shape": list(self.shape), "dtype": self.dtype.name}
        self._folder = Folder(path, table, record, self._layout, reserve=reserve, sync_log=sync_log)
        self._records, self.steps_lost = self._folder.records, self._folder.steps_lost
        self.count, self.total_notfinite = (self._folder.header[name] for name in ("count", "total_notfinite"))
        if self._folder.header["save"]:
            self.nu_feature = self._layout.put_everywhere(np.asarray(self._folder.header["nu_feature"], np.float32))
        else:
            try:
                self.save()
            except BaseException:
                self.close()
                raise

    def fetch(self, ids: Any) -> FetchedRows:
        """The rows of a batch, on the device.

        Args:
          ids: an array of integers, or a tree of such arrays, of any shapes. Negative ids, and ids of V and above, are padding.
            With a mesh, JAX arrays with a `NamedSharding` of that mesh, to which each process gives its part.

        Returns:
          The distinct rows and their state; `places` has the structure of `ids`.

        Raises:
          TypeError: ids are not integers, or they are traced.
          ValueError: the table is closed, ids are not over the table's mesh, a row in the file is damaged, or the processes are
            at different steps.
        """
        num_rows = self.shape[0]
        records = self._open_records()
        agreed = self._layout.agreed(self._layout.requests(ids, num_rows), self.count + self.total_notfinite, num_rows)
        return self._on_device(gather(records, agreed, self._layout, self.count))

    def write(self, fetched: FetchedRows) -> None:
        """Stores the rows and the state after a step. It waits for the step.

        Raises:
          TypeError: `fetched` is not a `FetchedRows`, or it is traced.
          ValueError: it is not the result of the next step, or it is of another table.
          OSError: the disk is full. Then the table is as it was.
        """
        records = self._open_records()
        with self._lock:  # of two threads with results of one step, one is refused; and no thread copies these records
            check_written(fetched, self._number, self._options, self._layout.mesh, self.count, self.total_notfinite)
            count, total_notfinite = int(fetched.count), int(fetched.total_notfinite)
            self._written = np.zeros(0, np.uint32)
            if count > self.count:
                ids, rows, nu_token, last = self._layout.read_used(fetched)
                places = self._layout.index_of(ids)
                new = _records.pack(places, rows, nu_token, last, records.dtype, self.dtype)
                if self._folder is not None:
                    old = _records.take(records, places)
                    self._folder.before_overwriting(self.count + self.total_notfinite, places, old)
                _records.put(records, places, new)
                self._written = ids
            self.count, self.total_notfinite, self.nu_feature = count, total_notfinite, fetched.nu_feature

    def prefetch(self, batches: Iterable[Batch], ids_of: Callable[[Batch], Any]) -> Iterator[tuple[Batch, FetchedRows]]:
        """Each batch with its rows. While a step runs, a thread reads the next batch and gathers its rows.

        Rows of the next batch that `write` stores are read again after it. So the result is bit for bit that of `fetch`.

        Args:
          batches: the batches. Their iterator runs in the thread.
          ids_of: a function from a batch to the ids that `fetch` takes. It runs in the thread.

        Raises:
          TypeError: `batches` is not iterable, or `ids_of` is not a function.
          ValueError: the step of the last batch was not written, or processes have different numbers of batches.
        """
        check_batches(batches, ids_of)
        return prefetched(self, batches, ids_of)

    def save(self, tree: Any = ()) -> None:
        """A checkpoint: makes the rows, their state and a tree of arrays the last save, all of them or none.

        Args:
          tree: arrays to keep with the table, for example `(params, opt_state)`.

        Raises:
          TypeError: a leaf of the tree is not an array of numbers.
          ValueError: the table is in memory, or closed, or a leaf is split over processes.
          OSError: the disk is full. Then the last save is as it was.
          RuntimeError: another process could not save. Then the last save of all is as it was.
        """
        state = {"count": self.count, "total_notfinite": self.total_notfinite, "nu_feature": np.asarray(self.nu_feature).tolist()}
        self._in_file("save").save(state, tree)

    def restore(self, like: Any) -> Any:
        """The tree of the last save.

        Args:
          like: a tree of the same structure, shapes and dtypes; arrays or `jax.ShapeDtypeStruct`. Leaves that are over several
            processes are restored with their sharding.

        Raises:
          ValueError: the tree that was saved is different, or steps were taken after the save.
        """
        folder = self._in_file("restore")
        if (folder.header["count"], folder.header["total_notfinite"]) != (self.count, self.total_notfinite):
            raise ValueError(
                f"the table is at step {self.count}, but its save at {folder.header['count']}: open the table again to return to "
                f"its save."
            )
        return _save_file.fitted(folder.read_save(), like)

    def close(self) -> None:
        """Closes the files. Steps after the last save are undone when the folder is opened again."""
        if self._folder is not None:
            self._folder.close()
        self._records = None

    def __enter__(self) -> "HostTable":
        return self

    def __exit__(self, *of_error: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_records"):  # else it was refused
            self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a HostTable cannot be copied or pickled: make another one, or restore its folder elsewhere.")

    def __repr__(self) -> str:
        where = "host memory" if self._folder is None else repr(str(self._folder.path))
        return f"HostTable({self.shape}, {self.dtype.name}, in {where}, after {self.count} steps)"

    def _on_device(self, gathered: Gathered) -> FetchedRows:
        return to_device(gathered, self._options, self._layout, self.nu_feature, self._number, self.count, self.total_notfinite)

    def _open_records(self) -> np.ndarray:
        if self._records is None or (self._folder is not None and self._folder.is_closed()):
            fix = "its rows are gone" if self._folder is None else "make a HostTable with its path again"
            raise ValueError(f"{self!r} is closed: {fix}.")
        if self._process != os.getpid():
            raise ValueError(f"{self!r} is of process {self._process}, from which this one was forked: use it there alone.")
        return self._records

    def _in_file(self, what: str) -> Folder:
        self._open_records()
        if self._folder is None:
            raise ValueError(f"{what} needs a table in a file, but this one is in host memory: pass path= to HostTable.")
        return self._folder
