"""Finding the token tables of a model by the paths and shapes of its parameters."""

import functools
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from .boxes import unbox
from .dimension_numbers import EmberDimensionNumbers
from .inputs import check_tree, shown
from .kinds import with_kinds
from .paths import flatten_named
from .rules import INCLUDED, TableMatch, first_match
from .vocabulary_axis import KnownSizes, known_sizes, of_head, of_included

Include = Sequence[str] | Mapping[str, EmberDimensionNumbers]


def token_tables(params: Any, *, include: Include = (), exclude: Sequence[str] = ()) -> Any:
    """Finds the token tables (embeddings and language-model heads) of a model in any JAX library's parameter tree.

    Paths are spelled as names joined by `/`, the same for dictionaries, attributes and sequences, without a leading
    `params` and a trailing `value`. An ordered list of rules over path and rank decides; it knows the names that Flax Linen and
    NNX, Equinox, Haiku, Keras, Hugging Face, Gemma, Tunix, T5X, MaxText, Levanter, Praxis and AXLearn use, and leaves
    position, type, time, class and patch embeddings alone. An embedding's vocabulary is its first axis; a head's is the axis with
    the size of an embedding's vocabulary, if there is one such axis, else the usual one of its name.
    `describe_token_tables` shows what it found and why.

    Args:
      params: any parameter tree; arrays or `jax.ShapeDtypeStruct`.
      include: tables that no rule finds: regular expressions that must match a whole path, for example `r"head/kernel"`. The
        vocabulary is the axis whose size is the vocabulary of another table, if there is one such axis; else the last axis of a
        leaf named `kernel` or `w` and the first of any other. Or a mapping from regular expressions to `EmberDimensionNumbers`.
      exclude: regular expressions for leaves that are no tables whatever the rules say. Wins over `include`.

    Returns:
      A tree of the parameters' structure: `EmberDimensionNumbers` for a table, None for every other leaf. A leaf
      inside a box of sharding metadata is described in the place of its box. Depends on paths and shapes alone and does not
      fail for want of a table, so it may be called on updates and on masked trees.

    Raises:
      ValueError: a pattern is not a regular expression.
      TypeError: a pattern is not text, `include` maps to something else than `EmberDimensionNumbers`, or `params` is a single
        number and not a tree of parameters.

    Example:
      >>> import functools
      >>> import jax.numpy as jnp
      >>> from ember_optax import ember, token_tables
      >>> params = {"wte": {"embedding": jnp.ones((8, 4))}, "head": {"kernel": jnp.ones((4, 8))}}
      >>> token_tables(params)
      {'head': {'kernel': None}, 'wte': {'embedding': EmberDimensionNumbers(token_axis=0, batch_axes=(), kind='tied')}}
      >>> tables = functools.partial(token_tables, include=["head/kernel"])
      >>> tables(params)["head"]
      {'kernel': EmberDimensionNumbers(token_axis=1, batch_axes=(), kind='head')}
      >>> tx = ember(1e-2, optax.adamw(1e-3), tables=tables)

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """
    options = FinderOptions(include, exclude)
    if getattr(params, "shape", None) == ():
        raise TypeError(
            "token_tables was given a scalar instead of parameters: optax.inject_hyperparams takes callables for schedules and "
            "calls them with the step; name this one in static_args=('tables',), of scale_by_ember ('dimension_numbers',)."
        )
    check_tree(params, "params", may_be_empty=True)
    names, leaves, treedef = flatten_named(params)
    return treedef.unflatten([match.dimension_numbers for match in find_tables(names, leaves, options)])


def token_table_labels(params: Any, *, include: Include = (), exclude: Sequence[str] = ()) -> Any:
    """Labels for `optax.partition`: "ember" for a token table, "body" for everything else.

    Args:
      params: any parameter tree.
      include: as for `token_tables`.
      exclude: as for `token_tables`.

    Returns:
      A tree of the parameters' structure with a label for each leaf; a pure function of paths and shapes.

    Raises:
      ValueError: a pattern is not a regular expression.
      TypeError: as for `token_tables`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember, scale_by_ember, token_table_labels, token_tables
      >>> params = {"wte": {"embedding": jnp.ones((8, 4))}, "dense": {"kernel": jnp.ones((4, 4))}}
      >>> token_table_labels(params)
      {'dense': {'kernel': 'body'}, 'wte': {'embedding': 'ember'}}
      >>> tables = optax.chain(scale_by_ember(dimension_numbers=token_tables), optax.scale_by_learning_rate(3e-3))
      >>> tx = optax.partition({"ember": tables, "body": optax.lion(1e-4)}, token_table_labels)
      >>> opt_state = tx.init(params)

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """
    tables = token_tables(params, include=include, exclude=exclude)
    return jax.tree.map(lambda table: "body" if table is None else "ember", tables, is_leaf=lambda x: x is None)


class FinderOptions:
    """`include` and `exclude` of the finder, checked and compiled.

    Attributes:
      include: the patterns, each with its declared dimension numbers or None.
      exclude: the patterns.

    Raises:
      ValueError: a pattern is not a regular expression.
      TypeError: a pattern is not text, or `include` maps to something else than `EmberDimensionNumbers`.
    """

    def __init__(self, include: Include = (), exclude: Sequence[str] = ()):
        declared: Mapping[str, EmberDimensionNumbers | None] = include if isinstance(include, Mapping) else {}
        for pattern, value in declared.items():
            if not isinstance(value, EmberDimensionNumbers):
                raise TypeError(
                    f"include[{pattern!r}] must be EmberDimensionNumbers, got {shown(value)}; for the usual axes write "
                    f"include=[{pattern!r}]."
                )
        patterns = list(include) if isinstance(include, Mapping) else include
        self.include = {compiled: declared.get(compiled.pattern) for compiled in compile_patterns(patterns, "include")}
        self.exclude = compile_patterns(exclude, "exclude")

    @classmethod
    def of(cls, tables: Any) -> "FinderOptions | None":
        """The options of "auto", `token_tables` or a `functools.partial` of it; None for any other declaration."""
        if tables is token_tables or isinstance(tables, str):
            return cls()
        if isinstance(tables, functools.partial) and tables.func is token_tables and not tables.args:
            return cls(**tables.keywords)
        return None

    def declared(self, name: str) -> EmberDimensionNumbers | None:
        """The dimension numbers of the first pattern of `include` that matches, if it has any."""
        return next((numbers for pattern, numbers in self.include.items() if pattern.fullmatch(name)), None)

    def unused(self, names: Sequence[str]) -> list[str]:
        """The patterns that match none of these paths, each with its argument."""
        patterns = [("include", pattern) for pattern in self.include] + [("exclude", pattern) for pattern in self.exclude]
        return [f"{argument} {p.pattern!r}" for argument, p in patterns if not any(p.fullmatch(name) for name in names)]


def finder_with(name: str, axis: int) -> str:
    """How to declare the token axis of one table, for messages."""
    return f"functools.partial(token_tables, include={{{re.escape(name)!r}: EmberDimensionNumbers({axis})}})"


def find_tables(names: Sequence[str], leaves: Sequence[Any], options: FinderOptions) -> list[TableMatch]:
    """What the finder decides for each leaf: excludes, then includes, then the rules."""
    shapes = [np.shape(unbox(leaf)) if hasattr(unbox(leaf), "shape") else () for leaf in leaves]
    matches = _by_rules(names, shapes, options)
    if not options.include and not options.exclude:
        return with_kinds(matches, shapes)
    # Also of tables that are excluded, for another optimizer say: their vocabulary is known all the same.
    known = known_sizes((match.dimension_numbers, shape) for match, shape in zip(matches, shapes, strict=True))
    return with_kinds([_chosen(*one, known, options) for one in zip(names, shapes, matches, strict=True)], shapes)


def _by_rules(names: Sequence[str], shapes: Sequence[tuple[int, ...]], options: FinderOptions) -> list[TableMatch]:
    """What the rules say of each leaf, and of heads what the embeddings among them and the declared tables do."""
    matches = [first_match(name, len(shape)) for name, shape in zip(names, shapes, strict=True)]
    if not any(match.is_head for match in matches):
        return matches
    others = [
        options.declared(name) or (None if m.is_head else m.dimension_numbers) for name, m in zip(names, matches, strict=True)
    ]
    known = known_sizes(zip(others, shapes, strict=True))
    return [of_head(match, shape, known) if match.is_head else match for match, shape in zip(matches, shapes, strict=True)]


def _chosen(name: str, shape: tuple[int, ...], by_rules: TableMatch, known: KnownSizes, options: FinderOptions) -> TableMatch:
    """What the patterns say of a leaf; what the rules do where none matches."""
    if any(pattern.fullmatch(name) for pattern in options.exclude):
        return TableMatch(None, "excluded")
    if not any(pattern.fullmatch(name) for pattern in options.include):
        return by_rules
    declared = options.declared(name)
    return TableMatch(declared, "included") if declared else of_included(first_match(name, len(shape), INCLUDED), shape, known)


def compile_patterns(patterns: Sequence[str], argument: str) -> list[re.Pattern[str]]:
    """The regular expressions of an argument, each of which is to match a whole path."""
    if isinstance(patterns, str):
        raise TypeError(f"{argument} must be a sequence of regular expressions, got the text {patterns!r}; write [{patterns!r}].")
    if not isinstance(patterns, Sequence | Set):
        raise TypeError(
            f"{argument} must be a sequence of regular expressions, got {shown(patterns)}; write [r'path/of/the/table'], or "
            f"leave it out for none."
        )
    compiled = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{argument} must hold regular expressions, got {shown(pattern)}; write them as text, r'path/of/the/table'."
            )
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(
                f"{argument} holds {pattern!r}, which is not a regular expression: {error}; re.escape spells a path."
            ) from None
    return compiled
