"""`Table`, a leaf of a parameter tree with its path, axes and ids, and `tables_of`, which reads a tree into tables."""

import contextlib
import numbers
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._math.axes import TableAxes
from .boxes import is_box, rebox, unbox
from .compact_rows import CompactRows
from .declared import AUTO, DimensionNumbersLike, check_axes_are_told, read_declaration
from .dimension_numbers import EmberDimensionNumbers, TableKind, table_axes
from .finder import TokenTables
from .kinds import kind_of
from .linear_leaf import LinearLeaf
from .paths import check_distinct, flatten_named, is_complete
from .token_ids import check_ids_once, check_known, check_one_table, check_same_axis


class Table(NamedTuple):
    """One leaf of a tree of parameters or of updates. It is a token table if it has axes.

    Attributes:
      name: the path of the leaf.
      box: the leaf itself, in the box of a library or bare.
      array: the value inside the box; only the rows if there are ids.
      shape: the shape of the whole table.
      axes: the axes of a table; None for a leaf that is not a table, and from `read_tree`.
      ids: the token ids of a compact array; None for a dense one.
      kind: whether it is an input table, a head or both; None if it is not a table, or if the kind is unknown.
    """

    name: str
    box: Any
    array: Any
    shape: tuple[int, ...]
    axes: TableAxes | None = None
    ids: jax.Array | None = None
    kind: TableKind | None = None


class TableTree(NamedTuple):
    """The leaves of a tree, in the order of `jax.tree.leaves` with a box as one leaf, and its structure.

    `feature_mean` and `b2` are those of the `scale_by_ember` whose watched `init` read these tables (`_tree/watching.py`).
    `options` are those of the finder, if it found the tables.
    """

    tables: list[Table]
    treedef: Any
    feature_mean: str | None = None
    options: TokenTables | None = None
    b2: Any = None

    @property
    def names(self) -> list[str]:
        return [table.name for table in self.tables]

    def rebuild(self, values: Iterable[Any]) -> Any:
        """A tree of this structure with one value for each leaf, in the leaf's box. Arrays of rows become `CompactRows` again."""
        return self.treedef.unflatten([_in_box(table.box, value) for table, value in zip(self.tables, values, strict=True)])

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
        leaves, treedef = jax.tree.flatten(tree, is_leaf=is_box)
        owned = [table for table in self.tables if table.axes is not None]
        return TableTree(
            [table._replace(box=box, array=_array_in(box)) for table, box in zip(owned, leaves, strict=True)], treedef
        )


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
    tables = []
    for name, leaf in zip(names, leaves, strict=True):
        inside = unbox(leaf)
        if isinstance(inside, CompactRows):
            check_ids_once(name, inside, ids)
            tables.append(Table(name, leaf, inside.rows, inside.shape, ids=inside.ids))
        else:
            tables.append(Table(name, leaf, inside, np.shape(inside) if _is_value(inside) else (), ids=ids.get(name)))
    return TableTree(tables, treedef)


def tables_of(
    tree: Any,
    declaration: DimensionNumbersLike = AUTO,
    among: Literal["all", "found", "with ids"] = "all",
    *,
    token_ids: dict[str, jax.Array] | None = None,
    params: Any = None,
    argument: str = "tables",
    what: str = "the updates have",
) -> TableTree:
    """The leaves of a tree with their axes, from the declaration, or from the finder. Other leaves have the vocabulary first.

    Args:
      tree: parameters, or updates, or what `read_tree` has read of them.
      declaration: as in `scale_by_ember`.
      among: which leaves are tables: "all" of them, unless the declaration has None; those that are "found" by the finder or
        declared; or those "with ids".
      token_ids: ids by path, of leaves that are compact or will be.
      params: the parameters, if leaves of `tree` are compact: a compact array does not show the shape of its table.
      argument: the name of the declaration, for error messages.
      what: the tree and a verb, for error messages.

    Raises:
      ValueError: as in `read_tree`; axes do not fit a leaf; ids are given for stacked tables or a head whose axis is a guess.
      TypeError: the declaration has the wrong type.
    """
    found = tree if isinstance(tree, TableTree) else read_tree(tree, token_ids, what=what)
    if params is not None and any(table.ids is not None for table in found.tables):
        found = _with_shapes(found, params)
    leaves = list(map(_dense, found.tables))
    declared = read_declaration(declaration, found.treedef.unflatten(leaves), found.names, leaves, argument)
    if among == "with ids":
        with_ids = {table.name for table in found.tables if table.ids is not None}
        check_axes_are_told(declared, found.names, leaves, with_ids, argument)
    takes_all = among == "all" and isinstance(declaration, str)

    def axes(table: Table, dimension_numbers: EmberDimensionNumbers | None) -> TableAxes | None:
        if among == "with ids" and table.ids is None:
            return None
        if dimension_numbers is None and (takes_all or among == "with ids"):
            dimension_numbers = EmberDimensionNumbers()
        return None if dimension_numbers is None else table_axes(dimension_numbers, table.shape, table.name)

    tables = [
        table._replace(axes=axes(table, said), kind=kind_of(table.name, table.shape, said))
        for table, said in zip(found.tables, declared.dimension_numbers, strict=True)
    ]
    for table in tables:
        if table.axes is not None and table.ids is not None:
            check_one_table(table.name, table.shape, table.axes)
            check_same_axis(unbox(table.box), table.axes, argument)
    return TableTree(tables, found.treedef, options=declared.options)


def _with_shapes(found: TableTree, params: Any) -> TableTree:
    """The tables with the shapes of the parameters instead of those of compact arrays."""
    leaves = found.leaves_of(params, "parameter tree", may_have_more=True)
    tables = [
        table if table.ids is None or _knows_its_ids(table) else table._replace(shape=np.shape(unbox(leaf)))
        for table, leaf in zip(found.tables, leaves, strict=True)
    ]
    return TableTree(tables, found.treedef)


def _dense(table: Table) -> Any:
    """The leaf with the shape of its table, if it is compact."""
    if table.ids is None:
        return table.box
    return rebox(table.box, jax.ShapeDtypeStruct(table.shape, jnp.result_type(table.array)))


def _knows_its_ids(table: Table) -> bool:
    return isinstance(unbox(table.box), CompactRows)


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
