"""Finding the token tables of a model by the paths and shapes of its parameters."""

import re
from typing import Any, NamedTuple

import jax

from ._dimension_numbers import EmberDimensionNumbers
from ._paths import path_name


class TableRule(NamedTuple):
    """A pattern over the whole normalised path, and what it says of a leaf: dimension numbers, or None for "not a table"."""

    name: str
    pattern: re.Pattern[str]
    dimension_numbers: EmberDimensionNumbers | None


def _rule(name: str, pattern: str, dimension_numbers: EmberDimensionNumbers | None) -> TableRule:
    return TableRule(name, re.compile(pattern), dimension_numbers)


_TOKENS_FIRST = EmberDimensionNumbers(token_axis=0)
_TOKENS_LAST = EmberDimensionNumbers(token_axis=1)

# The first rule whose pattern matches the whole path decides. The axis is the rule's, never the longer side.
RULES = (
    _rule("positions are not tokens", r"(.*/)?(wpe|[^/]*pos[^/]*)/.*", None),
    _rule("embedding", r"(.*/)?embedding", _TOKENS_FIRST),
    _rule("language-model head", r"(.*/)?lm_head/kernel", _TOKENS_LAST),
)


def token_tables(params: Any) -> Any:
    """Finds the token tables of a model.

    Args:
      params: any parameter tree; arrays or `jax.ShapeDtypeStruct`.

    Returns:
      A tree of the parameters' structure: `EmberDimensionNumbers` for a table, None for every other leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import token_tables
      >>> token_tables({"embed": {"embedding": jnp.ones((8, 4))}, "norm": {"scale": jnp.ones(4)}})
      {'embed': {'embedding': EmberDimensionNumbers(token_axis=0, batch_axes=())}, 'norm': {'scale': None}}

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _classify(path_name(path), leaf), params)


def _classify(name: str, leaf: Any) -> EmberDimensionNumbers | None:
    if getattr(leaf, "ndim", 0) != 2:
        return None
    for rule in RULES:
        if rule.pattern.fullmatch(name):
            return rule.dimension_numbers
    return None
