"""Finding the token tables of a model by the paths and shapes of its parameters."""

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax

from .decisions import find_tables
from .dimension_numbers import EmberDimensionNumbers
from .hyperparameters import checked_flag
from .inputs import check_tree, shown
from .paths import flatten_named
from .rules import TableMatch

Include = Sequence[str] | Mapping[str, EmberDimensionNumbers]


def token_tables(params: Any, *, include: Include = (), exclude: Sequence[str] = ()) -> Any:
    """Finds the token tables (embeddings and language-model heads) of a model in any JAX library's parameter tree.

    It reads paths and shapes. Paths are names joined by `/`, the same for dictionaries, attributes and sequences, without a
    leading `params` and a trailing `value`.

    * An embedding is recognised by its name, in the spelling of any JAX library. Its token axis is its first axis. Embeddings of
      positions, times, classes, labels, patches and similar things are not token tables, at any depth of the path.
    * A head is recognised by a name that only language models use, such as `lm_head`, or by a name such as `logits` if another
      table has its vocabulary. Its token axis is the axis with the size of another table's vocabulary, padded or not. If no size
      matches, it is the usual axis for its name.
    * A table is a "head", an "input" table if there is a head with its vocabulary, or "tied" if there is no such head.

    `ember` warns of matrices that have a vocabulary's size and that no rule knows. `describe_token_tables` shows what was found
    and why.

    Args:
      params: any parameter tree; arrays or `jax.ShapeDtypeStruct`.
      include: tables that no rule finds, as regular expressions that must match a whole path, for example `r"head/kernel"`, or as
        a mapping from regular expressions to `EmberDimensionNumbers`. Without dimension numbers, the token axis is the axis with
        the size of another table's vocabulary, padded or not. If no size matches, it is the last axis of a leaf with the name
        `kernel`, `w` or that of a head, and the first axis of any other leaf.
      exclude: regular expressions for leaves that are not tables, even if a rule or `include` matches.

    Returns:
      A tree of the parameters' structure, with `EmberDimensionNumbers` for a table and None for every other leaf. A box of
      sharding metadata counts as one leaf. The result depends only on paths and shapes, and a tree without tables is not an
      error. So it may be called on updates and on masked trees.

    Raises:
      ValueError: a pattern is not a regular expression.
      TypeError: a pattern is not text, `include` maps to something else than `EmberDimensionNumbers`, or `params` is a single
        number and not a tree of parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import token_tables
      >>> params = {"wte": {"embedding": jnp.ones((8, 4))}, "head": {"kernel": jnp.ones((4, 8))}}
      >>> token_tables(params)
      {'head': {'kernel': None}, 'wte': {'embedding': EmberDimensionNumbers(token_axis=0, batch_axes=(), kind='tied')}}
      >>> token_tables(params, include=["head/kernel"])["head"]
      {'kernel': EmberDimensionNumbers(token_axis=1, batch_axes=(), kind='head')}

    References:
      docs/plain_trees.md
    """
    options = TokenTables(include, exclude)
    if getattr(params, "shape", None) == ():
        raise TypeError(
            "token_tables was given a scalar instead of parameters: optax.inject_hyperparams takes callables for schedules and "
            "calls them with the step; name this one in static_args=('tables',), of scale_by_ember ('dimension_numbers',)."
        )
    check_tree(params, "params", may_be_empty=True)
    names, leaves, treedef = flatten_named(params)
    matches = find_tables(names, leaves, options)
    if (calls := _calls.get()) is not None:
        calls.append(FinderCall(names, options, matches))
    return treedef.unflatten([match.dimension_numbers for match in matches])


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
      docs/plain_trees.md
    """
    tables = token_tables(params, include=include, exclude=exclude)
    return jax.tree.map(lambda table: "body" if table is None else "ember", tables, is_leaf=lambda x: x is None)


@dataclasses.dataclass(frozen=True)
class TokenTables:
    """`token_tables` with options: `TokenTables(include=[...])(params)` is `token_tables(params, include=[...])`.

    Pass it as `tables` wherever a function takes that argument.

    Args:
      include: as for `token_tables`.
      exclude: as for `token_tables`.

      required: whether `ember` refuses parameters without any table. False is for a configuration that runs with and without
        trained tables share: without them the body trains everything.

    Attributes:
      include: the patterns, a tuple; or a dictionary from patterns to `EmberDimensionNumbers`.
      exclude: the patterns, a tuple.
      required: as given.

    Raises:
      ValueError: a pattern is not a regular expression.
      TypeError: a pattern is not text, `include` maps to something else than `EmberDimensionNumbers`, or `required` is not a
        bool.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import TokenTables, ember
      >>> params = {"wte": {"embedding": jnp.ones((8, 4))}, "head": {"kernel": jnp.ones((4, 8))}}
      >>> tables = TokenTables(include=["head/kernel"])
      >>> tables(params)["head"]
      {'kernel': EmberDimensionNumbers(token_axis=1, batch_axes=(), kind='head')}
      >>> tx = ember(1e-2, optax.adamw(1e-3), tables=tables)

      Adapters alone, with the configuration of the whole model:

      >>> tx = ember(1e-2, optax.adamw(1e-3), tables=TokenTables(required=False))
      >>> opt_state = tx.init({"q_proj": {"lora_a": jnp.ones((8, 2)), "lora_b": jnp.ones((2, 8))}})

    References:
      docs/plain_trees.md
    """

    include: Include = ()
    exclude: Sequence[str] = ()
    required: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        declared = dict(self.include) if isinstance(self.include, Mapping) else None
        patterns: Any = self.include if declared is None else list(declared)
        for pattern, value in (declared or {}).items():
            if not isinstance(value, EmberDimensionNumbers):
                raise TypeError(
                    f"include[{pattern!r}] must be EmberDimensionNumbers, got {shown(value)}; for the usual axes write "
                    f"include=[{pattern!r}]."
                )
        compile_patterns(patterns, "include")
        compile_patterns(self.exclude, "exclude")
        object.__setattr__(self, "include", tuple(patterns) if declared is None else declared)
        object.__setattr__(self, "exclude", tuple(self.exclude))
        object.__setattr__(self, "required", checked_flag(self.required, "required"))

    def __hash__(self):
        return hash((tuple(self.include), self.exclude, self.required))

    def __call__(self, params: Any) -> Any:
        return token_tables(params, include=self.include, exclude=self.exclude)


def finder_with(name: str, axis: int) -> str:
    """Code that declares the token axis of one table, for messages."""
    return f"TokenTables(include={{{re.escape(name)!r}: EmberDimensionNumbers({axis})}})"


class FinderCall(NamedTuple):
    """A call of the finder: the paths of the tree, the options, and the decision for each leaf."""

    names: list[str]
    options: TokenTables
    matches: list[TableMatch]


# The calls of the finder while a declaration is read.
_calls: contextvars.ContextVar[list[FinderCall] | None] = contextvars.ContextVar("calls", default=None)


@contextlib.contextmanager
def finder_calls() -> Iterator[list[FinderCall]]:
    """Collects the calls of `token_tables` while the context is open, because a user's function may call it."""
    token = _calls.set(calls := [])
    try:
        yield calls
    finally:
        _calls.reset(token)


def compile_patterns(patterns: Sequence[str], argument: str) -> list[re.Pattern[str]]:
    """The compiled regular expressions of an argument. Each must match a whole path."""
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
