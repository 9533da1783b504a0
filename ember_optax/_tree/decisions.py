"""The finder's decision for each leaf, from its name and from the sizes of the other tables."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .boxes import unbox
from .dimension_numbers import EmberDimensionNumbers
from .kinds import is_embedding_name, with_kinds
from .rules import INCLUDED, TableMatch, first_match
from .vocabulary_axis import BY_ANOTHER_TABLE, KnownSizes, resolve_head, resolve_included

if TYPE_CHECKING:
    from .finder import TokenTables


def declared_axes(options: "TokenTables") -> dict[str, EmberDimensionNumbers | None]:
    """The patterns of `include`, each with its dimension numbers or None."""
    return {p: options.include[p] if isinstance(options.include, Mapping) else None for p in options.include}


def find_tables(names: Sequence[str], leaves: Sequence[Any], options: "TokenTables") -> list[TableMatch]:
    """The finder's decision for each leaf: by rules and the sizes of the other tables, then by `include`, then by `exclude`."""
    shapes = [np.shape(unbox(leaf)) if hasattr(unbox(leaf), "shape") else () for leaf in leaves]
    linear = _linear_weights(dict(zip(names, shapes, strict=True)))
    first = [_match_by_name(*leaf, options, linear) for leaf in zip(names, shapes, strict=True)]
    matches, known, certain = list(first), KnownSizes(), KnownSizes()
    for i in sorted(range(len(names)), key=lambda i: _order_of_doubt(names[i], first[i])):
        match = matches[i] = _match_by_sizes(first[i], shapes[i], known)
        if match.rule == f"included, {BY_ANOTHER_TABLE}" and match.dimension_numbers != first[i].dimension_numbers:
            # The axis contradicts the usual layout of the name, so the other table must be known by more than its own layout.
            matches[i] = match._replace(is_guess=not certain.telling(shapes[i]))
        if not matches[i].is_guess:
            known.add(match.dimension_numbers, shapes[i])
        if match.is_head is not None or match.rule == "included" or is_embedding_name(names[i]):
            certain.add(match.dimension_numbers, shapes[i])
    # Excluded tables take part, because their vocabulary is known too. Another optimizer may train them, for example.
    matches = with_kinds(names, shapes, matches)
    excluded = [any(re.fullmatch(pattern, name) for pattern in options.exclude) for name in names]
    return [TableMatch(None, "excluded") if out else match for out, match in zip(excluded, matches, strict=True)]


def _match_by_name(name: str, shape: tuple[int, ...], options: "TokenTables", linear: set[str]) -> TableMatch:
    """The match of a leaf by the user's patterns, or else by the rules for its name."""
    match = first_match(name, len(shape))
    for pattern, declared in declared_axes(options).items():
        if re.fullmatch(pattern, name):
            if declared is not None:
                return TableMatch(declared, "included", None)
            return (
                first_match(name, len(shape), INCLUDED) if match.dimension_numbers is None else match._replace(is_doubtful=False)
            )
    if name in linear and match.dimension_numbers is not None and not match.is_head:
        return TableMatch(None, "a linear layer, it has a bias")
    return match


def _match_by_sizes(match: TableMatch, shape: tuple[int, ...], known: KnownSizes) -> TableMatch:
    if match.rule == "included" or match.is_head is False:
        return match
    return resolve_head(match, shape, known) if match.is_head else resolve_included(match, shape, known)


def _order_of_doubt(name: str, match: TableMatch) -> int:
    """How uncertain the token axis is by the name alone. Tables add their vocabulary to the known sizes in this order."""
    if match.rule == "included" or match.is_head is False:
        return 0
    if match.is_head is None:
        return 1 if is_embedding_name(name) else 5 if match.rule == INCLUDED[0].name else 3
    return 6 if match.is_doubtful else 2 if name.rpartition("/")[2] in ("kernel", "w", "weight") else 4


def _linear_weights(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The paths of the weights of linear layers. They have a bias with one number for each output, and a lookup has none."""
    linear = set()
    for name, shape in shapes.items():
        parent, _, last = name.rpartition("/")
        bias = shapes.get(f"{parent}/b", shapes.get(f"{parent}/bias"))
        output = {"w": -1, "weight": -2}.get(last)
        if bias and output is not None and len(shape) > 1 and bias[-1] == shape[output]:
            linear.add(name)
    return linear
