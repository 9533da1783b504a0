"""Which tables are input tables and which are heads."""

from typing import Any

import jax

from ember_optax import token_table_labels, token_tables


def kinds(params: Any) -> Any:
    """A tree of "input", "head" and "body", as the finder tells them apart. Tied tables are input tables.

    Example:
      >>> kinds({"embed": {"embedding": jax.numpy.ones((8, 4))}, "lm_head": {"kernel": jax.numpy.ones((4, 8))}})
      {'embed': {'embedding': 'input'}, 'lm_head': {'kernel': 'head'}}
    """

    def kind(label: str, numbers: Any) -> str:
        return label if label == "body" else "head" if numbers.kind == "head" else "input"

    return jax.tree.map(kind, token_table_labels(params), token_tables(params))
