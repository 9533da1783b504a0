"""Softmax over the label and a few sampled negatives, in place of the whole vocabulary, and the draw of the negatives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ember_optax import row_sparse


class Proposal(NamedTuple):
    """The distribution q that negatives are drawn from: its sums up to each token, the last of them 1, and log q; (V,)."""

    cumulative: np.ndarray
    log_probabilities: np.ndarray


def smoothed_unigram(tokens: np.ndarray, vocabulary_size: int, power: float = 0.75) -> Proposal:
    """q in proportion to (count + 1)^power.

    No token has probability zero: one that is never drawn would be missing from the estimated sum.
    """
    weights_V = (np.bincount(tokens.reshape(-1), minlength=vocabulary_size) + 1.0) ** power
    cumulative_V = np.cumsum(weights_V)
    return Proposal(cumulative_V / cumulative_V[-1], np.log(weights_V / cumulative_V[-1]))


def draw_negatives(proposal: Proposal, count: int, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`count` ids, drawn independently and with replacement, and the log of how often each is expected: log(count q)."""
    uniform_S = np.random.default_rng(seed).random(count)
    negatives_S = np.searchsorted(proposal.cumulative, uniform_S, side="right")
    log_expected_counts_S = np.log(count) + proposal.log_probabilities[negatives_S]
    return negatives_S.astype(np.int32), log_expected_counts_S.astype(np.float32)


def sampled_softmax_loss(
    hidden_BxD: jax.Array, head_VxD: Any, labels_B: jax.Array, negatives_S: jax.Array, log_expected_counts_S: jax.Array
) -> jax.Array:
    r"""Cross-entropy whose sum over the vocabulary is estimated from the label and S negatives, which all examples share.

    .. math:: L = -z_y + \log \hat Z, \quad \hat Z = e^{z_y} + \sum_{s:\, n_s \neq y} e^{z_{n_s} - \log(S q_{n_s})}

    where :math:`z = W h` are the logits, y is the label and the n are drawn from q with replacement. The label's own term is
    exact and has no correction; draws that hit the label estimate a term that is there already, and are left out. Then
    :math:`E[\hat Z] = e^{z_y} + \sum_{j \neq y} S q_j e^{z_j} / (S q_j) = Z` for every S, and so for the gradients of both.
    The loss is too small on average (Jensen), by O(1 / S).

    `tf.nn.sampled_softmax_loss` subtracts log(expected count) from the label's logit too. Its negatives are distinct, so
    these counts tend to 1 as the whole vocabulary is drawn. Here they grow with S, and no limit would be the full softmax.

    Args:
      hidden_BxD: what the head multiplies.
      head_VxD: the table, or its `RowSlice` with the rows of the labels and of the negatives.
      labels_B: the right tokens.
      negatives_S: sampled tokens; repetitions count as often as they were drawn.
      log_expected_counts_S: log(S q) of each of them.

    Returns:
      The loss of each example, (B,).

    References:
      Bengio and Senecal 2008, https://doi.org/10.1109/TNN.2007.912312 (the sum estimated by importance sampling)
      Rawat et al. 2019, https://arxiv.org/abs/1907.10747 (the label's logit as it is, log(S q) taken from the others)
      Jean et al. 2015, https://arxiv.org/abs/1412.2007 (with a proposal that is uniform over a part of the vocabulary)
    """
    own_B = jnp.sum(hidden_BxD * row_sparse.lookup(head_VxD, labels_B), 1)
    others_BxS = hidden_BxD @ row_sparse.lookup(head_VxD, negatives_S).T - log_expected_counts_S
    others_BxS = jnp.where(negatives_S == labels_B[:, None], -jnp.inf, others_BxS)
    return jax.nn.logsumexp(jnp.concatenate([own_B[:, None], others_BxS], 1), 1) - own_B
