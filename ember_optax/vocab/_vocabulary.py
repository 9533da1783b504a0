"""`vocabulary_of`: finds the parameters that have the vocabulary, and their token axes. It raises if one is unclear."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .._state.origins import AxisOrigin
from .._tree.declared import DimensionNumbersLike
from .._tree.finder import compile_patterns, finder_with
from .._tree.inputs import listed
from .._tree.paths import parent_of
from .._tree.suspects import heads_alone
from .._tree.tables import Leaf, Table, TableTree, found_tables


class Vocabulary(NamedTuple):
    """The parameters of one vocabulary.

    Attributes:
      size: the number of its tokens, V.
      leaves: every parameter of the model, in the order of `jax.tree.leaves`.
      axis_of: the token axis of each parameter that has the vocabulary, by its number.
    """

    size: int
    leaves: Sequence[Leaf]
    axis_of: dict[int, int]

    def has(self, origin: AxisOrigin | None) -> bool:
        """Whether an axis is the token axis of a parameter of this vocabulary."""
        return origin is not None and self.axis_of.get(origin.parameter) == origin.axis


def vocabulary_of(params: Any, tables: DimensionNumbersLike, names: Sequence[str] | None, unrelated: Sequence[str]) -> Vocabulary:
    """The tables of one vocabulary, and the biases next to them.

    Args:
      params: the parameters.
      tables: which parameters are tables, of this vocabulary or of another.
      names: patterns for the paths of the tables of this vocabulary. None if there is only one vocabulary.
      unrelated: patterns for the paths of parameters that have an axis of its size by coincidence.

    Raises:
      ValueError: there is no table, tables may have several vocabularies, another parameter has an axis of that size and would
        keep it, or a pattern matches nothing.
      TypeError: `names` or `unrelated` does not hold patterns.
    """
    found = found_tables(params, tables)
    owned = [table for table in found.tables if table.axes.token]
    if not owned:
        raise ValueError(f"no token table was found among {found.names}; name them with the argument tables, as in ember.")
    named = None if names is None else _matched_paths(names, "names", found)
    changing = _tables_that_change(owned, named)
    if named is None and (heads := heads_alone(found)):
        _refuse_heads_alone(heads[0], found)
    size, axes = changing[0].num_tokens, {table.name: table.axes.token[0] for table in changing}
    staying = {table.name for table in owned if table.name not in axes} | _unrelated_paths(found, owned, unrelated)
    for bias in _paths_of_biases(found, owned):
        beside = {table.name in axes for table in owned if parent_of(table.name) == parent_of(bias)}
        if beside == {True} or (True in beside and named is not None and bias in named):
            axes.setdefault(bias, 0)
        elif beside == {False}:
            staying.add(bias)
    axis_of = {i: axes[name] for i, name in enumerate(found.names) if name in axes and name not in staying}
    _check_others(found, axis_of, size, staying)
    return Vocabulary(size, found.leaves, axis_of)


def _tables_that_change(owned: list[Table], named: set[str] | None) -> list[Table]:
    """The tables that change together: the named tables, or without names all tables. Raises if these are not of one vocabulary.

    Without names, there may be at most one input table and one head.
    """
    if named is not None:
        if not (changing := [table for table in owned if table.name in named]):
            raise ValueError(f"names matches none of the tables {[table.name for table in owned]}; correct the path.")
        _check_sizes(changing)
        return changing
    _check_sizes(owned)
    # A bias that was declared has no features. It belongs to the table of its size.
    with_features = [table for table in owned if table.axes.feature]
    may_be = {kind: [t.name for t in with_features if t.kind in (kind, "tied", None)] for kind in ("input", "head")}
    if several := [paths for paths in may_be.values() if len(paths) > 1]:
        raise ValueError(
            f"the tables {listed(several[0])} have {owned[0].num_tokens} tokens each, and nothing shows whether they have one "
            f"vocabulary. Name the tables that change, for example names={several[0][:1]}, or names=['.*'] for all of them."
        )
    return owned


def _check_sizes(tables: list[Table]) -> None:
    if len({table.num_tokens for table in tables}) > 1:
        sizes = listed([f"{table.name!r} {table.num_tokens}, axis {table.axes.token[0]} of {table.shape}" for table in tables])
        name = tables[0].name
        raise ValueError(
            f"the tables have vocabularies of different sizes: {sizes}. If one is read along the wrong axis, declare it: "
            f"tables={finder_with('its/path', 1)}. If they are several vocabularies, or one of them is padded, change one at a "
            f"time, for example names=[{name!r}]."
        )


def _refuse_heads_alone(head: Table, found: TableTree) -> None:
    """Raises the error for a head without an embedding: an embedding that was not found would keep the old size.

    `_check_others` does not find the embedding if the head is padded, because then their sizes differ.
    """
    axis = head.axes.token[0]
    features = {size for a, size in enumerate(head.shape) if a != axis}
    others = [leaf for leaf in found.leaves if not isinstance(leaf, Table) and len(leaf.shape) == 2]
    like = [f"{leaf.name!r} {leaf.shape}" for leaf in others if features & set(leaf.shape)]
    raise ValueError(
        f"{head.name!r} of shape {head.shape} is a head, and no embedding was found; it would be left behind. With as many "
        f"features there are: {listed(like) or 'none'}. Name the embedding: tables={finder_with('its/path', 0)}; "
        f"or, if the model has none, the head: names=[{head.name!r}]."
    )


def _paths_of_biases(found: TableTree, owned: list[Table]) -> list[str]:
    """The paths of vectors next to a table with one number for each of its tokens."""
    sizes: dict[str, set[int]] = {}
    for table in owned:
        sizes.setdefault(parent_of(table.name), set()).add(table.num_tokens)
    others = [leaf for leaf in found.leaves if not isinstance(leaf, Table) and len(leaf.shape) == 1]
    return [leaf.name for leaf in others if leaf.shape[0] in sizes.get(parent_of(leaf.name), ())]


def _matched_paths(patterns: Sequence[str], argument: str, found: TableTree) -> set[str]:
    """The paths that the patterns of an argument match. Raises if a pattern matches none."""
    compiled = compile_patterns(patterns, argument)
    if unused := [p.pattern for p in compiled if not any(p.fullmatch(name) for name in found.names)]:
        raise ValueError(f"{argument} has {unused}, which match none of {found.names}; correct the path.")
    return {name for name in found.names if any(p.fullmatch(name) for p in compiled)}


def _unrelated_paths(found: TableTree, owned: list[Table], unrelated: Sequence[str]) -> set[str]:
    """The paths that the patterns match. Raises if one of them is a table."""
    matched = _matched_paths(unrelated, "unrelated", found)
    if tables := sorted(matched & {table.name for table in owned}):
        raise ValueError(
            f"unrelated matches {tables}, which are tables: leave them out of unrelated, and name those that change with names."
        )
    return matched


def _check_others(found: TableTree, axis_of: dict[int, int], size: int, staying: set[str]) -> None:
    """Raises if another parameter may have the vocabulary too, for example a head that was not found."""
    others = {
        leaf.name: leaf.shape
        for i, leaf in enumerate(found.leaves)
        if i not in axis_of and size in leaf.shape and leaf.name not in staying
    }
    if others:
        changed = {found.leaves[i].name: found.leaves[i].shape for i in axis_of}
        raise ValueError(
            f"of the parameters with an axis of {size} only {changed} are known to have the vocabulary, and {others} would be "
            f"left behind. If one has the vocabulary, declare it: tables={finder_with('its/path', 0)}. If its size is a "
            f"coincidence, name it in unrelated={sorted(others)}."
        )
