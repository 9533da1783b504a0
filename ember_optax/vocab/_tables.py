"""Which parameters have the vocabulary, and along which axis: all of them, or none is changed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .._math.axes import TableAxes
from .._state.origins import AxisOrigin
from .._tree.declared import DimensionNumbersLike
from .._tree.finder import compile_patterns, finder_with
from .._tree.inputs import listed
from .._tree.paths import parent_of
from .._tree.suspects import heads_alone
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
        listed = ", ".join(
            f"{t.name!r} {sizes[t.name]}, axis {axes[t.name].token[0]} of {t.shape}" for t in found.tables if t.name in axes
        )
        raise ValueError(
            f"the tables have vocabularies of different sizes: {listed}. If one is read along the wrong axis, declare it: "
            f"tables=TokenTables(include={{'its/path': EmberDimensionNumbers(axis)}}). If they are several "
            f"vocabularies, or one of them is padded, change one at a time and leave the others out: "
            f"tables=TokenTables(exclude=['their/path'])."
        )
    if heads := heads_alone(found):
        _refuse_heads_alone(heads, found, axes)
    size = next(iter(sizes.values()))
    of_others = _unrelated(found, axes, unrelated)
    axis_of = {i: _token_axis(table, axes, size) for i, table in enumerate(found.tables) if table.name not in of_others}
    with_axis = {i: axis for i, axis in axis_of.items() if axis is not None}
    _check_others(found, with_axis, size, of_others)
    return Vocabulary(size, found.tables, with_axis)


def _refuse_heads_alone(heads: list[Table], found: TableTree, axes: dict[str, TableAxes]) -> None:
    """An embedding that was not found would be left behind; the guard of equal sizes does not see it where the head is padded."""
    head = heads[0]
    axis = axes[head.name].token[0]
    features = {size for a, size in enumerate(head.shape) if a != axis}
    others = [table for table in found.tables if table.axes is None and len(table.shape) == 2]
    like = [f"{table.name!r} {table.shape}" for table in others if features & set(table.shape)]
    raise ValueError(
        f"{head.name!r} of shape {head.shape} is a head, and no embedding was found; it would be left behind. With as many "
        f"features there are: {listed(like) or 'none'}. Name the embedding: tables={finder_with('its/path', 0)}; "
        f"or, if the model has none, the head: tables={finder_with(head.name, axis)}."
    )


def _token_axis(table: Table, axes: dict[str, TableAxes], size: int) -> int | None:
    if table.name in axes:
        return axes[table.name].token[0]
    is_bias = table.shape == (size,) and parent_of(table.name) in set(map(parent_of, axes))
    return 0 if is_bias else None


def _unrelated(found: TableTree, axes: dict[str, TableAxes], unrelated: Sequence[str]) -> set[str]:
    """The paths that the patterns match: none of a table, each pattern at least one."""
    patterns = compile_patterns(unrelated, "unrelated")
    if unused := [p.pattern for p in patterns if not any(p.fullmatch(name) for name in found.names)]:
        raise ValueError(f"unrelated has {unused}, which match none of {found.names}; correct the path.")
    names = {name for name in found.names if any(p.fullmatch(name) for p in patterns)}
    if tables := sorted(names & set(axes)):
        raise ValueError(
            f"unrelated matches {tables}, which are tables and change with their vocabulary: keep them out of the tables as "
            f"well, tables=TokenTables(exclude={tables})."
        )
    return names


def _check_others(found: TableTree, axis_of: dict[int, int], size: int, unrelated: set[str]) -> None:
    """Raises where a parameter that is not changed may have the vocabulary as well: a head that was not found, say."""
    others = {
        table.name: table.shape
        for i, table in enumerate(found.tables)
        if i not in axis_of and size in table.shape and table.name not in unrelated
    }
    if others:
        changed = {found.tables[i].name: found.tables[i].shape for i in axis_of}
        raise ValueError(
            f"of the parameters with an axis of {size} only {changed} are known to have the vocabulary, and {others} would be "
            f"left behind. If one has it, name it: tables=TokenTables(include=['its/path']). If its size is "
            f"a coincidence, name it in unrelated={sorted(others)}."
        )
