"""The vocabularies of compact gradients: the number of rows of their tables, and the token axis."""

from typing import Any, NamedTuple

import jax
import numpy as np

from .._optimizer.checks import check_given
from .._tree.boxes import unbox
from .._tree.compact_rows import CompactRows
from .._tree.declared import DimensionNumbersLike
from .._tree.inputs import check_tree
from .._tree.tables import Leaf, Table, TableTree, read_tree, tables_with_ids
from .._tree.token_ids import check_compact


class Vocabulary(NamedTuple):
    """The token axis and the number of rows of a table with ids."""

    token_axis: int
    num_rows: int


def vocabularies(
    found: TableTree, token_ids: dict[str, jax.Array], params: Any, tables: DimensionNumbersLike, *, stacked: int = 0
) -> dict[str, Vocabulary]:
    """The vocabulary of each gradient that has ids, by path.

    A `CompactRows` holds its own. The vocabulary of an array with `token_ids` comes from the parameters, because a compact array
    shows neither the size of its table nor the token axis.

    Args:
      found: gradients, with their ids.
      token_ids: the ids of the gradients that are arrays.
      params: the parameters. They may be None if no array has ids.
      tables: which axis of the tables is the vocabulary, as in `ember`.
      stacked: the number of axes that gradients and ids have before those of one gradient.

    Raises:
      ValueError: the parameters are needed and missing, or a gradient does not have the shape that its ids and its table imply.
    """
    known = {
        table.name: Vocabulary(inside.token_axis, inside.shape[inside.token_axis])
        for table in found.leaves
        if isinstance(inside := unbox(table.box), CompactRows)
    }
    if token_ids:
        check_given(params, with_ids=True)
        check_tree(params, "params")
        compact = {table.name: table for table in found.leaves if table.name in token_ids}
        for whole in tables_with_ids(read_tree(params, token_ids, what="the parameters are"), tables).tables:
            if whole.name in compact:
                _check_compact(compact[whole.name], whole, stacked)
                (token_axis,) = whole.axes.token
                known[whole.name] = Vocabulary(token_axis, whole.shape[token_axis])
    return known


def _check_compact(table: Leaf, whole: Table, stacked: int) -> None:
    assert table.ids is not None
    ids = jax.ShapeDtypeStruct(table.ids.shape[stacked:], table.ids.dtype)
    check_compact(table.name, np.shape(table.array)[stacked:], ids, whole.shape, whole.axes)
