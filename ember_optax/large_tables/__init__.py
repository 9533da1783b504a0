"""Tables that are larger than the device: their rows are in host memory or in a file, and a step moves the rows of its batch.

A row-sparse step of Ember reads the rows of the batch, their `nu_token` and D numbers. So a step on fetched rows equals the step
with the whole table on the device, and its cost depends on the batch and not on the table. A train step has four parts:

    fetched = table.fetch(ids)                                   # host: distinct ids, their rows to the device
    rows = large_tables.lookup(fetched.rows, fetched.places)     # in the loss
    fetched = large_tables.update(fetched, row_grads, 0.1)       # in the compiled step
    table.write(fetched)                                         # host: rows back

With `HostTable(..., mesh=mesh)` the rows are split over many processes.

>>> from ember_optax import large_tables  # `large_tables.HostTable` has an example that runs

References:
  docs/large_tables.md
"""

from ._accumulate import mean_over_micro_batches
from ._fetched import FetchedRows, lookup
from ._host_table import HostTable
from ._update import update

__all__ = ["FetchedRows", "HostTable", "lookup", "mean_over_micro_batches", "update"]
