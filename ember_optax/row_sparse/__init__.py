"""Row-sparse steps: gradients and updates of the rows of a batch instead of whole token tables.

A batch of 2,048 tokens touches at most 2,048 rows of an input table of 262,144. With Ember a row without gradient does not move.
So a step on the touched rows equals the dense step, and its cost depends on the batch and not on the table. Dense and row-sparse
steps use the same state and may be mixed. One line of a train step changes:

    loss, grads = row_sparse.value_and_grad(loss_fn)(params, {"embed/embedding": ids}, ids)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)

>>> from ember_optax import row_sparse  # `row_sparse.value_and_grad` has an example that runs

References:
  docs/row_sparse.md
"""

from .._tree.compact_rows import CompactRows
from ._apply import apply_updates
from ._clip import clip_by_global_norm
from ._gradients import value_and_grad
from ._scan import scan
from ._shards import local_token_ids
from ._slice import RowSlice, lookup
from ._split import split
from ._sums import mean_over_micro_batches, sum_over_duplicates
from ._train_only_rows import train_only_rows

__all__ = [
    "CompactRows",
    "RowSlice",
    "apply_updates",
    "clip_by_global_norm",
    "local_token_ids",
    "lookup",
    "mean_over_micro_batches",
    "scan",
    "split",
    "sum_over_duplicates",
    "train_only_rows",
    "value_and_grad",
]
