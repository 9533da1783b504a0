"""Saying what the table finder found: a report for people, and the errors of a model without tables."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ._boxes import unbox
from ._dimension_numbers import EmberDimensionNumbers, table_axes
from ._moments import moment_shapes
from ._paths import flatten_named
from ._tables import Include, TableMatch, compile_exclude, compile_include, match_table, token_tables

_LARGEST = 5


class _Leaf(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: Any
    match: TableMatch


def describe_token_tables(params: Any, *, include: Include = (), exclude: Sequence[str] = ()) -> str:
    """Tells which parameters `token_tables` takes for token tables, by which rule, and what that saves.

    Args:
      params: any parameter tree; arrays or `jax.ShapeDtypeStruct`.
      include: as for `token_tables`.
      exclude: as for `token_tables`.

    Returns:
      Text: a line for each table with path, shape, token and batch axes, the rule that matched, and the bytes of optimizer
      state under Ember (4 (V + D) and two counters) and under Adam (two moments in the parameter's dtype); the
      largest matrices that are no tables, each with the rule that said so; patterns that matched nothing.

    Raises:
      ValueError: a pattern is not a regular expression, or declared axes do not fit a leaf.
      TypeError: as for `token_tables`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import describe_token_tables
      >>> params = {"wte": {"embedding": jnp.ones((500, 64))}, "wpe": {"embedding": jnp.ones((128, 64))}}
      >>> print(describe_token_tables(params))
      table          shape   token axis  batch axes  rule       Ember bytes  Adam bytes
      wte/embedding  500x64  0           ()          embedding  2,264        256,000
      total                                                     2,264        256,000
      <BLANKLINE>
      largest matrices left to the body  shape   rule
      wpe/embedding                      128x64  not tokens

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """
    leaves = _leaves(params, include, exclude)
    tables = [leaf for leaf in leaves if leaf.match.dimension_numbers is not None]
    sections = [_table_section(tables) if tables else "no token table found"]
    if others := _largest_matrices(leaves):
        header = ("largest matrices left to the body", "shape", "rule")
        sections.append(_align([header, *((leaf.name, _shape(leaf), leaf.match.rule or "none") for leaf in others)]))
    if unused := _unused_patterns(leaves, include, exclude):
        sections.append(f"patterns that match no path: {', '.join(unused)}")
    return "\n\n".join(sections)


def check_patterns(tables: Any, params: Any) -> None:
    """Raises ValueError if `tables` is `functools.partial(token_tables, ...)` with a pattern that matches no path."""
    if not (isinstance(tables, functools.partial) and tables.func is token_tables):
        return
    include, exclude = tables.keywords.get("include", ()), tables.keywords.get("exclude", ())
    leaves = _leaves(params, include, exclude)
    if unused := _unused_patterns(leaves, include, exclude):
        raise ValueError(
            f"{', '.join(unused)} of token_tables matches no path. A pattern must match a whole path; "
            f"the largest matrices are {_listed(_largest_matrices(leaves, tables_too=True))}."
        )


def no_table_message(params: Any) -> str:
    """What to tell a user in whose parameters no table was found."""
    leaves = _leaves(params, (), ())
    largest = _largest_matrices(leaves, tables_too=True)
    message = (
        f"no token table found among the parameters. The largest matrices are {_listed(largest)}. Name the tables: "
        f"ember(..., tables=functools.partial(token_tables, include=[r'path/of/the/table'])), or pass a tree of "
        f"EmberDimensionNumbers and None as tables."
    )
    if leaves and all(leaf.name.split("/")[-1].isdigit() for leaf in leaves):
        message += (
            " These paths are positions in a list, which no rule can recognise: pass a dictionary, for example "
            "{v.path: v.value for v in model.trainable_variables} with Keras."
        )
    return message


def _leaves(params: Any, include: Include, exclude: Sequence[str]) -> list[_Leaf]:
    included, excluded = compile_include(include), compile_exclude(exclude)
    names, leaves, _ = flatten_named(params)
    arrays = [(name, unbox(leaf)) for name, leaf in zip(names, leaves, strict=True) if hasattr(unbox(leaf), "shape")]
    return [_Leaf(name, x.shape, x.dtype, match_table(name, x, included, excluded)) for name, x in arrays]


def _table_section(tables: list[_Leaf]) -> str:
    rows, ember_total, adam_total = [], 0, 0
    for leaf in tables:
        dimension_numbers = leaf.match.dimension_numbers or EmberDimensionNumbers()
        axes = table_axes(dimension_numbers, leaf.shape, leaf.name)
        ember = 4 * sum(math.prod(shape) for shape in moment_shapes(leaf.shape, axes))
        adam = 2 * math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
        rows.append((leaf.name, _shape(leaf), str(*axes.token), str(axes.batch), leaf.match.rule, f"{ember:,}", f"{adam:,}"))
        ember_total, adam_total = ember_total + ember, adam_total + adam
    header = ("table", "shape", "token axis", "batch axes", "rule", "Ember bytes", "Adam bytes")
    return _align([header, *rows, ("total", "", "", "", "", f"{ember_total:,}", f"{adam_total:,}")])


def _largest_matrices(leaves: list[_Leaf], *, tables_too: bool = False) -> list[_Leaf]:
    matrices = [leaf for leaf in leaves if len(leaf.shape) > 1 and (tables_too or leaf.match.dimension_numbers is None)]
    return sorted(matrices, key=lambda leaf: -math.prod(leaf.shape))[:_LARGEST]


def _unused_patterns(leaves: list[_Leaf], include: Include, exclude: Sequence[str]) -> list[str]:
    patterns = [("include", pattern) for pattern in compile_include(include)]
    patterns += [("exclude", pattern) for pattern in compile_exclude(exclude)]
    names = [leaf.name for leaf in leaves]
    return [f"{argument} {p.pattern!r}" for argument, p in patterns if not any(p.fullmatch(name) for name in names)]


def _shape(leaf: _Leaf) -> str:
    return "x".join(map(str, leaf.shape))


def _listed(leaves: list[_Leaf]) -> str:
    return ", ".join(f"{leaf.name!r} {leaf.shape}" for leaf in leaves) or "none: there is no array of rank two or more"


def _align(rows: list[tuple[Any, ...]]) -> str:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell!s:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
