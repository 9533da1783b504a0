"""Reinforcement learning: to work sums out, learnt from rewards by a small model that was made before.

The model answers half of the problems at once and works the others out, as its lessons did. The reward asks for a right answer
that is worked out. The loss that is compared is the share of held-out problems without it after the last step. All runs begin
with the same file; seeds decide the problems and the random completions. As many completions are drawn in all, in fewer or more
steps. "Tables alone" freezes the body, so that all that is learnt is learnt in the tables; with all parameters the method
"frozen" tells what is learnt without them.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.evidence import reinforcement_base
from benchmarks.evidence.methods import make_method
from benchmarks.evidence.training import curve, partitioned, table_numbers, tree_hash
from examples.lm.arithmetic import worked_rewards
from examples.lm.reinforcement import HELD_OUT, Policy, RlConfig, make_policy, reinforce

# The tokens of a completion on average. Half-lives in tokens are converted with it.
_TOKENS_OF_COMPLETION = 5


class Setting(NamedTuple):
    """Length, completions of a step, and the body's peak rate, zero where it is frozen."""

    steps: int
    prompts: int
    body_rate: float
    group: int = 8
    updates: int = 1
    clip: float = 0.2
    kl_weight: float = 0.0
    reward: str = "right and worked out"

    @property
    def work(self) -> float:
        """Completions, by which the cost of a run is estimated."""
        return self.steps * self.prompts * self.group

    def config(self, seed: int) -> RlConfig:
        """As the example takes it."""
        return RlConfig(self.steps, self.prompts, self.group, self.updates, self.clip, self.kl_weight, seed)


_TABLES = Setting(steps=150, prompts=8, body_rate=0.0)
# Of 1e-4, 3e-4 and 1e-3 the best with frozen tables, on two seeds of the grid.
_ALL = _TABLES._replace(body_rate=3e-4)
SETTINGS = {
    "tables alone, 64 completions": _TABLES,
    "tables alone, 8 completions": _TABLES._replace(prompts=1, steps=1200),
    "tables alone, 256 completions": _TABLES._replace(prompts=32, steps=38),
    "all parameters, 64 completions": _ALL,
    "quick": _ALL._replace(steps=10, prompts=2),
}


def prepare(setting: Setting, method: str) -> Callable[..., tuple[float | None, dict[str, Any]]]:
    """`run(rate, seed, head_rate)` gives the share without reward at the end and details; all runs share one program."""
    policy = _policy(setting.clip, setting.kl_weight)
    base = reinforcement_base.read()
    tables = make_method(method, setting.prompts * setting.group * _TOKENS_OF_COMPLETION)
    steps = setting.steps * setting.updates
    conditions = {"text": hashlib.sha256(HELD_OUT.tokens.tobytes()).hexdigest()[:16], "base": tree_hash(base)}

    def optimizer(rate, head_rate):
        return partitioned(tables, rate, setting.body_rate, steps, head_rate)

    @jax.jit
    def update(carry, batch, rate, head_rate):
        params, opt_state = carry
        grads = jax.grad(policy.loss)(params, batch)
        updates, opt_state = optimizer(rate, head_rate).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def run(rate: float, seed: int, head_rate: float | None = None) -> tuple[float | None, dict[str, Any]]:
        rates = jnp.float32(rate), jnp.float32(rate if head_rate is None else head_rate)
        carry = base, optimizer(*rates).init(base)
        step = functools.partial(update, rate=rates[0], head_rate=rates[1])
        params, rewards = base, []
        for learnt, reward in reinforce(policy, carry, step, setting.config(seed)):
            rewards.append(reward)
            params = learnt[0]
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        measured = {"loss_before": round(1 - policy.accuracy(base), 6), "rewards": curve(rewards)}
        details = setting._asdict() | table_numbers(tables, base) | conditions | measured
        return (round(1 - policy.accuracy(params), 6) if finite else None), details

    return run


@functools.cache
def _policy(clip: float, kl_weight: float) -> Policy:
    return make_policy(reinforcement_base.model(), clip, kl_weight, worked_rewards)
