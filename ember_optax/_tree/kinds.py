"""The kind of a token table: an input table, a head, or one table that is both."""

import re
from collections.abc import Sequence

from .dimension_numbers import EmberDimensionNumbers, TableKind
from .rules import HEAD_NAME, TableMatch, first_match, spelled
from .vocabulary_axis import same_vocabulary

_EMBEDDING_NAME = re.compile(r"(.*[/_])?(emb|tok|vocab|word|wte)[^/]*(/.*)?")


def with_kinds(names: Sequence[str], shapes: Sequence[tuple[int, ...]], matches: Sequence[TableMatch]) -> list[TableMatch]:
    """The matches with the kind of each table, unless its declaration gives the kind.

    An embedding is "tied" if no head has its vocabulary. A model without a head looks the same, and is trained the same.
    """
    leaves = list(zip(names, shapes, matches, strict=True))
    # The axis and the vocabulary of each table that is known to be an embedding or a head.
    embeddings: list[tuple[int, int]] = []
    heads: list[int] = []
    kinds: list[TableKind | None] = [None] * len(leaves)

    def decide(i: int, is_head: bool) -> None:
        axis, vocabulary = _token_axis_and_size(leaves[i])
        heads.append(vocabulary) if is_head else embeddings.append((axis, vocabulary))
        kinds[i] = "head" if is_head else "input"

    undecided = []
    for i, leaf in enumerate(leaves):
        if _token_axis_and_size(leaf) == _NONE:
            continue
        if (is_head := _is_head_by_name(leaf)) is None:
            undecided.append(i)
        else:
            decide(i, is_head)
    # A table with another layout than an embedding of its vocabulary is a head. With the same layout it may be either.
    for i in undecided:
        axis, vocabulary = _token_axis_and_size(leaves[i])
        layouts = {one for one, size in embeddings if same_vocabulary(size, vocabulary)}
        if axis not in layouts:
            decide(i, is_head=bool(layouts))

    def finished(match: TableMatch, kind: TableKind | None) -> TableMatch:
        numbers = match.dimension_numbers
        if numbers is None or numbers.kind is not None or kind is None:
            return match
        return match._replace(dimension_numbers=EmberDimensionNumbers(numbers.token_axis, numbers.batch_axes, kind))

    for i, leaf in enumerate(leaves):
        if kinds[i] == "input" and not any(same_vocabulary(_token_axis_and_size(leaf)[1], size) for size in heads):
            kinds[i] = "tied"
    return list(map(finished, matches, kinds))


def is_embedding_name(name: str) -> bool:
    """Whether the name of an included leaf is that of an embedding."""
    return bool(_EMBEDDING_NAME.fullmatch(spelled(name))) and not HEAD_NAME.fullmatch(spelled(name))


def kind_of(name: str, shape: tuple[int, ...], declared: EmberDimensionNumbers | None) -> TableKind | None:
    """The kind of a declared table by its declaration, or else by its name. None if it is unknown."""
    if declared is None or declared.kind is not None:
        return None if declared is None else declared.kind
    match = first_match(name, len(shape))
    if match.dimension_numbers is None:
        return None
    return "head" if match.is_head else "input"


_Leaf = tuple[str, tuple[int, ...], TableMatch]
_NONE = (-1, -1)


def _token_axis_and_size(leaf: _Leaf) -> tuple[int, int]:
    """The token axis of a table, counted among the axes that are not stacked, and its size."""
    _, shape, match = leaf
    numbers = match.dimension_numbers
    if numbers is None or not -len(shape) <= numbers.token_axis < len(shape):
        return _NONE
    axis = numbers.token_axis % len(shape)
    return sum(other not in numbers.batch_axes for other in range(axis)), shape[axis]


def _is_head_by_name(leaf: _Leaf) -> bool | None:
    """Whether a table is a head, by its declaration, the rule that found it, or the name of an included leaf. None if unknown."""
    name, shape, match = leaf
    assert match.dimension_numbers is not None
    if match.dimension_numbers.kind is not None:
        return match.dimension_numbers.kind == "head"
    if match.is_head is not None:
        return match.is_head
    by_rule = first_match(name, len(shape))
    if by_rule.is_head or HEAD_NAME.fullmatch(spelled(name)):
        return True
    if by_rule.dimension_numbers is not None or is_embedding_name(name):
        return False
    is_dense = name.rpartition("/")[2] in ("kernel", "w")
    return True if is_dense and _token_axis_and_size(leaf)[0] > 0 else None
