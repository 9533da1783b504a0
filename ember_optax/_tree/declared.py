"""Reads a user's declaration of dimension numbers (a value, a tree, a function or the finder) and matches it to paths."""

import numbers
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import optax

from .boxes import unbox
from .decisions import find_tables
from .dimension_numbers import EmberDimensionNumbers
from .finder import FinderCall, TokenTables, finder_calls, finder_with
from .inputs import shown
from .paths import check_distinct, flatten_named, is_complete, parent_of
from .vocabulary_axis import KnownSizes

DimensionNumbersTree = Any  # a tree of EmberDimensionNumbers | None: the parameters' structure or a prefix of it
DimensionNumbersLike = (
    Literal["auto"] | EmberDimensionNumbers | DimensionNumbersTree | Callable[[optax.Params], DimensionNumbersTree]
)
# A word instead of None: optax.inject_hyperparams takes a function for a schedule, and most functions then return None.
AUTO: Literal["auto"] = "auto"


class Declared(NamedTuple):
    """A declaration that was read.

    Attributes:
      dimension_numbers: one entry for each leaf of the tree.
      finder: the call of the finder, if the declaration called it on this tree; None for any other declaration.
    """

    dimension_numbers: list[EmberDimensionNumbers | None]
    finder: FinderCall | None = None


def read_declaration(
    declaration: DimensionNumbersLike, tree: Any, names: Sequence[str], leaves: Sequence[Any], argument: str
) -> Declared:
    """The dimension numbers that a declaration gives each leaf of a tree, in the order of `jax.tree.leaves`. A box is one leaf.

    A declared tree is matched by path and not by structure: a library may show parameters inside boxes at `init` and bare at
    `update`, and `optax.partition` replaces some by `MaskedNode`.

    Args:
      declaration: one value for every leaf, a tree or prefix tree of values, a function from `tree` to such a tree, or "auto" for
        what `token_tables` finds.
      tree: parameters, updates, or either with `optax.MaskedNode` in it.
      names: the paths of its leaves.
      leaves: its leaves.
      argument: the name of the argument that declares, for error messages.

    Raises:
      TypeError: a declared value is neither `EmberDimensionNumbers` nor None; the declaration as a whole is None.
      ValueError: a leaf has no entry in the declared tree, or an entry has no leaf.
    """
    check_declaration(declaration, argument)
    if isinstance(declaration, EmberDimensionNumbers):
        return Declared([declaration] * len(names))
    if isinstance(declaration, str | TokenTables):
        options = declaration if isinstance(declaration, TokenTables) else TokenTables()
        matches = find_tables(names, leaves, options)
        return Declared([match.dimension_numbers for match in matches], FinderCall(list(names), options, matches))
    finder = None
    if callable(declaration):
        with finder_calls() as calls:
            declaration = declaration(tree)
        finder = next((call for call in calls if call.names == names), None)
    entries, values, _ = flatten_named(declaration, is_leaf=lambda x: x is None)
    check_distinct(entries)
    declared = dict(zip(entries, values, strict=True))
    for name, value in declared.items():
        _check_value(name, value, argument)
    owners = [_owner(name, declared, argument) for name in names]
    _check_all_used(names, owners, declared, tree)
    return Declared([declared[owner] for owner in owners], finder)


def check_axes_are_told(
    declared: Declared, names: Sequence[str], leaves: Sequence[Any], of: Container[str], argument: str
) -> None:
    """Raises if the token axis of one of the leaves `of` is a guess, or if sizes of other tables contradict it.

    Raises:
      ValueError: the token axis is unknown or wrong. The message says what to declare.
    """
    if declared.finder is None:
        return
    matches = declared.finder.matches
    shapes = [np.shape(unbox(leaf)) for leaf in leaves]
    known = KnownSizes()
    for match, shape in zip(matches, shapes, strict=True):
        known.add(match.dimension_numbers, shape)
    for name, shape, match, said in zip(names, shapes, matches, declared.dimension_numbers, strict=True):
        if name not in of or said != match.dimension_numbers:
            continue
        axis, reason = 0, ""
        telling = [axis for axis, size in enumerate(shape) if size in known.vocabularies]
        if said is None and telling and 0 not in telling:
            axis, reason = telling[0], "which has the vocabulary of another table; axis 0 is for what no rule finds"
        elif said is not None and match.is_guess:
            axis, reason = said.token_axis, "as is usual under this name; no other table has one of its sizes"
        if reason:
            raise ValueError(
                f"rows of {name!r} of shape {shape} are asked for, but not along which axis. If its {shape[axis]} tokens are in "
                f"axis {axis} ({reason}), declare it: {argument}={finder_with(name, axis)}; if not, with the other axis. Pass "
                f"the same as tables to ember."
            )


def check_declaration(declaration: Any, argument: str) -> None:
    """Raises if a value cannot be a declaration."""
    if declaration is None:
        raise TypeError(
            f"{argument} is None. Leave it out to use the finder (token_tables). If you passed a function, "
            f"optax.inject_hyperparams took it for a schedule and called it with the step: name it in "
            f"static_args=({argument!r},)."
        )
    if isinstance(declaration, type):
        raise TypeError(
            f"{argument} is the class {declaration.__name__}; write "
            + (
                "TokenTables(), with parentheses."
                if declaration is TokenTables
                else "EmberDimensionNumbers() for axis 0 of every table."
            )
        )
    if isinstance(declaration, numbers.Number | Iterator) or hasattr(declaration, "shape"):
        raise TypeError(
            f"{argument} must declare tables by EmberDimensionNumbers, a tree of them and None, or a function, got "
            f"{shown(declaration)}. If you passed a function, optax.inject_hyperparams called it with the step: name it in "
            f"static_args=({argument!r},)."
        )
    if (
        isinstance(declaration, list | tuple | set | frozenset)
        and declaration
        and all(isinstance(one, str) for one in declaration)
    ):
        raise TypeError(
            f"{argument} holds the text {', '.join(map(repr, sorted(declaration)))}. Patterns of paths go to the finder: "
            f"{argument}=TokenTables(include={sorted(declaration)!r})."
        )
    if isinstance(declaration, str) and declaration != AUTO:
        raise TypeError(
            f"{argument} is the text {declaration!r}. Patterns of paths go to the finder: "
            f"{argument}=TokenTables(include=[{declaration!r}])."
        )


def _check_value(name: str, value: Any, argument: str) -> None:
    if value is None or isinstance(value, EmberDimensionNumbers):
        return
    hint = ""
    if isinstance(value, str):
        hint = f" Patterns of paths go to the finder: {argument}=TokenTables(include=[{value!r}])."
    raise TypeError(
        f"{argument} must have EmberDimensionNumbers or None for {name!r}, got {shown(value)}; write EmberDimensionNumbers(...) "
        f"with the axes of a table, None for what is no table.{hint}"
    )


def _owner(name: str, declared: dict[str, Any], argument: str) -> str:
    """The path of the entry that declares a leaf: the leaf's own path, or the nearest declared path above it."""
    owner = name
    while owner not in declared:
        if not owner:
            raise ValueError(
                f"{argument} has no entry for parameter {name!r}; its entries are {sorted(declared)}. "
                f"Give it EmberDimensionNumbers(...) or None."
            )
        owner = parent_of(owner)
    return owner


def _check_all_used(names: Sequence[str], owners: Sequence[str], declared: dict[str, Any], tree: Any) -> None:
    used = set(owners)
    unused = [name for name, value in declared.items() if value is not None and name not in used]
    if unused and is_complete(tree):
        raise ValueError(f"dimension numbers are declared for {unused}, but the parameters are {list(names)}; correct the path.")
