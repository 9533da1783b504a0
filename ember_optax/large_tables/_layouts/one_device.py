"""The layout without a mesh: this process has all rows, and JAX decides where a batch is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .batch_ids import BatchIds, batch_ids


class OneDevice:
    """All rows are in this process. Nothing is communicated.

    Attributes:
      mesh: None.
      part: the number of this process.
      parts: the number of processes.
      devices_here: the number of devices among which the rows of a batch are split in this process.
    """

    mesh, part, parts, devices_here = None, 0, 1, 1

    def requests(self, ids: Any, num_rows: int) -> BatchIds:
        """The ids of a batch."""
        return batch_ids(ids, num_rows)

    def agreed(self, requests: Any, _steps: int, _num_rows: int) -> Any:
        """The ids of a batch, of which no other process knows."""
        return requests

    def rows_here(self, num_rows: int) -> int:
        """The number of rows in the store of this process."""
        return num_rows

    def index_of(self, ids: np.ndarray) -> np.ndarray:
        """The index of each id in the store of this process."""
        return ids

    def put(self, array: np.ndarray) -> jax.Array:
        """An array on the device. A CPU may use the memory of `array`."""
        return jax.device_put(array)

    def put_everywhere(self, array: Any) -> jax.Array:
        """An array that each device has whole."""
        return jnp.asarray(array)

    def read(self, array: jax.Array) -> np.ndarray:
        """The inverse of `put`."""
        return np.asarray(array)

    def read_used(self, fetched: Any) -> list[np.ndarray]:
        """The ids of fetched rows without padding, their rows, `nu_token` and `last`."""
        ids = np.asarray(fetched.ids)
        count = np.searchsorted(ids, fetched.num_rows)
        return [np.asarray(of)[:count] for of in (ids, fetched.rows, fetched.nu_token, fetched.last)]

    def largest(self, count: int) -> int:
        """The largest count of any process."""
        return count

    def gather(self, numbers: Any) -> np.ndarray:
        """The numbers of all processes, (1, n)."""
        return np.asarray(numbers)[None]
