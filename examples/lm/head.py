"""The table of a model's logits, for losses that never make them."""

import functools
import operator
from typing import Any, NamedTuple

import jax

from ember_optax.losses import linear_softmax_cross_entropy


class Head(NamedTuple):
    """Where the table is among the parameters, and which of its axes counts the tokens."""

    path: str
    token_axis: int

    def losses(self, params: Any, hidden_BxTxD: jax.Array, labels_BxT: jax.Array) -> jax.Array:
        """The cross-entropy of each label, (B, T), in chunks of the vocabulary.

        On a mesh the tokens are split over `fsdp` (`lm/devices.py`), and each device works on its own rows.
        """
        table = functools.reduce(operator.getitem, self.path.split("/"), params)
        is_split = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1
        tokens, batch = ("fsdp", "data") if is_split else (None, None)
        return linear_softmax_cross_entropy(
            hidden_BxTxD, table, labels_BxT, token_axis=self.token_axis, token_mesh_axes=tokens, batch_mesh_axes=batch
        )
