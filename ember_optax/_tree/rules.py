"""The rules of the table finder: the paths and ranks of token tables, and their token axes. A rule is added to `RULES`."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .dimension_numbers import EmberDimensionNumbers

_TOKENS_FIRST = {2: EmberDimensionNumbers(0), 3: EmberDimensionNumbers(1, (0,))}
_TOKENS_LAST = {2: EmberDimensionNumbers(1), 3: EmberDimensionNumbers(2, (0,))}
_PER_LAYER = {2: EmberDimensionNumbers(0), 3: EmberDimensionNumbers(0)}
_NO_TABLE: dict[int, EmberDimensionNumbers] = {}
# An included leaf may have any rank, because the user asked for it.
_INCLUDED_FIRST = {rank: EmberDimensionNumbers(0) for rank in range(1, 9)} | _TOKENS_FIRST
_INCLUDED_LAST = {rank: EmberDimensionNumbers(rank - 1) for rank in range(1, 9)} | _TOKENS_LAST

# Words in the name of an embedding of something else than tokens.
_OTHER_THINGS = (
    "pos|posemb|position|positions|positional|wpe|rel|relpos|relative|rotary|rope|row|col|spatial|point|points|distance|degree|depth"
    "|type|types|seg|segment|segments|time|timestep|timesteps|temporal|step|freq|noise|sigma|level|class|cls|label|labels"
    "|lang|language|speaker|modality|task|domain|patch|patches|frame|mask|prompt|query|obs|observation|state|goal|lora|bias"
    # A model may have tokens of these too.
    "|(?:image|img|pixel|audio|video)(?!_(?:tok|token|tokens|code|codes)(?:_|/|$))"
)
_EMBEDDING = "embeddings?|embeds?|embedder|embs?|wte"
_NAME_OF_OTHER = (
    # Not `language_model/embedding` or `mask_lm/embed`, where the word describes the whole model.
    rf"([^/]*_)?({_OTHER_THINGS})(_(?!model|lm|gpt|bert|transformer|decoder|tower)[^/]*)?|[ty]_embed[^/]*|embed_[ty]"
)
# A module around the table: `PosEmbed_0/Embed_0`, `positional_encoding/embedding`. It may hold tokens too if it names two things.
_MODULE_OF_OTHER = (
    rf"(?![^/]*_and_)(([^/]*_)?({_OTHER_THINGS})_(emb|encoding)[^/]*|(pos|position|positional|time)_encoder|[ty]_embed[^/]*"
    rf"|([^/]*_)?(vq|quantizers?)(_[^/]*)?)"
)
_LAYER = "embeddings?|emb_var|weight|w|kernel|table|[ab]"
# Names that only language models give to a head.
_HEAD = (
    "([^/]*_)?lm_heads?(/[0-9]+)?|lm_logits|vocab_proj|vocab_projector|vocab_head|unembed|unembedding|unembedder|embed_out"
    "|output_embeddings?|predictions/decoder|([^/]*_)?lm/(.*/)?logits_ffn/linear"
)
# Names that other layers have too: a classifier, a policy, the end of a feed-forward layer.
_MAYBE_HEAD = "logits|logits_dense|to_logits|([^/]*_)?logits_ffn/linear|output_proj|output_layer"
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
      is_head: whether the rule is for heads; None if that is not known. Embeddings always have their tokens first, but heads of
        the same name are stored either way. So the vocabulary of another table overrules the `axes` of a head
        (`_tree/vocabulary_axis.py`).
      is_doubtful: whether the name alone is not enough. A leaf that matches is then a table only if another table has its
        vocabulary. If the rule has no `axes` for its rank, it is named in the warning instead.
    """

    name: str
    pattern: re.Pattern[str]
    axes: Mapping[int, EmberDimensionNumbers]
    is_head: bool | None = False
    is_doubtful: bool = False


def _rule(name: str, pattern: str, axes: Mapping[int, EmberDimensionNumbers], **is_what: Any) -> TableRule:
    return TableRule(name, re.compile(rf"(.*/)?({pattern})"), axes, **is_what)


# The first rule whose pattern matches decides. No rule takes the longer side for the vocabulary: Flax and Haiku store a dense
# layer as (inputs, outputs) in `kernel` or `w`, Equinox and Levanter as (outputs, inputs) in `weight`.
RULES = (
    _rule("reversed embedding", r"reverse_embeddings?", _TOKENS_LAST, is_head=True),
    _rule("head, (inputs, outputs)", rf"({_HEAD})(_\d+)?(/kernel|/w|/w_u)?", _TOKENS_LAST, is_head=True),
    _rule("head, (outputs, inputs)", rf"({_HEAD})(_\d+)?/weight", _TOKENS_FIRST, is_head=True),
    _rule("inside a layer", r"([^/]*_)?(attention|attn|router|gate|moe|experts?)(_\d+)?/.+", _NO_TABLE),
    _rule("not tokens", rf"({_NAME_OF_OTHER})(/({_LAYER}))?|({_MODULE_OF_OTHER})/.*|b", _NO_TABLE),
    _rule("per-layer embedding", r"([^/]*_)?(per_layer(_input)?_embeddings?|embed_tokens_per_layer)", _PER_LAYER),
    _rule("maybe a head, (inputs, outputs)", rf"({_MAYBE_HEAD})(/kernel|/w)?", _TOKENS_LAST, is_head=True, is_doubtful=True),
    _rule("maybe a head, (outputs, inputs)", rf"({_MAYBE_HEAD})/weight", _TOKENS_FIRST, is_head=True, is_doubtful=True),
    # The first layer of a sequence may be linear, and an agent's actions are no text.
    _rule(
        "maybe an embedding",
        rf"([^/]*_)?({_EMBEDDING})/\d+/(weight|w)|([^/]*_)?actions?_({_EMBEDDING})(/\d+)?(/({_LAYER}))?",
        _NO_TABLE,
        is_doubtful=True,
    ),
    # Linen and Haiku number layers without a name. The second one may be an embedding of positions.
    _rule("embedding layer without a name, a guess", rf"([^/]*_)?({_EMBEDDING})_\d+/(embedding|weight|w|table)", _TOKENS_FIRST),
    _rule("embedding", rf"([^/]*_)?({_EMBEDDING})(_var|_table|_tokens?|_words?)?|distributed_embedding/[^/]+", _TOKENS_FIRST),
    _rule(
        "embedding layer",
        rf"([^/]*_)?({_EMBEDDING})((_tokens?|_words?)(/\d+)?|_in|_linear|_lookup)?/(embedding|weight|w|w_e|table)"
        rf"|(transformer|model|t5|bart|([^/]*_)?(encoder|decoder)|^)/?shared/weight",
        _TOKENS_FIRST,
    ),
)

HEAD_NAME = re.compile(
    r"(.*[/_])?(heads?|logits?|logitdense|output|outputs|out|out_proj|output_projection|proj_out|readout|classifier|softmax|unembed)"
    r"([/_](.*[/_])?(dense|linear|proj|[0-9]+))*([/_](kernel|weights?|w))?|w_u"
)
INCLUDED = (
    _rule(
        "included, (inputs, outputs)",
        rf".*/(kernel|w)|kernel|w|(?:{HEAD_NAME.pattern})(?<!weight)(?<!weights)",
        _INCLUDED_LAST,
        is_head=None,
    ),
    _rule("included, tokens first", r".*", _INCLUDED_FIRST, is_head=None),
)


class TableMatch(NamedTuple):
    """The finder's decision for one leaf.

    Attributes:
      dimension_numbers: the axes of a table; None if the leaf is not a table.
      rule: the rule that decided; None if nothing matched.
      is_head: whether a rule for heads decided; None if the user included the leaf.
      is_doubtful: whether the name alone is not enough.
      is_guess: whether there are other tables, but no size of theirs confirms the token axis.
    """

    dimension_numbers: EmberDimensionNumbers | None
    rule: str | None
    is_head: bool | None = False
    is_doubtful: bool = False
    is_guess: bool = False


def spelled(name: str) -> str:
    """A path in the spelling that the rules match."""
    return _STORAGE.sub("", _WORDS.sub("_", f"/{name}").lower().replace(".", "/"))[1:]


@functools.lru_cache(maxsize=1 << 16)
def first_match(name: str, rank: int, rules: tuple[TableRule, ...] = RULES) -> TableMatch:
    """The decision of the first rule whose pattern matches a leaf."""
    for rule in rules:
        if rule.pattern.fullmatch(spelled(name)):
            return TableMatch(rule.axes.get(rank), rule.name, rule.is_head, rule.is_doubtful)
    return TableMatch(None, None)
