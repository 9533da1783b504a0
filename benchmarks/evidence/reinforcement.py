"""Reinforcement learning: sums, learnt from rewards by the small model of `examples/rl.py`, at several numbers of completions.

The loss that is compared is the share of held-out problems that are answered wrongly after the last step. All runs begin with
the same model, which learnt from solutions with AdamW; seeds decide the problems and the random completions. As many
completions are drawn in all, in fewer or more steps.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lm.config import RatesConfig
from lm.optimizers import make_optimizer
from lm.reinforcement import Policy, RlConfig, make_policy, model_config, reinforce, warm_up

from benchmarks.evidence.methods import make_method
from benchmarks.evidence.training import curve, partitioned, table_numbers, tree_hash

_WARM_UP_BATCH = 64
# What half-lives in tokens are counted in here: completions have so many tokens on average.
_TOKENS_OF_COMPLETION = 5


class Setting(NamedTuple):
    """Sizes, length and the body's peak rate."""

    width: int
    warm_up_steps: int
    steps: int
    prompts: int
    group: int
    updates: int
    body_rate: float
    clip: float = 0.2
    kl_weight: float = 0.0

    def config(self, seed: int) -> RlConfig:
        """As the example takes it."""
        return RlConfig(self.steps, self.prompts, self.group, self.updates, self.clip, self.kl_weight, seed)


_64 = Setting(width=32, warm_up_steps=600, steps=400, prompts=8, group=8, updates=1, body_rate=1e-4)
SETTINGS = {
    "64 completions": _64,
    "8 completions": _64._replace(prompts=1, steps=3200),
    "256 completions": _64._replace(prompts=32, steps=100),
    "quick": _64._replace(width=16, warm_up_steps=60, steps=10, prompts=2),
}


def prepare(setting: Setting, method: str) -> Callable[..., tuple[float | None, dict[str, Any]]]:
    """`run(rate, seed, head_rate)` gives the share of wrong answers at the end and details; all runs share one program."""
    policy = _policy(setting.width, setting.clip, setting.kl_weight)
    base = _base(setting.width, setting.warm_up_steps)
    tables = make_method(method, setting.prompts * setting.group * _TOKENS_OF_COMPLETION)
    steps = setting.steps * setting.updates

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
        details = setting._asdict() | table_numbers(tables, base) | {"base": tree_hash(base)} | measured
        return (round(1 - policy.accuracy(params), 6) if finite else None), details

    return run


@functools.cache
def _policy(width: int, clip: float, kl_weight: float) -> Policy:
    return make_policy(model_config(width, 2, 2, tied=False), clip, kl_weight)


@functools.cache
def _base(width: int, steps: int) -> Any:
    """The model that all runs begin with."""
    tx = make_optimizer("adamw", RatesConfig(2e-3, 0.0, 1e-2), steps)
    learning = warm_up(model_config(width, 2, 2, tied=False), steps, _WARM_UP_BATCH, tx, seed=0)
    params, _ = collections.deque(learning, maxlen=1).pop()
    return params
