"""Saying what the table finder found: a report for people, and the errors of a model without tables."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from .._math.moments import moment_shapes
from .declared import AUTO, DimensionNumbersLike
from .finder import FinderOptions, Include, find_tables, token_tables
from .inputs import check_tree
from .suspects import doubtful_stacks, guessed_heads, possible_heads
from .tables import Table, TableTree, tables_of

_LARGEST = 5


def describe_token_tables(
    params: Any, *, include: Include = (), exclude: Sequence[str] = (), tables: DimensionNumbersLike = AUTO
) -> str:
    """Tells which parameters are token tables, by which rule, and what that saves.

    Args:
      params: any parameter tree; arrays or `jax.ShapeDtypeStruct`.
      include: as for `token_tables`.
      exclude: as for `token_tables`.
      tables: instead of the two, what `ember` is given as `tables`.

    Returns:
      Text. First a line for each table: path, shape, token and batch axes, what it is (input, head or tied), which argument of
      `ember` is its learning rate, the rule that matched, and the bytes of optimizer state under Ember (4 (V + D) and two
      counters) and under Adam (two moments in the parameter's dtype). Then the largest matrices that are no tables, each with
      the rule that said so; matrices that may be heads; stacks and heads whose axes are in doubt; patterns that matched nothing.

    Raises:
      ValueError: a pattern is not a regular expression, or declared axes do not fit a leaf.
      TypeError: as for `token_tables`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import describe_token_tables
      >>> params = {"wte": {"embedding": jnp.ones((500, 64))}, "wpe": {"embedding": jnp.ones((128, 64))}}
      >>> print(describe_token_tables(params))
      table          shape   token axis  batch axes  kind  rate           rule       Ember bytes  Adam bytes
      wte/embedding  500x64  0           ()          tied  learning_rate  embedding  2,264        256,000
      total                                                                          2,264        256,000
      <BLANKLINE>
      largest matrices left to the body  shape   rule
      wpe/embedding                      128x64  not tokens

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """
    check_tree(params, "params", may_be_empty=True)
    if (include or exclude) and tables != AUTO:
        raise ValueError("describe_token_tables takes include and exclude, or tables, not both: put the patterns into tables.")
    options = FinderOptions(include, exclude) if tables == AUTO else FinderOptions.of(tables)
    declaration = functools.partial(token_tables, include=include, exclude=exclude) if tables == AUTO else tables
    found = tables_of(params, declaration, "found", argument="tables", what="the parameters are")
    if options is None:
        described = [_Described(table, "none" if table.axes is None else "declared") for table in found.tables]
    else:
        matches = find_tables(found.names, [table.box for table in found.tables], options)
        described = [_Described(table, match.rule or "none") for table, match in zip(found.tables, matches, strict=True)]
    taken = [one for one in described if one.table.axes is not None]
    sections = [_table_section(taken) if taken else "no token table found"]
    if others := _largest([one for one in described if one.table.axes is None]):
        header = ("largest matrices left to the body", "shape", "rule")
        sections.append(_align([header, *((one.table.name, _shape(one.table), one.rule) for one in others)]))
    for name, heads in possible_heads(found, options or FinderOptions()).items():
        listed = ", ".join(f"{table.name} {_shape(table)}" for table in heads)
        sections.append(f"no head or embedding found besides {name}; may be one (see include): {listed}")
    for table in doubtful_stacks(found):
        sections.append(f"more tables than tokens, declare the axes of: {table.name} {_shape(table)}")
    for table in guessed_heads(found, options) if options else ():
        assert table.axes is not None
        sections.append(f"token axis {table.axes.token[0]} is a guess by the name, declare it: {table.name} {_shape(table)}")
    if options is not None and (unused := options.unused(found.names)):
        sections.append(f"patterns that match no path: {', '.join(unused)}")
    return "\n\n".join(sections)


def unused_patterns_message(found: TableTree, options: FinderOptions) -> str | None:
    """What to tell a user of whose patterns one matches no path; None if each does."""
    unused = options.unused(found.names)
    if not unused:
        return None
    return (
        f"{', '.join(unused)} of token_tables matches no path. A pattern must match a whole path; "
        f"the largest matrices are {_listed(found)}."
    )


def no_table_message(found: TableTree) -> str:
    """What to tell a user in whose parameters no table was found."""
    message = (
        f"no token table found among the parameters. The largest matrices are {_listed(found)}. Name the tables: "
        f"ember(..., tables=functools.partial(token_tables, include=[r'path/of/the/table'])), or pass a tree of "
        f"EmberDimensionNumbers and None as tables."
    )
    if found.tables and all(name.split("/")[-1].isdigit() for name in found.names):
        message += (
            " These paths are positions in a list, which no rule can recognise: pass a dictionary, for example "
            "{v.path: v.value for v in model.trainable_variables} with Keras."
        )
    return message


class _Described(NamedTuple):
    table: Table
    rule: str


def _table_section(described: list[_Described]) -> str:
    rows, ember_total, adam_total = [], 0, 0
    for table, rule in described:
        assert table.axes is not None
        ember = 4 * sum(math.prod(shape) for shape in moment_shapes(table.shape, table.axes))
        adam = 2 * math.prod(table.shape) * jnp.dtype(table.array.dtype).itemsize
        token = "".join(map(str, table.axes.token))
        rate = "head_learning_rate" if table.kind == "head" else "learning_rate"
        kind = table.kind or "unknown"
        rows.append((table.name, _shape(table), token, str(table.axes.batch), kind, rate, rule, f"{ember:,}", f"{adam:,}"))
        ember_total, adam_total = ember_total + ember, adam_total + adam
    header = ("table", "shape", "token axis", "batch axes", "kind", "rate", "rule", "Ember bytes", "Adam bytes")
    return _align([header, *rows, ("total", "", "", "", "", "", "", f"{ember_total:,}", f"{adam_total:,}")])


def _largest(described: list[_Described]) -> list[_Described]:
    matrices = [one for one in described if len(one.table.shape) > 1]
    return sorted(matrices, key=lambda one: -math.prod(one.table.shape))[:_LARGEST]


def _shape(table: Table) -> str:
    return "x".join(map(str, table.shape))


def _listed(found: TableTree) -> str:
    largest = _largest([_Described(table, "") for table in found.tables])
    return ", ".join(f"{one.table.name!r} {one.table.shape}" for one in largest) or "none: there is no array of rank two or more"


def _align(rows: list[tuple[Any, ...]]) -> str:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell!s:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
