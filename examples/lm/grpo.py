"""Policy gradients of groups of completions (GRPO, https://arxiv.org/abs/2402.03300).

`logits(params, ids)` are those of `lm.training.logits_function`: (B, T) ids, (B, T, V) logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .arithmetic import END, PAD

Logits = Callable[[Any, jax.Array], jax.Array]


class Batch(NamedTuple):
    """Completions to learn from.

    Attributes:
      tokens: prompts and completions, (N, T) int32.
      is_completion: 1.0 for tokens of the completion, 0.0 for those of the prompt and padding, (N, T).
      advantages: how much better than its group each completion was, (N,).
      old_log_probs: of each token under the policy that drew it, (N, T - 1).
      reference_log_probs: of each token under the policy to stay close to, (N, T - 1).
    """

    tokens: Any
    is_completion: Any
    advantages: Any
    old_log_probs: Any
    reference_log_probs: Any


def complete(logits: Logits, params: Any, tokens_NxT: Any, lengths_N: Any, key: jax.Array) -> jax.Array:
    """Goes on after each prompt with random tokens of the model's, until `END` or the row is full."""
    rows, length = tokens_NxT.shape

    def place_token(carry, t):
        tokens_NxT, is_done_N = carry
        logits_NxV = logits(params, tokens_NxT)[:, t - 1]
        drawn_N = jax.random.categorical(jax.random.fold_in(key, t), logits_NxV)
        in_prompt_N = t < lengths_N
        placed_N = jnp.where(in_prompt_N, tokens_NxT[:, t], jnp.where(is_done_N, PAD, drawn_N)).astype(tokens_NxT.dtype)
        return (tokens_NxT.at[:, t].set(placed_N), is_done_N | (~in_prompt_N & (placed_N == END))), None

    (tokens_NxT, _), _ = jax.lax.scan(place_token, (tokens_NxT, jnp.zeros(rows, bool)), jnp.arange(1, length))
    return tokens_NxT


def completion_mask(tokens_NxT: Any, lengths_N: Any) -> jax.Array:
    """1.0 for the tokens that the policy drew, `END` included, 0.0 for prompts and padding; (N, T)."""
    places_T = jnp.arange(tokens_NxT.shape[1])
    return ((places_T >= lengths_N[:, None]) & (tokens_NxT != PAD)).astype(jnp.float32)


def token_log_probs(logits: Logits, params: Any, tokens_NxT: jax.Array) -> jax.Array:
    """Log-probability of each token but the first, given those before it; (N, T - 1)."""
    log_probs_NxTxV = jax.nn.log_softmax(logits(params, tokens_NxT[:, :-1]))
    return jnp.take_along_axis(log_probs_NxTxV, tokens_NxT[:, 1:, None], axis=-1)[..., 0]


def group_advantages(rewards_N: np.ndarray, group: int) -> np.ndarray:
    """Rewards minus their group's mean, divided by its standard deviation; (N,) float32.

    Example:
      >>> print(group_advantages(np.array([0.0, 1.0, 1.0, 1.0]), 2).round(2))
      [-1.  1.  0.  0.]
    """
    rewards_GxK = rewards_N.reshape(-1, group)
    centred_GxK = rewards_GxK - rewards_GxK.mean(1, keepdims=True)
    return (centred_GxK / (rewards_GxK.std(1, keepdims=True) + 1e-4)).reshape(-1).astype(np.float32)


def policy_loss(logits: Logits, params: Any, batch: Batch, clip: float, kl_weight: float) -> jax.Array:
    r"""The clipped surrogate, and a penalty for leaving the reference.

    .. math:: -\mathrm{mean}\big[\min(r A, \mathrm{clip}(r, 1 - c, 1 + c)\,A) - \beta\,(e^{d} - d - 1)\big]

    over the tokens of all completions, with the ratio :math:`r = \pi / \pi_{old}`, the advantage :math:`A` and
    :math:`d = \log(\pi_{ref} / \pi)`.
    """
    log_probs = token_log_probs(logits, params, batch.tokens)
    ratio, advantages = jnp.exp(log_probs - batch.old_log_probs), batch.advantages[:, None]
    surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)
    difference = batch.reference_log_probs - log_probs
    objective = surrogate - kl_weight * (jnp.exp(difference) - difference - 1)
    weights = batch.is_completion[:, 1:]
    return -jnp.sum(weights * objective) / jnp.maximum(jnp.sum(weights), 1.0)
