"""Changes of the vocabulary during training, in the parameters and in the whole optimizer state.

A token's row moves together with its optimizer state. In Ember that is one number, `nu_token`. In an Adam that trains a table it
is two rows. Accumulated gradients of `optax.MultiSteps` move too. The transformation itself shows the token axis of each state
array, so chains, partitions and any body need nothing special.

    params, opt_state, _ = vocab.resize(tx, params, opt_state, 50_304)
    params, opt_state, new_ids = vocab.take(tx, params, opt_state, kept_ids)

>>> from ember_optax import vocab  # each function has an example that runs

References:
  docs/vocabulary.md
"""

from ._change import Changed
from ._resize import resize
from ._take import removed_share, take, unused
from ._transplant import transplant

__all__ = ["Changed", "removed_share", "resize", "take", "transplant", "unused"]
