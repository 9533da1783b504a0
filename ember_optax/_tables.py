"""Finding the token tables of a model by the paths and shapes of its parameters."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ._boxes import is_box, unbox
from ._dimension_numbers import EmberDimensionNumbers
from ._paths import path_name

Include = Sequence[str] | Mapping[str, EmberDimensionNumbers]

_TOKENS_FIRST = {2: EmberDimensionNumbers(0), 3: EmberDimensionNumbers(1, (0,))}
_TOKENS_LAST = {2: EmberDimensionNumbers(1), 3: EmberDimensionNumbers(2, (0,))}
_PER_LAYER = {2: EmberDimensionNumbers(0), 3: EmberDimensionNumbers(0)}
_NO_TABLE: dict[int, EmberDimensionNumbers] = {}
# Whoever includes a leaf means it, whatever its rank.
_INCLUDED_FIRST = {rank: EmberDimensionNumbers(0) for rank in range(1, 9)} | _TOKENS_FIRST
_INCLUDED_LAST = {rank: EmberDimensionNumbers(rank - 1) for rank in range(1, 9)} | _TOKENS_LAST

# Words of the part of a path that names an embedding of something other than tokens.
_OTHER_THINGS = (
    "pos|posemb|position|positions|positional|wpe|rel|relpos|relative|rotary|rope|type|types|seg|segment|segments"
    "|time|timestep|timesteps|[ty]_embedder|class|cls|label|labels|patch|patches|image|img|pixel|audio|mask|prompt|quantizer|vq|lora|bias"
)
_EMBEDDING = "embeddings?|embeds?|embedder|emb|wte"
_HEAD = (
    "([^/]*_)?lm_head|lm_logits|logits|logits_dense|to_logits|vocab_proj|vocab_projector|vocab_head|unembed|unembedding"
    "|unembedder|embed_out|output_embeddings?|logits_ffn/linear|predictions/decoder"
)
# Parts of a path that only say how a library stores or wraps a layer, removed before matching.
_STORAGE = re.compile(
    r"/(base_module|base_layer)(?=/)|(?<=/lm_head)/(decoder|dense_0|linear)(?=/)"
    r"|(/(value|data_array|array))+$|(?<=/weight)/0$"
)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class TableRule(NamedTuple):
    """One line of the table finder.

    Attributes:
      name: what the rule recognises, as `describe_token_tables` shows it.
      pattern: matched against the whole path, in lower case, with camel case split by underscores, dots as slashes, and
        storage left out.
      axes: dimension numbers for each rank that can be a table. A matching leaf of another rank is no table.
    """

    name: str
    pattern: re.Pattern[str]
    axes: Mapping[int, EmberDimensionNumbers]


def _rule(name: str, pattern: str, axes: Mapping[int, EmberDimensionNumbers]) -> TableRule:
    return TableRule(name, re.compile(rf"(.*/)?{pattern}"), axes)


# The first rule whose pattern matches decides. The axis is the rule's and never the longer side: Flax and Haiku store a dense
# layer as (inputs, outputs) in `kernel` or `w`, Equinox and Levanter as (outputs, inputs) in `weight`.
RULES = (
    _rule("not tokens", rf"([^/]*_)?({_OTHER_THINGS})(_[^/]*)?(/(embeddings?|emb_var|weight|w|kernel|table|[ab]))?", _NO_TABLE),
    _rule("inside a layer", r"([^/]*_)?(attention|attn|router|gate|moe|experts?)(_\d+)?/.+", _NO_TABLE),
    _rule("bias", r"b", _NO_TABLE),
    _rule("per-layer embedding", r"([^/]*_)?per_layer(_input)?_embeddings?", _PER_LAYER),
    _rule("reversed embedding", r"reverse_embeddings?", _TOKENS_LAST),
    _rule("head, (inputs, outputs)", rf"({_HEAD})(_\d+)?(/kernel|/w)?", _TOKENS_LAST),
    _rule("head, (outputs, inputs)", rf"({_HEAD})(_\d+)?/weight", _TOKENS_FIRST),
    _rule("embedding", rf"([^/]*_)?({_EMBEDDING})(_var|_table|_tokens?|_words?)?", _TOKENS_FIRST),
    _rule(
        "embedding layer",
        rf"([^/]*_)?({_EMBEDDING})(_tokens?|_words?|_linear|_lookup|_\d+)?/(embedding|weight|w|table)",
        _TOKENS_FIRST,
    ),
)

_INCLUDED = (
    _rule("included, (inputs, outputs)", r"(kernel|w)", _INCLUDED_LAST),
    _rule("included, tokens first", r".*", _INCLUDED_FIRST),
)


class TableMatch(NamedTuple):
    """What the finder decided for one leaf: `rule` is None where nothing matched."""

    dimension_numbers: EmberDimensionNumbers | None
    rule: str | None


def token_tables(params: Any, *, include: Include = (), exclude: Sequence[str] = ()) -> Any:
    """Finds the token tables (embeddings and language-model heads) of a model in any JAX library's parameter tree.

    Paths are spelled as names joined by `/`, the same for dictionaries, attributes and sequences, without a leading
    `params` and a trailing `value`. An ordered list of rules over path and rank decides; it knows the names that Flax Linen and
    NNX, Equinox, Haiku, Keras, Hugging Face, Gemma, Tunix, T5X, MaxText, Levanter, Praxis and AXLearn use, and leaves
    position, type, time, class and patch embeddings alone. `describe_token_tables` shows what it found and why.

    Args:
      params: any parameter tree; arrays or `jax.ShapeDtypeStruct`.
      include: tables that no rule finds: regular expressions that must match a whole path, for example `r"head/kernel"`. The
        vocabulary is the last axis of a leaf named `kernel` or `w` and the first of any other; or a mapping from
        regular expressions to `EmberDimensionNumbers`.
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
      {'head': {'kernel': None}, 'wte': {'embedding': EmberDimensionNumbers(token_axis=0, batch_axes=())}}
      >>> tables = functools.partial(token_tables, include=["head/kernel"])
      >>> tables(params)["head"]
      {'kernel': EmberDimensionNumbers(token_axis=1, batch_axes=())}
      >>> tx = ember(1e-3, tables=tables)

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """
    included, excluded = compile_include(include), compile_exclude(exclude)
    if (included or excluded) and getattr(params, "shape", None) == ():
        raise TypeError(
            "token_tables was given a scalar instead of parameters: optax.inject_hyperparams takes callables for schedules and "
            "calls them with the step; name this one in static_args=('tables',)."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: match_table(path_name(path), unbox(leaf), included, excluded).dimension_numbers,
        params,
        is_leaf=is_box,
    )


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


def match_table(
    name: str, leaf: Any, include: Mapping[re.Pattern[str], EmberDimensionNumbers | None], exclude: Sequence[re.Pattern[str]]
) -> TableMatch:
    """Applies excludes, includes and then the rules to one leaf."""
    rank = getattr(leaf, "ndim", 0)
    if any(pattern.fullmatch(name) for pattern in exclude):
        return TableMatch(None, "excluded")
    for pattern, dimension_numbers in include.items():
        if pattern.fullmatch(name):
            return TableMatch(dimension_numbers, "included") if dimension_numbers else _first_match(name, rank, _INCLUDED)
    return _first_match(name, rank, RULES)


def compile_include(include: Include) -> dict[re.Pattern[str], EmberDimensionNumbers | None]:
    """The patterns of `include`, each with its declared dimension numbers or None."""
    if not isinstance(include, Mapping):
        return dict.fromkeys(_compile(include, "include"))
    for pattern, value in include.items():
        if not isinstance(value, EmberDimensionNumbers):
            raise TypeError(f"include[{pattern!r}] must be EmberDimensionNumbers, got {value!r} of type {type(value).__name__}.")
    return dict(zip(_compile(list(include), "include"), include.values(), strict=True))


def compile_exclude(exclude: Sequence[str]) -> list[re.Pattern[str]]:
    """The patterns of `exclude`."""
    return _compile(exclude, "exclude")


def _compile(patterns: Sequence[str], argument: str) -> list[re.Pattern[str]]:
    if isinstance(patterns, str):
        raise TypeError(f"{argument} must be a sequence of regular expressions, got the text {patterns!r}; write [{patterns!r}].")
    compiled = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must hold regular expressions, got {pattern!r} of type {type(pattern).__name__}.")
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"{argument} holds {pattern!r}, which is not a regular expression: {error}.") from None
    return compiled


def _first_match(name: str, rank: int, rules: Sequence[TableRule]) -> TableMatch:
    spelled = _STORAGE.sub("", _WORDS.sub("_", f"/{name}").lower().replace(".", "/"))[1:]
    for rule in rules:
        if rule.pattern.fullmatch(spelled):
            return TableMatch(rule.axes.get(rank), rule.name)
    return TableMatch(None, None)
