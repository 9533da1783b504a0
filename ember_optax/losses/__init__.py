"""Losses of heads with large vocabularies, in chunks. There are no N x V logits, forward or backward, with any optimizer.

>>> from ember_optax import losses  # `losses.linear_softmax_cross_entropy` has an example that runs

References:
  docs/chunked_loss.md
"""

from ._softmax import linear_softmax_cross_entropy

__all__ = ["linear_softmax_cross_entropy"]
