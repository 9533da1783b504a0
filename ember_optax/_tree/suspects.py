"""What may be a token table and was not found: said aloud, because nothing would fail and half of the saving would be lost."""

import collections
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from .dimension_numbers import EmberDimensionNumbers
from .finder import FinderOptions, find_tables
from .inputs import listed
from .tables import Table, TableTree


def possible_heads(found: TableTree, options: FinderOptions) -> dict[str, list[Table]]:
    """Matrices of the body with the sizes of a table that is alone with its vocabulary, by the path of that table."""
    matches = find_tables(found.names, [table.box for table in found.tables], options)
    unknown = [table for table, match in zip(found.tables, matches, strict=True) if match.rule is None and table.axes is None]
    tables = [table for table in found.tables if table.axes is not None]
    with_vocabulary = collections.Counter(map(_vocabulary, tables))
    heads = {}
    for table in tables:
        alone = with_vocabulary[_vocabulary(table)] == 1
        if alone and len(table.shape) == 2 and len(set(table.shape)) == 2:
            heads[table.name] = [leaf for leaf in unknown if sorted(leaf.shape) == sorted(table.shape)]
    return {name: leaves for name, leaves in heads.items() if leaves}


def heads_alone(found: TableTree, options: FinderOptions) -> list[Table]:
    """All tables, where each is a head by its name, and no embedding was found or excluded.

    The embedding of a padded head has another size, so that nothing but its name could tell.
    """
    boxes = [table.box for table in found.tables]
    matches = [*find_tables(found.names, boxes, options), *find_tables(found.names, boxes, FinderOptions())]
    if any(match.dimension_numbers is not None and not match.is_head for match in matches):
        return []
    return [table for table in found.tables if table.axes is not None]


def doubtful_stacks(found: TableTree) -> list[Table]:
    """Stacked tables with more tables than tokens: such as come from `nn.scan` with the layers in the second axis, (V, L, D)."""
    return [
        table
        for table in found.tables
        if table.axes is not None and table.axes.batch and _vocabulary(table) < table.shape[table.axes.batch[0]]
    ]


def guessed_heads(found: TableTree, options: FinderOptions) -> list[Table]:
    """Heads whose token axis is the usual one of their name, and of no size that another table has."""
    matches = find_tables(found.names, [table.box for table in found.tables], options)
    return [table for table, match in zip(found.tables, matches, strict=True) if match.is_guess and table.axes is not None]


def warn_of_suspects(found: TableTree, declaration: Any, caller: str) -> None:
    """Warns of what a function that finds for itself may have missed or read along the wrong axis, though `ember` was told.

    `ember` itself warns of the first at `init`, and does not mind the second: its dense step is the same along either axis.
    """
    if (options := FinderOptions.of(declaration)) is None:
        return
    for message in [*_of_heads(found, options, caller, "no tables to it"), *_of_guesses(found, options, caller)]:
        warnings.warn(message, stacklevel=4)


def suspect_warnings(found: TableTree, options: FinderOptions) -> list[str]:
    """The warnings of `ember`: for each table without a partner and for each doubtful stack, with what to write."""
    return [*_of_heads(found, options, "ember", "trained by the body"), *_of_stacks(found, options)]


def _of_heads(found: TableTree, options: FinderOptions, caller: str, treated: str) -> list[str]:
    messages = []
    for name, heads in possible_heads(found, options).items():
        paths = [re.escape(leaf.name) for leaf in heads]
        candidates = listed([f"{leaf.name!r} of shape {leaf.shape}" for leaf in heads])
        what = "it is one" if len(heads) == 1 else "one of these is, name it alone, for example the first"
        vocabulary = found.tables[found.names.index(name)]
        axis = heads[0].shape.index(_vocabulary(vocabulary))
        messages.append(
            f"{caller} found the token table {name!r} and no other one of its vocabulary, a head for an embedding or an "
            f"embedding for a head; of its sizes, and {treated}: {candidates}. If {what}: "
            f"tables={_finder(found, options, include={paths[0]: EmberDimensionNumbers(axis)})}; if none is: "
            f"tables={_finder(found, options, exclude=paths)}."
        )
    return messages


def _of_guesses(found: TableTree, options: FinderOptions, caller: str) -> list[str]:
    messages = []
    for table in guessed_heads(found, options):
        assert table.axes is not None
        axis = table.axes.token[0]
        declared = {re.escape(table.name): EmberDimensionNumbers(axis, table.axes.batch)}
        messages.append(
            f"{caller} takes {table.name!r} of shape {table.shape} for a head of {table.shape[axis]} tokens in axis {axis}, as "
            f"is usual under this name; no other table has a vocabulary of one of these sizes. If that is right, declare it: "
            f"tables={_finder(found, options, include=declared, declare=True)}; if not, with the other axis."
        )
    return messages


def _of_stacks(found: TableTree, options: FinderOptions) -> list[str]:
    messages = []
    stacks = doubtful_stacks(found)
    declared = {re.escape(table.name): EmberDimensionNumbers(0, (1,)) for table in stacks}
    for table in stacks:
        first, second, *_ = table.shape
        messages.append(
            f"ember takes {table.name!r} of shape {table.shape} for {first} stacked tables of {second} tokens each. If it holds "
            f"{second} tables of {first} tokens, as nn.scan stores them, declare it: "
            f"tables={_finder(found, options, include=declared, declare=True)}; if not, declare EmberDimensionNumbers(1, "
            f"batch_axes=(0,)) there."
        )
    return messages


def _vocabulary(table: Table) -> int:
    assert table.axes is not None
    return table.shape[table.axes.token[0]] if table.axes.token else 1


def _finder(
    found: TableTree,
    options: FinderOptions,
    *,
    include: Mapping[str, EmberDimensionNumbers] | None = None,
    exclude: Sequence[str] = (),
    declare: bool = False,
) -> str:
    """The call of the finder with more patterns than it had; with axes where one of them declares some, or has to."""
    merged = {pattern.pattern: declared for pattern, declared in options.include.items()} | dict(include or {})
    arguments = {"include": "", "exclude": ""}
    if declare or any(options.include.values()):
        numbers = {pattern: declared or _numbers_of(found, pattern) for pattern, declared in merged.items()}
        arguments["include"] = "{" + ", ".join(f"{pattern!r}: {_written(n)}" for pattern, n in numbers.items()) + "}"
    elif merged:
        arguments["include"] = repr(list(merged))
    if patterns := [*(pattern.pattern for pattern in options.exclude), *exclude]:
        arguments["exclude"] = repr(patterns)
    written = ", ".join(f"{name}={patterns}" for name, patterns in arguments.items() if patterns)
    return f"functools.partial(token_tables, {written})"


def _numbers_of(found: TableTree, pattern: str) -> EmberDimensionNumbers:
    """The axes of the first table that an undeclared pattern matches."""
    axes = next(table.axes for table in found.tables if re.fullmatch(pattern, table.name) and table.axes is not None)
    return EmberDimensionNumbers(axes.token[0], axes.batch)


def _written(numbers: EmberDimensionNumbers) -> str:
    batch = f", batch_axes={numbers.batch_axes}" if numbers.batch_axes else ""
    return f"EmberDimensionNumbers({numbers.token_axis}{batch})"
