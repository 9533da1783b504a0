"""The vocabulary changed in mid-training: parameters and the whole optimizer state together.

A token's row moves with everything that an optimizer knows of it. In Ember that is one number, `nu_token`; in the Adam of a body
that owns a table two rows; accumulated gradients of `optax.MultiSteps` follow as well. Which axis of which state array counts the
tokens is asked of the transformation itself, so chains, partitions and any body need nothing special.

    params, opt_state, _ = vocab.resize(tx, params, opt_state, 50_304)
    params, opt_state, new_ids = vocab.take(tx, params, opt_state, kept_ids)

>>> from ember_optax import vocab  # each function has an example that runs

References:
  Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/vocabulary.md
"""

from ._change import Changed
from ._resize import resize
from ._take import removed_share, take, unused
from ._transplant import transplant

__all__ = ["Changed", "removed_share", "resize", "take", "transplant", "unused"]
