"""Reinforcement learning of sums by a small language model, with AdamW and with Ember on the token tables, and compares.

The model first learns from solutions (with AdamW, once for both), then from rewards alone: group-normalised policy gradients
(GRPO) of its own answers, which count if they are right. Same problems and same random numbers in both runs; only the optimizer
of the embedding and the head differs. Nothing is downloaded.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from lm.arithmetic import decode, draw_problems
from lm.comparison import (
    Comparison,
    Picture,
    add_comparison_options,
    ends_table,
    followed,
    optimizer_and_bytes,
    parameter_counts,
    save_comparison,
    settings_of,
)
from lm.config import ModelConfig, Part, RatesConfig
from lm.errors import UsageError
from lm.optimizers import make_optimizer
from lm.option_types import learning_rate, positive_int, seed, whole_number
from lm.program import run
from lm.reinforcement import Policy, RlConfig, make_policy, model_config, reinforce, warm_up
from tqdm import tqdm


@dataclass(frozen=True)
class WarmUpConfig(Part):
    """How the model learns from solutions."""

    warm_up_steps: int
    warm_up_batch_size: int
    warm_up_learning_rate: float
    warm_up_table_learning_rate: float


@dataclass(frozen=True)
class Config:
    """What the program is told."""

    model: ModelConfig
    warm_up: WarmUpConfig
    training: RlConfig
    comparison: Comparison
    evaluate_every: int


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    return run("rl.py", compare, read_command_line(arguments))


def read_command_line(arguments: list[str] | None) -> Config:
    """The configuration that the arguments ask for; ends the program where they are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument_group("model").add_argument
    add("--width", type=positive_int, default=32, help="features of each token")
    add("--layers", type=positive_int, default=2, help="transformer blocks")
    add("--heads", type=positive_int, default=2, help="attention heads; width / heads must be even")
    add("--tied", action="store_true", help="share the embedding with the head (untied by default)")
    add = parser.add_argument_group("learning from solutions").add_argument
    add("--warm-up-steps", type=positive_int, default=600, help="steps with AdamW")
    add("--warm-up-batch-size", type=positive_int, default=64, help="solutions in a batch")
    add("--warm-up-learning-rate", type=learning_rate, default=2e-3, help="peak rate for the body")
    add("--warm-up-table-learning-rate", type=learning_rate, default=1e-2, help="peak rate for the tables")
    add = parser.add_argument_group("learning from rewards").add_argument
    add("--steps", type=positive_int, default=300, help="batches of completions")
    add("--prompts", type=positive_int, default=8, help="problems in a batch")
    add("--group", type=positive_int, default=8, help="completions of each problem, which are compared with one another")
    add("--updates", type=positive_int, default=1, help="optimizer steps for each batch")
    add("--clip", type=learning_rate, default=0.2, help="how far the policy's ratio may move in one batch")
    add("--kl-weight", type=learning_rate, default=0.0, help="penalty for leaving the model that was warmed up")
    add("--seed", type=seed, default=0, help="seed of parameters, problems and completions")
    add(
        "--evaluate-every",
        type=whole_number,
        default=50,
        help="steps between evaluations on held-out problems; 0: only at the end",
    )
    add_comparison_options(parser, "rl", body=1e-4, ember=2e-3, adamw=2e-3)
    options = parser.parse_args(arguments)
    try:
        model = model_config(options.width, options.layers, options.heads, tied=options.tied)
        parts = WarmUpConfig.from_options(options), RlConfig.from_options(options), Comparison.from_options(options)
        return Config(model, *parts, options.evaluate_every)
    except UsageError as error:
        parser.error(str(error))


def compare(config: Config) -> None:
    """Learns from rewards once with each optimizer, prints the table and writes JSON and picture."""
    folder = config.comparison.folder()
    policy = make_policy(config.model, config.training.clip, config.training.kl_weight)
    params = learn_from_solutions(config)
    completions = config.training.prompts * config.training.group
    print(f"{parameter_counts(params)}, {config.training.steps} batches of {completions} completions", flush=True)
    runs = {}
    for name in config.comparison.runs.optimizers:
        tx, of_state = optimizer_and_bytes(name, config.comparison, config.training.optimizer_steps, params)
        runs[name] = learn_from_rewards(name, policy, params, tx, config) | of_state
    print(f"\n{ends_table(runs, 'right answers before', digits=3)}")
    settings = settings_of(config.model, config.warm_up, config.training, config.comparison.rates)
    picture = Picture(
        "rewards.png", "rewards", f"sums, {completions} completions a step", "share of right answers", "held-out problems"
    )
    save_comparison(folder, settings, runs, picture)


def learn_from_solutions(config: Config) -> Any:
    """The parameters that both runs begin with."""
    warm = config.warm_up
    rates = RatesConfig(warm.warm_up_learning_rate, 0.0, warm.warm_up_table_learning_rate)
    tx = make_optimizer("adamw", rates, warm.warm_up_steps)
    steps = warm_up(config.model, warm.warm_up_steps, warm.warm_up_batch_size, tx, config.training.seed)
    params = None
    with tqdm(total=warm.warm_up_steps, desc="solutions", unit="step", disable=None) as bar:
        for learnt in steps:
            params, loss = learnt
            bar.set_postfix({"loss": f"{loss:.3f}"}, refresh=False)
            bar.update()
    return params


def learn_from_rewards(
    name: str, policy: Policy, params: Any, tx: optax.GradientTransformation, config: Config
) -> dict[str, Any]:
    """Mean rewards of the steps and, by step, the share of held-out problems solved, with the parameters at the end."""
    total = config.training.steps
    steps = reinforce(policy, (params, tx.init(params)), make_update(policy, tx), config.training)
    found, learnt = followed(name, steps, total, config.evaluate_every or total, policy.accuracy, params, "rewards")
    return found | {"example": _example(policy, learnt)}


def make_update(policy: Policy, tx: optax.GradientTransformation):
    """`update(carry, batch)`: one step of the optimizer, compiled."""

    @jax.jit
    def update(carry, batch):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(policy.loss)(params, batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return update


def _example(policy: Policy, params: Any) -> str:
    problems = draw_problems(1, (4,), (1,))
    return decode(np.asarray(policy.sample(params, problems.tokens, problems.lengths, jax.random.key(1)))[0])


if __name__ == "__main__":
    sys.exit(main())
