"""What may be a token table and was not found: said aloud, because nothing would fail and half of the saving would be lost."""

import collections
import re
from collections.abc import Sequence

from .finder import FinderOptions, find_tables
from .tables import Table, TableTree


def possible_heads(found: TableTree, options: FinderOptions) -> dict[str, list[Table]]:
    """Matrices of the body with the sizes of an embedding for which no head was found, by the path of that embedding."""
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


def doubtful_stacks(found: TableTree) -> list[Table]:
    """Stacked tables with more tables than tokens: such as come from `nn.scan` with the layers in the second axis, (V, L, D)."""
    return [
        table
        for table in found.tables
        if table.axes is not None and table.axes.batch and _vocabulary(table) < table.shape[table.axes.batch[0]]
    ]


def suspect_warnings(found: TableTree, options: FinderOptions) -> list[str]:
    """A warning for each embedding without a head and for each doubtful stack, with what to write."""
    warnings = []
    for name, heads in possible_heads(found, options).items():
        paths = [re.escape(leaf.name) for leaf in heads]
        listed = ", ".join(f"{leaf.name!r} of shape {leaf.shape}" for leaf in heads)
        warnings.append(
            f"ember found the embedding {name!r} and no head for it; {listed} has its sizes and is trained by the body. If it is "
            f"the head: tables={_finder(options, include=paths)}; if it is none: tables={_finder(options, exclude=paths)}."
        )
    for table in doubtful_stacks(found):
        path, (first, second, *_) = re.escape(table.name), table.shape
        warnings.append(
            f"ember takes {table.name!r} of shape {table.shape} for {first} stacked tables of {second} tokens each. If it holds "
            f"{second} tables of {first} tokens, as nn.scan stores them, declare it: tables=functools.partial(token_tables, "
            f"include={{{path!r}: EmberDimensionNumbers(0, batch_axes=(1,))}}); if not, declare EmberDimensionNumbers(1, "
            f"batch_axes=(0,)) there."
        )
    return warnings


def _vocabulary(table: Table) -> int:
    assert table.axes is not None
    return table.shape[table.axes.token[0]] if table.axes.token else 1


def _finder(options: FinderOptions, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> str:
    """The call of the finder with more patterns than it had."""
    arguments = {
        "include": [*(pattern.pattern for pattern in options.include), *include],
        "exclude": [*(pattern.pattern for pattern in options.exclude), *exclude],
    }
    written = ", ".join(f"{name}={patterns}" for name, patterns in arguments.items() if patterns)
    return f"functools.partial(token_tables, {written})"
