"""The axes of the tables that have token ids."""

from typing import Any

import jax

from ._boxes import unbox
from ._declared import DimensionNumbersLike, declared_dimension_numbers
from ._dimension_numbers import EmberDimensionNumbers, TableAxes, table_axes
from ._token_ids import check_distinct, check_known, check_one_table


def axes_by_place(
    ids: dict[str, jax.Array], params: Any, names: list[str], leaves: list[Any], dimension_numbers: DimensionNumbersLike
) -> dict[int, TableAxes]:
    """The axes of the tables that have ids, by their place among the leaves."""
    check_known(ids, names, "the parameters are")
    check_distinct(ids, names)
    default = EmberDimensionNumbers()
    declared = [default] * len(names) if dimension_numbers is None else declared_dimension_numbers(dimension_numbers, params)
    axes = {}
    for place, (name, leaf, numbers) in enumerate(zip(names, leaves, declared, strict=True)):
        if name in ids:
            axes[place] = table_axes(numbers or default, unbox(leaf).shape, name)
            check_one_table(name, unbox(leaf).shape, axes[place])
    return axes
