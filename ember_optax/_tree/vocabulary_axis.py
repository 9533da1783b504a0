"""The token axis of a table, found by the sizes of the model's other tables."""

import contextlib

from .dimension_numbers import EmberDimensionNumbers, table_axes
from .rules import TableMatch

BY_ANOTHER_TABLE = "vocabulary of another table"
_MULTIPLES = (8, 64, 128, 256)


def same_vocabulary(size: int, other: int) -> bool:
    """Whether two sizes are equal, or the larger one is the smaller one padded to the next multiple of 8, 64, 128 or 256.

    A vocabulary is not padded to twice its size.
    """
    small, large = sorted((size, other))
    return small == large or (large < 2 * small and any(large == (small // m + 1) * m for m in _MULTIPLES))


class KnownSizes:
    """The sizes of the vocabularies and of the features of the tables seen so far."""

    def __init__(self):
        self.vocabularies: set[int] = set()
        self.features: set[int] = set()

    def add(self, numbers: EmberDimensionNumbers | None, shape: tuple[int, ...]) -> None:
        """Adds the sizes of a table. It ignores axes that do not fit, which raise later where they are used."""
        with contextlib.suppress(ValueError):
            if numbers is not None:
                axes = table_axes(numbers, shape, "")
                self.vocabularies.update(shape[axis] for axis in axes.token)
                self.features.update(shape[axis] for axis in axes.feature)

    def is_vocabulary(self, size: int, *, padded: bool) -> bool:
        """Whether a size is that of a known vocabulary, or with `padded`, of a padded one.

        A size that is also the number of features of a table does not count. An example is 1024 for a leaf of shape (1024, 50304)
        if there is a table of 1024 codes with 1024 features.
        """
        if size in self.features:
            return False
        vocabularies = self.vocabularies - self.features
        return any(same_vocabulary(size, one) for one in vocabularies) if padded else size in vocabularies

    def telling(self, shape: tuple[int, ...], batch_axes: tuple[int, ...] = ()) -> list[int]:
        """The axes with the size of a vocabulary, or if there is none, those with the size of a padded vocabulary."""
        axes = [axis for axis in range(len(shape)) if axis not in batch_axes]
        exact = [axis for axis in axes if self.is_vocabulary(shape[axis], padded=False)]
        return exact or [axis for axis in axes if self.is_vocabulary(shape[axis], padded=True)]


def resolve_head(match: TableMatch, shape: tuple[int, ...], known: KnownSizes) -> TableMatch:
    """The match of a head with the axis that has the size of a known vocabulary.

    If no axis or several have such a size, it is the usual axis for its name. A doubtful head without a known vocabulary is not a
    table.
    """
    numbers = match.dimension_numbers
    if numbers is None:
        return match
    telling = known.telling(shape, numbers.batch_axes)
    is_known = shape[numbers.token_axis] in known.vocabularies
    if match.is_doubtful and not telling and not is_known:
        return match._replace(dimension_numbers=None)
    if len(telling) == 1 and telling != [numbers.token_axis]:
        told = EmberDimensionNumbers(telling[0], numbers.batch_axes)
        return match._replace(dimension_numbers=told, rule=f"head, {BY_ANOTHER_TABLE}")
    others = [size for axis, size in enumerate(shape) if axis not in (numbers.token_axis, *numbers.batch_axes)]
    is_guess = bool(known.vocabularies) and not telling and not is_known and not known.features.intersection(others)
    return match._replace(is_guess=is_guess)


def resolve_included(match: TableMatch, shape: tuple[int, ...], known: KnownSizes) -> TableMatch:
    """The match of an included leaf with the axis that has the size of a known vocabulary. Its rule says if several have one."""
    axes = known.telling(shape) or [axis for axis, size in enumerate(shape) if size in known.vocabularies]
    if match.dimension_numbers is None or not axes:
        return match
    if len(axes) > 1:
        return match._replace(rule=f"{match.rule}; ambiguous, axes {axes} have a vocabulary's size")
    batch_axes = (0,) if len(shape) == 3 and axes != [0] else ()
    return match._replace(dimension_numbers=EmberDimensionNumbers(axes[0], batch_axes), rule=f"included, {BY_ANOTHER_TABLE}")
