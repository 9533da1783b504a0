"""Reading a user's declaration of dimension numbers: a value, a tree or a function, matched to parameters by path."""

from collections.abc import Callable
from typing import Any

import optax

from ._dimension_numbers import EmberDimensionNumbers
from ._paths import flatten_named, is_complete

DimensionNumbersTree = Any  # a tree of EmberDimensionNumbers | None: the parameters' structure or a prefix of it
DimensionNumbersLike = EmberDimensionNumbers | DimensionNumbersTree | Callable[[optax.Params], DimensionNumbersTree] | None


def declared_dimension_numbers(declaration: DimensionNumbersLike, tree: Any) -> list[EmberDimensionNumbers | None]:
    """What a declaration says of each leaf of a tree, in the order of `jax.tree.leaves` with a box as one leaf.

    A declared tree is matched by path and not by structure: a library may show parameters inside boxes at `init` and bare at
    `update`, and `optax.partition` replaces some by `MaskedNode`.

    Args:
      declaration: one value for every leaf, a tree or prefix tree of values, or a function from `tree` to such a tree.
      tree: parameters, updates, or either with `optax.MaskedNode` in it.

    Returns:
      One entry for each leaf of `tree`.

    Raises:
      TypeError: a declared value is neither `EmberDimensionNumbers` nor None.
      ValueError: a leaf has no entry in the declared tree, or an entry has no leaf.
    """
    names, _, _ = flatten_named(tree)
    if declaration is None or isinstance(declaration, EmberDimensionNumbers):
        return [declaration] * len(names)
    if callable(declaration):
        declaration = declaration(tree)
    entries, values, _ = flatten_named(declaration, is_leaf=lambda x: x is None)
    declared = dict(zip(entries, values, strict=True))
    for spelled in (entries, names):
        if len(set(spelled)) < len(spelled):
            twice = sorted({name for name in spelled if spelled.count(name) > 1})
            raise ValueError(f"paths {twice} stand for more than one leaf each (a leading 'params' is dropped); rename the keys.")
    for name, value in declared.items():
        if value is not None and not isinstance(value, EmberDimensionNumbers):
            raise TypeError(
                f"dimension numbers for {name!r} must be EmberDimensionNumbers or None, "
                f"got {value!r} of type {type(value).__name__}."
            )
    owners = [_owner(name, declared) for name in names]
    _check_all_used(names, owners, declared, tree)
    return [declared[owner] for owner in owners]


def _owner(name: str, declared: dict[str, Any]) -> str:
    """The entry that speaks for a leaf: its own path or the nearest declared one above it."""
    owner = name
    while owner not in declared:
        if not owner:
            raise ValueError(
                f"the tree of dimension numbers has no entry for parameter {name!r}; its entries are {sorted(declared)}. "
                f"Give it EmberDimensionNumbers(...) or None."
            )
        owner = owner.rpartition("/")[0]
    return owner


def _check_all_used(names: list[str], owners: list[str], declared: dict[str, Any], tree: Any) -> None:
    used = set(owners)
    unused = [name for name, value in declared.items() if value is not None and name not in used]
    if unused and is_complete(tree):
        raise ValueError(f"dimension numbers are declared for {unused}, but the parameters are {names}; correct the path.")
