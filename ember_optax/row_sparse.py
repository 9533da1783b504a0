"""Row-sparse steps: gradients and updates of the rows of a batch, in place of whole token tables.

A batch of 2,048 tokens touches at most 2,048 rows of an input table of 262,144. With Ember a row without gradient does not move,
so the step on the touched rows is the dense step: `loss, grads, token_ids = value_and_grad(loss_fn)(params, token_ids, batch)`,
then `tx.update(grads, opt_state, params, token_ids=token_ids)` and `apply_updates(params, updates, token_ids)`. Dense and
row-sparse steps share one state and may be mixed. docs/row_sparse.md tells the rest.
"""

from ._row_gradients import apply_updates, mean_over_micro_batches, sum_over_duplicates, value_and_grad
from ._row_slice import RowSlice, lookup

__all__ = ["RowSlice", "apply_updates", "lookup", "mean_over_micro_batches", "sum_over_duplicates", "value_and_grad"]
