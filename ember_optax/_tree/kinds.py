"""What a token table is: an input table, a head, or one table that is both."""

from collections.abc import Sequence

from .dimension_numbers import EmberDimensionNumbers, TableKind
from .rules import TableMatch, first_match


def with_kinds(matches: Sequence[TableMatch], shapes: Sequence[tuple[int, ...]]) -> list[TableMatch]:
    """Says of each table that was found what it is, unless its declaration did.

    An embedding is tied where no head has its vocabulary. A model without any head looks the same, and is trained the same.
    """
    heads = {_vocabulary(match, shape) for match, shape in zip(matches, shapes, strict=True) if match.is_head}

    def with_kind(match: TableMatch, shape: tuple[int, ...]) -> TableMatch:
        numbers = match.dimension_numbers
        if numbers is None or numbers.kind is not None:
            return match
        kind: TableKind = "head" if match.is_head else "input" if _vocabulary(match, shape) in heads else "tied"
        return match._replace(dimension_numbers=EmberDimensionNumbers(numbers.token_axis, numbers.batch_axes, kind))

    return list(map(with_kind, matches, shapes))


def kind_of(name: str, shape: tuple[int, ...], declared: EmberDimensionNumbers | None) -> TableKind | None:
    """What a declared table is: by its declaration, else by its name, else unknown."""
    if declared is None or declared.kind is not None:
        return None if declared is None else declared.kind
    match = first_match(name, len(shape))
    if match.dimension_numbers is None:
        return None
    return "head" if match.is_head else "input"


def _vocabulary(match: TableMatch, shape: tuple[int, ...]) -> int | None:
    numbers = match.dimension_numbers
    return None if numbers is None or not -len(shape) <= numbers.token_axis < len(shape) else shape[numbers.token_axis]
