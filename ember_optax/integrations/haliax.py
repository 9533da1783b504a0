"""Haliax: an `Embedding` for row-sparse steps."""

from typing import Any

import haliax as hax
import haliax.nn as hnn

from .._tree.haliax_boxes import unbox
from ..row_sparse._slice import RowSlice, refuse_attend

__all__ = ["Embedding"]


class Embedding(hnn.Embedding):
    """`hnn.Embedding` whose table may be a `RowSlice`, so that `row_sparse.value_and_grad` can give it compact gradients.

    With an array as its table, it is the base class. With a `RowSlice`, rows of padding are zeros. Make it with
    `Embedding.init`, which has the arguments of the base class.

    Raises:
      TypeError: `unembed`, which needs every row, is called while the table is a `RowSlice`.

    Example:
      >>> import haliax as hax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> from ember_optax.integrations.haliax import Embedding
      >>> vocab, embed = hax.Axis("vocab", 1000), hax.Axis("embed", 4)
      >>> model, ids = Embedding.init(vocab, embed, key=jax.random.key(0)), hax.named(jnp.array([5, 9, 5]), "position")
      >>> def loss_fn(model, ids):
      ...     return hax.sum(model.embed(ids) ** 2).scalar()
      >>> loss, grads = row_sparse.value_and_grad(loss_fn)(model, {"weight": ids.array}, ids)
      >>> grads.weight.array.rows.shape
      (3, 4)

    References:
      docs/haliax.md
    """

    @staticmethod
    def init(Vocab: hax.Axis, Embed: Any, *, key: Any, **options: Any) -> "Embedding":  # pyright: ignore[reportIncompatibleMethodOverride]
        """A new layer, with the arguments of `hnn.Embedding.init`."""
        return Embedding(**vars(hnn.Embedding.init(Vocab, Embed, key=key, **options)))

    def embed(self, input_ids: hax.NamedArray) -> hax.NamedArray:
        """The rows of these ids."""
        table = unbox(self.weight)
        if not isinstance(table, RowSlice):
            return super().embed(input_ids)
        rows = hax.named(table[input_ids.array], (*input_ids.axes, *self.weight.axes[1:]))
        return rows * self.reparam.active_scale

    def unembed(self, input_embeds: hax.NamedArray) -> hax.NamedArray:
        """The logits of a tied head."""
        refuse_attend(unbox(self.weight))
        return super().unembed(input_embeds)
