"""The rules of the table finder: which paths, of which rank, are token tables, and which axis is the vocabulary."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from .dimension_numbers import EmberDimensionNumbers

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


@dataclasses.dataclass(frozen=True, eq=False)
class TableRule:
    """One line of the table finder.

    Attributes:
      name: what the rule recognises, as `describe_token_tables` shows it.
      pattern: matched against the whole path, in lower case, with camel case split by underscores, dots as slashes, and
        storage left out.
      axes: dimension numbers for each rank that can be a table. A matching leaf of another rank is no table.
      is_head: whether `axes` are a habit only, which the vocabulary of another table overrules (`_tree/finder.py`). Embeddings
        are read by rows everywhere; heads are stored either way under the same names.
    """

    name: str
    pattern: re.Pattern[str]
    axes: Mapping[int, EmberDimensionNumbers]
    is_head: bool


def _rule(name: str, pattern: str, axes: Mapping[int, EmberDimensionNumbers], *, is_head: bool = False) -> TableRule:
    return TableRule(name, re.compile(rf"(.*/)?{pattern}"), axes, is_head)


# The first rule whose pattern matches decides. The axis is never the longer side: Flax and Haiku store a dense layer as (inputs,
# outputs) in `kernel` or `w`, Equinox and Levanter as (outputs, inputs) in `weight`.
RULES = (
    _rule("not tokens", rf"([^/]*_)?({_OTHER_THINGS})(_[^/]*)?(/(embeddings?|emb_var|weight|w|kernel|table|[ab]))?", _NO_TABLE),
    _rule("inside a layer", r"([^/]*_)?(attention|attn|router|gate|moe|experts?)(_\d+)?/.+", _NO_TABLE),
    _rule("bias", r"b", _NO_TABLE),
    _rule("per-layer embedding", r"([^/]*_)?per_layer(_input)?_embeddings?", _PER_LAYER),
    _rule("reversed embedding", r"reverse_embeddings?", _TOKENS_LAST, is_head=True),
    _rule("head, (inputs, outputs)", rf"({_HEAD})(_\d+)?(/kernel|/w)?", _TOKENS_LAST, is_head=True),
    _rule("head, (outputs, inputs)", rf"({_HEAD})(_\d+)?/weight", _TOKENS_FIRST, is_head=True),
    # Linen's and Haiku's names for layers without a name: the second one may be an embedding of positions.
    _rule("embedding layer without a name, a guess", rf"([^/]*_)?({_EMBEDDING})_\d+/(embedding|weight|w|table)", _TOKENS_FIRST),
    _rule("embedding", rf"([^/]*_)?({_EMBEDDING})(_var|_table|_tokens?|_words?)?", _TOKENS_FIRST),
    _rule(
        "embedding layer",
        rf"([^/]*_)?({_EMBEDDING})(_tokens?|_words?|_linear|_lookup)?/(embedding|weight|w|table)",
        _TOKENS_FIRST,
    ),
)

INCLUDED = (
    _rule("included, (inputs, outputs)", r"(kernel|w)", _INCLUDED_LAST),
    _rule("included, tokens first", r".*", _INCLUDED_FIRST),
)


class TableMatch(NamedTuple):
    """What the finder decided for one leaf.

    Attributes:
      dimension_numbers: None where the leaf is no table.
      rule: what decided; None where nothing matched.
      is_head: whether a rule for heads decided.
      is_guess: whether nothing in the sizes of the other tables speaks for the token axis of a head, though there are others.
    """

    dimension_numbers: EmberDimensionNumbers | None
    rule: str | None
    is_head: bool = False
    is_guess: bool = False


@functools.lru_cache(maxsize=1 << 16)
def first_match(name: str, rank: int, rules: tuple[TableRule, ...] = RULES) -> TableMatch:
    """What the first rule whose pattern matches says of a leaf."""
    spelled = _STORAGE.sub("", _WORDS.sub("_", f"/{name}").lower().replace(".", "/"))[1:]
    for rule in rules:
        if rule.pattern.fullmatch(spelled):
            return TableMatch(rule.axes.get(rank), rule.name, rule.is_head)
    return TableMatch(None, None)
