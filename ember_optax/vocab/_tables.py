"""Which parameters have the vocabulary, and along which axis: all of them, or none is changed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .._math.axes import TableAxes
from .._state.origins import AxisOrigin
from .._tree.declared import DimensionNumbersLike
from .._tree.finder import compile_patterns
from .._tree.paths import parent_of
from .._tree.tables import Table, TableTree, tables_of


class Vocabulary(NamedTuple):
    """The parameters of one vocabulary.

    Attributes:
      size: the number of its tokens, V.
      leaves: every parameter of the model, in the order of `jax.tree.leaves`.
      axis_of: the token axis of each one that has the vocabulary, by its number.
    """

    size: int
    leaves: list[Table]
    axis_of: dict[int, int]

    def has(self, origin: AxisOrigin | None) -> bool:
        """Whether an axis counts the tokens."""
        return origin is not None and self.axis_of.get(origin.parameter) == origin.axis


def vocabulary_of(params: Any, tables: DimensionNumbersLike, unrelated: Sequence[str]) -> Vocabulary:
    """The tables that the finder or the caller's declaration finds, and the biases beside them.

    Raises:
      ValueError: no table; tables of several sizes; another parameter with an axis of that size, which would be left behind; a
        pattern of `unrelated` that matches nothing.
      TypeError: `unrelated` holds no patterns.
    """
    found = tables_of(params, tables, "found", argument="tables", what="the parameters are")
    axes = {table.name: table.axes for table in found.tables if table.axes is not None and table.axes.token}
    if not axes:
        raise ValueError(f"no token table was found among {found.names}; name them with the argument tables, as in ember.")
    sizes = {table.name: table.shape[axes[table.name].token[0]] for table in found.tables if table.name in axes}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the tables have vocabularies of different sizes: {sizes}. Change one vocabulary at a time, and leave the others "
            f"out: tables=functools.partial(token_tables, exclude=[...])."
        )
    size = next(iter(sizes.values()))
    axis_of = {i: _token_axis(table, axes, size) for i, table in enumerate(found.tables)}
    with_axis = {i: axis for i, axis in axis_of.items() if axis is not None}
    _check_others(found, with_axis, size, unrelated)
    return Vocabulary(size, found.tables, with_axis)


def _token_axis(table: Table, axes: dict[str, TableAxes], size: int) -> int | None:
    if table.name in axes:
        return axes[table.name].token[0]
    is_bias = table.shape == (size,) and parent_of(table.name) in set(map(parent_of, axes))
    return 0 if is_bias else None


def _check_others(found: TableTree, axis_of: dict[int, int], size: int, unrelated: Sequence[str]) -> None:
    """Raises where a parameter that is not changed may have the vocabulary as well: a head that was not found, say."""
    patterns = compile_patterns(unrelated, "unrelated")
    if unused := [p.pattern for p in patterns if not any(p.fullmatch(name) for name in found.names)]:
        raise ValueError(f"unrelated has {unused}, which match none of {found.names}; correct the path.")
    others = {
        table.name: table.shape
        for i, table in enumerate(found.tables)
        if i not in axis_of and size in table.shape and not any(p.fullmatch(table.name) for p in patterns)
    }
    if others:
        changed = {found.tables[i].name: found.tables[i].shape for i in axis_of}
        raise ValueError(
            f"of the parameters with an axis of {size} only {changed} are known to have the vocabulary, and {others} would be "
            f"left behind. Declare those that have it with the argument tables, and name those whose size is a coincidence in "
            f"unrelated={sorted(others)}."
        )
