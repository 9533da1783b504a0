"""The leaves of a tree with their paths and ids, and those that are token tables with their axes.

* `every_table`: every leaf is a table (`scale_by_ember`);
* `found_tables`: the leaves that are declared or that the finder finds (`ember`, `report`, `vocab`, regularizers);
* `tables_with_ids`: the leaves with token ids (`row_sparse`);
* `read_tree`: the leaves alone.
"""

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._math.axes import TableAxes
from .boxes import is_box, rebox, unbox
from .compact_rows import CompactRows
from .declared import Declared, DimensionNumbersLike, check_axes_are_told, read_declaration
from .dimension_numbers import EmberDimensionNumbers, TableKind, table_axes
from .finder import FinderCall
from .kinds import kind_of
from .linear_leaf import LinearLeaf
from .paths import check_distinct, flatten_named, is_complete
from .token_ids import check_ids_once, check_known, check_one_table, check_same_axis


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """One leaf of a tree of parameters or of updates.

    Attributes:
      name: the path of the leaf.
      box: the leaf itself, in the box of a library or bare.
      array: the value inside the box; only the rows if there are ids.
      shape: the shape of the whole array.
      ids: the token ids of a compact array; None for a dense one.
    """

    name: str
    box: Any
    array: Any
    shape: tuple[int, ...]
    ids: jax.Array | None = None

    def as_table(self, axes: TableAxes, kind: TableKind | None) -> "Table":
        return Table(self.name, self.box, self.array, self.shape, self.ids, axes=axes, kind=kind)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Table(Leaf):
    """A leaf that is a token table.

    Attributes:
      axes: its axes.
      kind: whether it is an input table, a head or both; None if that is unknown.
    """

    axes: TableAxes
    kind: TableKind | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens; 1 for a scalar, which has no token axis."""
        return math.prod(self.shape[axis] for axis in self.axes.token)


class TableTree(NamedTuple):
    """The leaves of a tree, in the order of `jax.tree.leaves` with a box as one leaf, and its structure.

    `feature_mean` and `b2` are those of the `scale_by_ember` whose watched `init` read these tables (`_tree/watching.py`).
    `finder` is the call of the finder, if it found the tables.
    """

    leaves: Sequence[Leaf]
    treedef: Any
    feature_mean: str | None = None
    finder: FinderCall | None = None
    b2: Any = None

    @property
    def tables(self) -> list[Table]:
        """The leaves that are tables. `read_tree` knows none."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Table)]

    @property
    def names(self) -> list[str]:
        return [leaf.name for leaf in self.leaves]

    def rebuild(self, values: Iterable[Any]) -> Any:
        """A tree of this structure with one value for each leaf, in the leaf's box. Arrays of rows become `CompactRows` again."""
        return self.treedef.unflatten([_in_box(leaf.box, value) for leaf, value in zip(self.leaves, values, strict=True)])

    def leaves_of(self, tree: Any, what: str, *, may_have_more: bool = False) -> list[Any]:
        """The leaves of another tree, of parameters or of a field of the state, that belong to the leaves of this tree.

        Raises:
          ValueError: the other tree has other leaves. `may_have_more` allows the additional leaves of an unfiltered model.
        """
        with contextlib.suppress(ValueError, TypeError):
            leaves = self.treedef.flatten_up_to(tree)
            if all(map(_is_value, leaves)):
                return leaves
        # Leaves are matched by name, because boxes, and None for frozen leaves, change the structure of a tree.
        names, leaves, _ = flatten_named(tree)
        found = dict(zip(names, leaves, strict=True))
        if set(self.names) - set(found) if may_have_more else names != self.names:
            raise ValueError(
                f"the updates have the tables {self.names}, but the {what} has {names}; pass the {what} that belongs to "
                f"these updates."
            )
        return [found[name] for name in self.names]

    def part(self, tree: Any) -> "TableTree":
        """The tables of a tree in which `optax.partition` has masked every leaf that is not a table."""
        boxes, treedef = jax.tree.flatten(tree, is_leaf=is_box)
        pairs = zip(self.tables, boxes, strict=True)
        return TableTree([dataclasses.replace(table, box=box, array=_array_in(box)) for table, box in pairs], treedef)


def read_tree(tree: Any, token_ids: dict[str, jax.Array] | None = None, *, what: str = "the updates have") -> TableTree:
    """The leaves of a tree with their ids, without axes.

    Raises:
      ValueError: several leaves have the same path; ids are given for a path that does not exist, unless leaves are masked.
    """
    ids = token_ids or {}
    names, leaves, treedef = flatten_named(tree)
    check_distinct(names)
    if not ids.keys() <= set(names) and is_complete(tree):
        check_known(ids, names, what)
    found = []
    for name, leaf in zip(names, leaves, strict=True):
        inside = unbox(leaf)
        if isinstance(inside, CompactRows):
            check_ids_once(name, inside, ids)
            found.append(Leaf(name, leaf, inside.rows, inside.shape, inside.ids))
        else:
            found.append(Leaf(name, leaf, inside, np.shape(inside) if _is_value(inside) else (), ids.get(name)))
    return TableTree(found, treedef)


def every_table(
    tree: Any, declaration: DimensionNumbersLike, *, token_ids: dict[str, jax.Array] | None = None, params: Any = None
) -> TableTree:
    """The leaves of a tree as tables, for `scale_by_ember`. A leaf that the finder does not find has its vocabulary first.

    A leaf for which the declaration says None is not a table.

    Args:
      tree: parameters or updates.
      declaration: as in `scale_by_ember`.
      token_ids: ids by path, of leaves that are compact or will be.
      params: the parameters, if leaves of `tree` are compact: a compact array does not show the shape of its table.

    Raises:
      ValueError: as in `read_tree`; axes do not fit a leaf; ids are given for stacked tables.
      TypeError: the declaration has the wrong type.
    """
    read, declared = _declared(read_tree(tree, token_ids), declaration, params, "dimension_numbers")
    default = EmberDimensionNumbers() if isinstance(declaration, str) else None
    return _with_axes(read, [numbers or default for numbers in declared.dimension_numbers], declared, "dimension_numbers")


def found_tables(
    tree: Any, declaration: DimensionNumbersLike, *, token_ids: dict[str, jax.Array] | None = None, params: Any = None
) -> TableTree:
    """The leaves of a tree. Tables are those that are declared, or that the finder finds. Arguments and errors: `every_table`."""
    read, declared = _declared(read_tree(tree, token_ids, what="the parameters are"), declaration, params, "tables")
    return _with_axes(read, declared.dimension_numbers, declared, "tables")


def tables_with_ids(read: TableTree, declaration: DimensionNumbersLike, params: Any = None) -> TableTree:
    """The leaves that `read_tree` has read. Tables are those with ids. One that no rule finds has its vocabulary first.

    Raises:
      ValueError: as in `every_table`; the token axis of a leaf with ids is a guess.
      TypeError: the declaration has the wrong type.
    """
    read, declared = _declared(read, declaration, params, "tables")
    with_ids = {leaf.name for leaf in read.leaves if leaf.ids is not None}
    check_axes_are_told(declared, read.names, list(map(_dense, read.leaves)), with_ids, "tables")
    numbers = [
        None if leaf.ids is None else told or EmberDimensionNumbers()
        for leaf, told in zip(read.leaves, declared.dimension_numbers, strict=True)
    ]
    return _with_axes(read, numbers, declared, "tables")


def _declared(read: TableTree, declaration: Any, params: Any, argument: str) -> tuple[TableTree, Declared]:
    """The leaves with the shapes of whole arrays, and what the declaration says of them."""
    if params is not None and any(leaf.ids is not None for leaf in read.leaves):
        whole = read.leaves_of(params, "parameter tree", may_have_more=True)
        read = TableTree(list(map(_with_shape, read.leaves, whole)), read.treedef)
    dense = list(map(_dense, read.leaves))
    return read, read_declaration(declaration, read.treedef.unflatten(dense), read.names, dense, argument)


def _with_axes(read: TableTree, numbers: Sequence[EmberDimensionNumbers | None], declared: Declared, argument: str) -> TableTree:
    """The leaves with dimension numbers as tables."""

    def with_axes(leaf: Leaf, of_leaf: EmberDimensionNumbers | None, told: EmberDimensionNumbers | None) -> Leaf:
        if of_leaf is None:
            return leaf
        axes = table_axes(of_leaf, leaf.shape, leaf.name)
        if leaf.ids is not None:
            check_one_table(leaf.name, leaf.shape, axes)
            check_same_axis(unbox(leaf.box), axes, argument)
        return leaf.as_table(axes, kind_of(leaf.name, leaf.shape, told))

    return TableTree(list(map(with_axes, read.leaves, numbers, declared.dimension_numbers)), read.treedef, finder=declared.finder)


def _with_shape(leaf: Leaf, param: Any) -> Leaf:
    # A `CompactRows` knows the shape of its table.
    is_known = leaf.ids is None or isinstance(unbox(leaf.box), CompactRows)
    return leaf if is_known else dataclasses.replace(leaf, shape=np.shape(unbox(param)))


def _dense(leaf: Leaf) -> Any:
    """The leaf with the shape of its table, if it is compact."""
    if leaf.ids is None:
        return leaf.box
    return rebox(leaf.box, jax.ShapeDtypeStruct(leaf.shape, jnp.result_type(leaf.array)))


def _array_in(leaf: Any) -> Any:
    inside = unbox(leaf)
    return inside.rows if isinstance(inside, CompactRows) else inside


def _in_box(box: Any, value: Any) -> Any:
    inside = unbox(box)
    if isinstance(inside, CompactRows) and not isinstance(value, LinearLeaf):
        value = inside.replaced(value)
    return rebox(box, value)


def _is_value(leaf: Any) -> bool:
    inside = unbox(leaf)
    return hasattr(inside, "shape") or isinstance(inside, numbers.Number)
