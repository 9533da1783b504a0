"""Warnings of leaves that may be token tables and were not found. Without a warning, half of the saving is silently lost."""

import collections
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .decisions import declared_axes
from .dimension_numbers import EmberDimensionNumbers
from .finder import TokenTables
from .kinds import is_embedding_name
from .paths import is_complete
from .rules import HEAD_NAME, TableMatch, first_match, spelled
from .tables import Leaf, Table, TableTree
from .vocabulary_axis import same_vocabulary

# A warning points to the user's line, not to a line of these libraries.
_LIBRARIES = ("ember_optax", "optax", "jax", "flax", "equinox", "chex", "contextlib", "functools")
_HEADS = re.compile(r"(.*[/_])?heads?([/_].*)?")
_ONE_BY_ONE = 12


class Candidate(NamedTuple):
    """A matrix of the body with the vocabulary of a table, padded or not, along this axis.

    `table` is None for a matrix with the name of a head in an incomplete tree, whose embedding may be frozen, for example.
    """

    leaf: Leaf
    table: Table | None
    axis: int


def candidates(found: TableTree) -> list[Candidate]:
    """The matrices that match no rule and that have the vocabulary of a table, in the order of the parameters."""
    if found.finder is None:
        return []
    owners = {table.num_tokens: table for table in reversed(found.tables) if len(table.shape) > 1}
    features = {table.shape[axis] for table in found.tables for axis in table.axes.feature}
    rest = [
        leaf
        for leaf, match in zip(found.leaves, found.finder.matches, strict=True)
        if not isinstance(leaf, Table) and is_unknown(match) and 2 <= len(leaf.shape) <= 3
    ]
    # A padded size may be another size of the model by chance, for example that of the feed-forward layers, which are several.
    users = collections.defaultdict(set)
    for leaf in rest:
        for size in leaf.shape:
            users[size].add(_without_numbers(leaf.name))
    complete = is_complete(found.treedef.unflatten(found.names))

    def of(leaf: Leaf) -> Candidate | None:
        for axis, size in enumerate(leaf.shape):
            if size in owners and (size not in features or _HEADS.fullmatch(spelled(leaf.name))):
                return Candidate(leaf, owners[size], axis)
        for axis, size in enumerate(leaf.shape):
            for owner, table in owners.items():
                is_padded = same_vocabulary(size, owner) and size not in features and len(users[size]) == 1
                if is_padded and (_is_named_like_a_table(leaf) or (features.intersection(leaf.shape) and size <= 1.25 * owner)):
                    return Candidate(leaf, table, axis)
        usual = first_match(leaf.name, len(leaf.shape))
        if usual.is_head and usual.dimension_numbers is not None and not complete:
            return Candidate(leaf, None, usual.dimension_numbers.token_axis)
        return None

    return [candidate for candidate in map(of, rest) if candidate is not None]


def _is_named_like_a_table(leaf: Leaf) -> bool:
    return bool(HEAD_NAME.fullmatch(spelled(leaf.name))) or is_embedding_name(leaf.name)


def is_unknown(match: TableMatch) -> bool:
    """Whether no rule decided on a leaf."""
    return match.dimension_numbers is None and (match.rule is None or match.is_doubtful)


def heads_alone(found: TableTree) -> list[Table]:
    """All tables, if each has the name of a head and no embedding was found or excluded; else an empty list.

    The embedding of a padded head may have another size, and then only its name could identify it.
    """
    if found.finder is None:
        return []
    by_name = [first_match(leaf.name, len(leaf.shape)) for leaf in found.leaves]
    matches = [*by_name, *found.finder.matches]
    return [] if any(match.dimension_numbers is not None and not match.is_head for match in matches) else found.tables


def doubtful_stacks(found: TableTree) -> list[Table]:
    """Stacked tables with more tables than tokens, such as those of `nn.scan` with the layers in the second axis, (V, L, D)."""
    return [table for table in found.tables if table.axes.batch and table.num_tokens < table.shape[table.axes.batch[0]]]


def guessed_axes(found: TableTree, *, included: bool | None = None) -> list[Table]:
    """Tables whose token axis is the usual one for their name, and whose vocabulary no other table has."""
    if found.finder is None:
        return []
    return [
        leaf
        for leaf, match in zip(found.leaves, found.finder.matches, strict=True)
        if match.is_guess and isinstance(leaf, Table) and (included is None or included == (match.is_head is None))
    ]


def warn_of_suspects(found: TableTree, caller: str) -> None:
    """Warns once of all tables that the finder may have missed or may have read along the wrong axis.

    The dense step of `ember` is the same along either axis, so the axis of a head does not matter to it.
    """
    is_ember = caller == "ember"
    parts = _candidate_messages(found, "ember leaves {} to the body" if is_ember else f"{caller} leaves {{}} out")
    parts += _guess_messages(found, caller, guessed_axes(found, included=True if is_ember else None))
    parts += _stack_messages(found) if is_ember else []
    if parts:
        _warn_the_user("\n".join(parts))


def _warn_the_user(message: str) -> None:
    """Warns at the user's line that called this library, directly or through Optax, JAX or a library of layers."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame = frame.f_back
    names = frame.f_globals
    registry = names.setdefault("__warningregistry__", {})
    warnings.warn_explicit(
        message, UserWarning, frame.f_code.co_filename, frame.f_lineno, names.get("__name__", "<unknown>"), registry
    )


def _candidate_messages(found: TableTree, treated: str) -> list[str]:
    groups: dict[str, list[Candidate]] = collections.defaultdict(list)
    for one in candidates(found):
        groups[_without_numbers(one.leaf.name)].append(one)
    if not groups:
        return []
    sentences, likely, others = [], {}, {}
    for group in groups.values():
        more = len(group) - 1 if len(group) > _ONE_BY_ONE else 0
        for one in group[:1] if more else group:
            also = f"; so have {more} with other numbers" if more else ""
            sentences.append(f"{_candidate_sentence(one)}{also}.")
            name, is_likely = one.leaf.name, _is_named_like_a_table(one.leaf)
            pattern = r"\d+".join(map(re.escape, re.split(r"\d+", name))) if more else re.escape(name)
            (likely if is_likely else others)[pattern] = EmberDimensionNumbers(
                one.axis, (0,) if len(one.leaf.shape) == 3 and one.axis else ()
            )
    patterns = [*likely, *others]
    if not likely:
        likely, others = others, {}
    is_one = len(patterns) == 1
    them, names = ("it", "its name") if is_one else ("them", "their names")
    what = "it is a table" if is_one else "they are tables" if not others else "only those that are named like tables are tables"
    return [
        f"{' '.join(sentences)} No rule takes {them} by {names} alone, so {treated.format(them)}. If {what}: "
        f"tables={_finder_as_code(found, include=likely, exclude=list(others))}. If not: "
        f"tables={_finder_as_code(found, exclude=patterns)}."
    ]


def _candidate_sentence(one: Candidate) -> str:
    if one.table is None:
        return f"{one.leaf.name!r} of shape {one.leaf.shape} may be a head, but these parameters have no table of its vocabulary"
    size, vocabulary = one.leaf.shape[one.axis], one.table.num_tokens
    padded = "" if size == vocabulary else f", padded to {size}" if size > vocabulary else f", without the padding: {size}"
    return f"{one.leaf.name!r} of shape {one.leaf.shape} has the {vocabulary} tokens of {one.table.name!r}{padded}"


def _guess_messages(found: TableTree, caller: str, tables: list[Table]) -> list[str]:
    messages = []
    for table in tables:
        axis = table.axes.token[0]
        declared = {re.escape(table.name): EmberDimensionNumbers(axis, table.axes.batch)}
        messages.append(
            f"{caller} takes {table.name!r} of shape {table.shape} for a table of {table.shape[axis]} tokens in axis {axis}, as "
            f"is usual under this name; no other table confirms it. If that is right, declare it: "
            f"tables={_finder_as_code(found, include=declared, declare=True)}; if not, with the other axis."
        )
    return messages


def _stack_messages(found: TableTree) -> list[str]:
    messages = []
    stacks = doubtful_stacks(found)
    declared = {re.escape(table.name): EmberDimensionNumbers(0, (1,)) for table in stacks}
    for table in stacks:
        first, second, *_ = table.shape
        messages.append(
            f"ember takes {table.name!r} of shape {table.shape} for {first} stacked tables of {second} tokens each. If it holds "
            f"{second} tables of {first} tokens, as nn.scan stores them, declare it: "
            f"tables={_finder_as_code(found, include=declared, declare=True)}; if not, declare EmberDimensionNumbers(1, "
            f"batch_axes=(0,)) there."
        )
    return messages


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _finder_as_code(
    found: TableTree,
    *,
    include: Mapping[str, EmberDimensionNumbers] | None = None,
    exclude: Sequence[str] = (),
    declare: bool = False,
) -> str:
    """Code for the finder with more patterns than it had. It has axes if one of the patterns has or needs them."""

    def first_axes(pattern: str) -> EmberDimensionNumbers:
        """The axes of the first table that an undeclared pattern matches."""
        axes = next(table.axes for table in found.tables if re.fullmatch(pattern, table.name))
        return EmberDimensionNumbers(axes.token[0], axes.batch)

    options = found.finder.options if found.finder else TokenTables()
    merged = declared_axes(options) | dict(include or {})
    arguments = {"include": "", "exclude": ""}
    if declare or any(declared_axes(options).values()):
        numbers = {pattern: declared or first_axes(pattern) for pattern, declared in merged.items()}
        arguments["include"] = "{" + ", ".join(f"{pattern!r}: {_numbers_as_code(n)}" for pattern, n in numbers.items()) + "}"
    elif merged:
        arguments["include"] = repr(list(merged))
    if patterns := [*options.exclude, *exclude]:
        arguments["exclude"] = repr(patterns)
    written = ", ".join(f"{name}={patterns}" for name, patterns in arguments.items() if patterns)
    return f"TokenTables({written})"


def _numbers_as_code(numbers: EmberDimensionNumbers) -> str:
    batch = f", batch_axes={numbers.batch_axes}" if numbers.batch_axes else ""
    kind = f", kind={numbers.kind!r}" if numbers.kind else ""
    return f"EmberDimensionNumbers({numbers.token_axis}{batch}{kind})"
