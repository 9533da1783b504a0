"""A small model that learns sums: first from solutions, then from nothing but whether its own answers are right."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .arithmetic import LEVELS, VOCABULARY_SIZE, Problems, draw_problems, repeated, rewards, solutions
from .config import ModelConfig, Part
from .errors import UsageError
from .grpo import Batch, complete, completion_mask, group_advantages, policy_loss, token_log_probs
from .training import init_params, logits_function

HELD_OUT = draw_problems(2048, LEVELS, (2**32,))  # no seed of a run is as large


@dataclass(frozen=True)
class RlConfig(Part):
    """How long to learn from rewards, and from how many completions at a time.

    `updates` is how many steps of the optimizer each batch of completions gives: from the second on the policy is no longer
    the one that drew them, which is what `clip` is for.
    """

    steps: int
    prompts: int
    group: int
    updates: int
    clip: float
    kl_weight: float
    seed: int

    def __post_init__(self):
        if self.group < 2:
            raise UsageError(f"--group {self.group}: a completion is compared with the others of its prompt; use 2 or more")

    @property
    def optimizer_steps(self) -> int:
        """Steps of the optimizer in all."""
        return self.steps * self.updates


class Policy(NamedTuple):
    """The compiled functions of a model that solves sums.

    Attributes:
      loss: `loss(params, batch)`, the policy gradient's.
      sample: `sample(params, tokens, lengths, key)`, random completions.
      batch: `batch(params, reference, tokens, lengths, advantages)`, what `loss` learns from.
      accuracy: `accuracy(params)`, the mean reward of random completions of held-out problems, always the same random ones.
      reward: `reward(problems, tokens)`, 1 or 0 for each completion.
    """

    loss: Callable[[Any, Batch], jax.Array]
    sample: Callable[..., jax.Array]
    batch: Callable[..., Batch]
    accuracy: Callable[[Any], float]
    reward: Callable[[Problems, np.ndarray], np.ndarray]


def model_config(width: int, layers: int, heads: int, *, tied: bool) -> ModelConfig:
    """A transformer over the vocabulary of sums."""
    return ModelConfig(VOCABULARY_SIZE, width, layers, heads, tied)


def make_policy(
    model: ModelConfig, clip: float, kl_weight: float, reward: Callable[[Problems, np.ndarray], np.ndarray] = rewards
) -> Policy:
    """Everything that is compiled and does not depend on the optimizer."""
    logits = logits_function(model)

    @jax.jit
    def make_batch(params, reference, tokens, lengths, advantages):
        mask = completion_mask(tokens, lengths)
        return Batch(
            tokens, mask, advantages, token_log_probs(logits, params, tokens), token_log_probs(logits, reference, tokens)
        )

    @jax.jit
    def answer_held_out(params):
        return complete(logits, params, jnp.asarray(HELD_OUT.tokens), jnp.asarray(HELD_OUT.lengths), jax.random.key(0))

    return Policy(
        loss=lambda params, batch: policy_loss(logits, params, batch, clip, kl_weight),
        sample=jax.jit(lambda *arguments: complete(logits, *arguments)),
        batch=make_batch,
        accuracy=lambda params: float(np.mean(reward(HELD_OUT, np.asarray(answer_held_out(params))))),
        reward=reward,
    )


def warm_up(model: ModelConfig, steps: int, batch_size: int, tx: optax.GradientTransformation, seed: int) -> Iterator[Any]:
    """Learns from solutions: yields parameters and loss after each step."""
    logits = logits_function(model)

    def loss_fn(params, tokens, mask):
        return -jnp.sum(mask[:, 1:] * token_log_probs(logits, params, tokens)) / jnp.sum(mask[:, 1:])

    @jax.jit
    def step(carry, problems: Problems, solved):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, solved, completion_mask(solved, jnp.asarray(problems.lengths)))
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    params = init_params(model, seed)
    carry = params, tx.init(params)
    for i in range(steps):
        problems = draw_problems(batch_size, LEVELS, (seed, i))
        carry, loss = step(carry, problems, solutions(problems, (seed, i, 1)))
        yield carry[0], float(loss)


def reinforce(policy: Policy, carry: Any, update: Callable[[Any, Batch], Any], config: RlConfig) -> Iterator[tuple[Any, float]]:
    """Learns from rewards: yields the carry `(params, opt_state)` and the mean reward after each step.

    `update(carry, batch)` is one step of the optimizer. Problems depend on the seed and the step alone.
    """
    reference = jax.tree.map(jnp.copy, carry[0])  # `update` may take the carry's memory
    for i in range(config.steps):
        problems = repeated(draw_problems(config.prompts, LEVELS, (config.seed, i, 2)), config.group)
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        tokens = policy.sample(carry[0], problems.tokens, problems.lengths, key)
        reward = policy.reward(problems, np.asarray(tokens))
        batch = policy.batch(carry[0], reference, tokens, problems.lengths, group_advantages(reward, config.group))
        for _ in range(config.updates):
            carry = update(carry, batch)
        yield carry, float(np.mean(reward))
