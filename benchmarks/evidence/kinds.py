"""Which tables are input tables and which are heads."""

from typing import Any

import jax

from ember_optax import token_table_labels


def kinds(params: Any) -> Any:
    """A tree of "input", "head" and "body", by the names of the examples' models. Tied tables are input tables.

    Example:
      >>> kinds({"embed": {"embedding": jax.numpy.ones((8, 4))}, "lm_head": {"kernel": jax.numpy.ones((4, 8))}})
      {'embed': {'embedding': 'input'}, 'lm_head': {'kernel': 'head'}}
    """

    def kind(path, label):
        return "body" if label == "body" else "head" if "lm_head" in jax.tree_util.keystr(path) else "input"

    return jax.tree_util.tree_map_with_path(kind, token_table_labels(params))
