"""The vocabularies of compact gradients: of how many rows their tables are, and along which axis."""

from typing import Any, NamedTuple

import jax
import numpy as np

from .._optimizer.checks import check_given
from .._tree.boxes import unbox
from .._tree.compact_rows import CompactRows
from .._tree.declared import DimensionNumbersLike
from .._tree.inputs import check_tree
from .._tree.tables import Table, TableTree, tables_of
from .._tree.token_ids import check_compact


class Vocabulary(NamedTuple):
    """Of a table with ids."""

    token_axis: int
    num_rows: int


def vocabularies(
    found: TableTree, token_ids: dict[str, jax.Array], params: Any, tables: DimensionNumbersLike, *, stacked: int = 0
) -> dict[str, Vocabulary]:
    """The vocabulary of each gradient that has ids, by path.

    `CompactRows` know theirs. Of arrays with `token_ids` only the parameters tell it: a compact array has neither the size of its
    table, nor a shape that shows the axis.

    Args:
      found: gradients, with their ids.
      token_ids: the ids of the arrays among them.
      params: the parameters; None where no array has ids.
      tables: which axis of the tables is the vocabulary, as in `ember`.
      stacked: the number of axes that gradients and ids have before those of one gradient.

    Raises:
      ValueError: no parameters where they are needed; a gradient of another shape than its ids and its table ask for.
    """
    known = {
        table.name: Vocabulary(inside.token_axis, inside.shape[inside.token_axis])
        for table in found.tables
        if isinstance(inside := unbox(table.box), CompactRows)
    }
    if token_ids:
        check_given(params, with_ids=True)
        check_tree(params, "params")
        compact = {table.name: table for table in found.tables if table.name in token_ids}
        for whole in tables_of(params, tables, "with ids", token_ids=token_ids, what="the parameters are").tables:
            if whole.axes is not None and whole.name in compact:
                _check_compact(compact[whole.name], whole, stacked)
                (token_axis,) = whole.axes.token
                known[whole.name] = Vocabulary(token_axis, whole.shape[token_axis])
    return known


def _check_compact(table: Table, whole: Table, stacked: int) -> None:
    assert table.ids is not None
    assert whole.axes is not None
    ids = jax.ShapeDtypeStruct(table.ids.shape[stacked:], table.ids.dtype)
    check_compact(table.name, np.shape(table.array)[stacked:], ids, whole.shape, whole.axes)
