"""Which axis of a table is the vocabulary, as far as the sizes of a model's other tables tell."""

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

from .dimension_numbers import EmberDimensionNumbers, table_axes
from .rules import TableMatch

BY_ANOTHER_TABLE = "vocabulary of another table"


class KnownSizes(NamedTuple):
    """The sizes of the vocabularies and of the features of some tables."""

    vocabularies: set[int]
    features: set[int]


def known_sizes(tables: Iterable[tuple[EmberDimensionNumbers | None, tuple[int, ...]]]) -> KnownSizes:
    """Of leaves, each with its dimension numbers if it is a table, and its shape."""
    known = KnownSizes(set(), set())
    for numbers, shape in tables:
        # Axes that do not fit a leaf are refused where they are used; the finder never fails.
        with contextlib.suppress(ValueError):
            if numbers is not None:
                axes = table_axes(numbers, shape, "")
                known.vocabularies.update(shape[axis] for axis in axes.token)
                known.features.update(shape[axis] for axis in axes.feature)
    return known


def of_head(match: TableMatch, shape: tuple[int, ...], known: KnownSizes) -> TableMatch:
    """The match of a head, with the axis that a known vocabulary tells; that of the rule where none or several might be it.

    A size that some table has for its features too tells nothing: (1024, 50304) beside a table of 1024 codes with 1024 features.
    """
    numbers = match.dimension_numbers
    if numbers is None or not known.vocabularies:
        return match
    axes = [axis for axis in range(len(shape)) if axis not in numbers.batch_axes]
    telling = [axis for axis in axes if shape[axis] in known.vocabularies - known.features]
    if len(telling) == 1 and telling != [numbers.token_axis]:
        return TableMatch(EmberDimensionNumbers(telling[0], numbers.batch_axes), f"head, {BY_ANOTHER_TABLE}", is_head=True)
    is_known = shape[numbers.token_axis] in known.vocabularies
    has_features = any(shape[axis] in known.features for axis in axes if axis != numbers.token_axis)
    return match._replace(is_guess=not is_known and not has_features)


def of_included(match: TableMatch, shape: tuple[int, ...], known: KnownSizes) -> TableMatch:
    """The match of an included leaf, with the axis that a known vocabulary tells, and a word where several may be it."""
    if match.dimension_numbers is None:
        return match
    axes = [axis for axis, size in enumerate(shape) if size in known.vocabularies]
    if len(axes) == 1:
        stacked = len(shape) == 3 and axes != [0]
        return TableMatch(EmberDimensionNumbers(axes[0], (0,) if stacked else ()), f"included, {BY_ANOTHER_TABLE}", is_head=True)
    return match._replace(rule=f"{match.rule}; ambiguous, axes {axes} have a vocabulary's size") if axes else match
