"""Reports of what the finder found: `describe_token_tables`, and the error messages for a model without tables."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from .._math.state import moment_bytes
from .decisions import find_tables
from .declared import AUTO, DimensionNumbersLike
from .finder import Include, TokenTables
from .inputs import check_tree
from .rules import first_match
from .suspects import candidates, doubtful_stacks, guessed_axes, is_unknown
from .tables import Leaf, Table, TableTree, found_tables

_LARGEST = 5


def describe_token_tables(
    params: Any, *, include: Include = (), exclude: Sequence[str] = (), tables: DimensionNumbersLike = AUTO
) -> str:
    """Describes which parameters are token tables, which rule found them, and how much memory that saves.

    Args:
      params: any parameter tree; arrays or `jax.ShapeDtypeStruct`.
      include: as for `token_tables`.
      exclude: as for `token_tables`.
      tables: the `tables` argument of `ember`, instead of `include` and `exclude`.

    Returns:
      Text. It begins with a line for each table: path, shape, token and batch axes, kind (input, head or tied), the argument of
      `ember` that is its learning rate, the rule that matched, and the bytes of optimizer state under Ember (4 (V + D) and two
      counters) and under Adam (two moments in the parameter's dtype). Then it lists the largest matrices that are not tables,
      each with its rule, matrices that may be heads, stacks and heads whose axes are doubtful, and patterns that matched nothing.

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
      docs/plain_trees.md
    """
    check_tree(params, "params", may_be_empty=True)
    if (include or exclude) and tables != AUTO:
        raise ValueError("describe_token_tables takes include and exclude, or tables, not both: put the patterns into tables.")
    declaration = TokenTables(include, exclude) if tables == AUTO else tables
    found = found_tables(params, declaration)
    if found.finder is None:
        rules = ["declared" if isinstance(leaf, Table) else "none" for leaf in found.leaves]
    else:
        rules = [match.rule or "none" for match in found.finder.matches]
    rule_of = dict(zip(found.names, rules, strict=True))
    sections = [_table_section(found.tables, rule_of) if found.tables else "no token table found"]
    if others := _largest([leaf for leaf in found.leaves if not isinstance(leaf, Table)]):
        header = ("largest matrices left to the body", "shape", "rule")
        sections.append(_align([header, *((leaf.name, _shape(leaf), rule_of[leaf.name]) for leaf in others)]))
    for leaf, table, axis in candidates(found):
        tokens = "no table has its vocabulary" if table is None else f"axis {axis} has the tokens of {table.name}"
        sections.append(f"may be a table (see include), {tokens}: {leaf.name} {_shape(leaf)}")
    for table in doubtful_stacks(found):
        sections.append(f"more tables than tokens, declare the axes of: {table.name} {_shape(table)}")
    for table in guessed_axes(found):
        sections.append(f"token axis {table.axes.token[0]} is a guess by the name, declare it: {table.name} {_shape(table)}")
    if unused := _unused_patterns(found):
        sections.append(f"patterns that match no path: {', '.join(unused)}")
    return "\n\n".join(sections)


def unused_patterns_message(found: TableTree) -> str | None:
    """The error message if a pattern matches no path; None if every pattern matches one."""
    unused = _unused_patterns(found)
    if not unused:
        return None
    return (
        f"{', '.join(unused)} of token_tables matches no path. A pattern must match a whole path; "
        f"the largest matrices are {_largest_listed(found)}."
    )


def no_table_message(found: TableTree) -> str:
    """The error message if no table was found among the parameters."""
    message = f"no token table found among the parameters. The largest matrices are {_largest_listed(found)}. "
    if found.names and all(map(_is_adapter, found.names)):
        message += (
            "These are adapters (LoRA) alone, so no table is trained: make the body the optimizer. To train tables too, put "
            "them, or some of their rows (row_sparse.train_only_rows), among the trained parameters."
        )
    else:
        message += f"{_advice(_likeliest(found))}A model without tokens has none: train it with the body alone."
    message += " In a configuration that runs with and without tables share, write tables=TokenTables(required=False)."
    if found.leaves and all(name.split("/")[-1].isdigit() for name in found.names):
        message += (
            " These paths are positions in a list, which no rule can recognise: pass a dictionary, for example "
            "{v.path: v.value for v in model.trainable_variables} with Keras."
        )
    return message


def _advice(likely: list[Leaf]) -> str:
    """What to write if these matrices are tables; nothing if there are none."""
    if not likely:
        return ""
    shapes = " and ".join(f"{table.name!r} of shape {table.shape}" for table in likely)
    they = "it is one" if len(likely) == 1 else "they are tables"
    return f"By its shape {shapes} may be one. If {they}: tables={_include_as_code(likely)}. "


def _is_adapter(name: str) -> bool:
    """Whether a part of the path names a low-rank adapter: `lora_a`, `w_lora_b`, `lora_embeddings_a`."""
    return re.search(r"(?<![a-z])(lora|dora)(?![a-z])", name.lower()) is not None


def _unused_patterns(found: TableTree) -> list[str]:
    """The finder's patterns that match no path, each with the name of its argument."""
    if found.finder is None:
        return []
    include, exclude = found.finder.options.include, found.finder.options.exclude
    patterns = [("include", pattern) for pattern in include] + [("exclude", pattern) for pattern in exclude]
    return [f"{argument} {p!r}" for argument, p in patterns if not any(re.fullmatch(p, name) for name in found.names)]


def _likeliest(found: TableTree) -> list[Leaf]:
    """The likeliest tables: the unknown matrix with the largest ratio of sides, and others with the same longer side."""
    matrices = [leaf for leaf in found.leaves if len(leaf.shape) == 2 and min(leaf.shape) > 1]
    unknown = [leaf for leaf in matrices if is_unknown(first_match(leaf.name, 2)._replace(dimension_numbers=None))]
    if not unknown:
        return []
    size = max(max(unknown, key=lambda table: max(table.shape) / min(table.shape)).shape)
    return [table for table in unknown if max(table.shape) == size][:_LARGEST]


def _include_as_code(tables: list[Leaf]) -> str:
    """Code for a finder that includes these tables. It declares the longer axis where the finder would take the other one."""
    patterns = [re.escape(table.name) for table in tables]
    matches = find_tables([t.name for t in tables], [t.array for t in tables], TokenTables(include=patterns))
    axes = [table.shape.index(max(table.shape)) for table in tables]
    if all(
        match.dimension_numbers and match.dimension_numbers.token_axis == axis for match, axis in zip(matches, axes, strict=True)
    ):
        return f"TokenTables(include={patterns!r})"
    declared = ", ".join(f"{p!r}: EmberDimensionNumbers({axis})" for p, axis in zip(patterns, axes, strict=True))
    return f"TokenTables(include={{{declared}}})"


def _table_section(tables: list[Table], rule_of: Mapping[str, str]) -> str:
    rows, ember_total, adam_total = [], 0, 0
    for table in tables:
        ember, rule = moment_bytes(table.shape, table.axes), rule_of[table.name]
        adam = 2 * math.prod(table.shape) * jnp.dtype(table.array.dtype).itemsize
        token = "".join(map(str, table.axes.token))
        rate = "head_learning_rate" if table.kind == "head" else "learning_rate"
        kind = table.kind or "unknown"
        rows.append((table.name, _shape(table), token, str(table.axes.batch), kind, rate, rule, f"{ember:,}", f"{adam:,}"))
        ember_total, adam_total = ember_total + ember, adam_total + adam
    header = ("table", "shape", "token axis", "batch axes", "kind", "rate", "rule", "Ember bytes", "Adam bytes")
    return _align([header, *rows, ("total", "", "", "", "", "", "", f"{ember_total:,}", f"{adam_total:,}")])


def _largest(leaves: Sequence[Leaf]) -> list[Leaf]:
    return sorted([leaf for leaf in leaves if len(leaf.shape) > 1], key=lambda leaf: -math.prod(leaf.shape))[:_LARGEST]


def _shape(leaf: Leaf) -> str:
    return "x".join(map(str, leaf.shape))


def _largest_listed(found: TableTree) -> str:
    largest = ", ".join(f"{leaf.name!r} {leaf.shape}" for leaf in _largest(found.leaves))
    return largest or "none: there is no array of rank two or more"


def _align(rows: list[tuple[Any, ...]]) -> str:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell!s:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
