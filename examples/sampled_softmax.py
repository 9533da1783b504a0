"""Trains a next-token model with a sampled softmax, whose head is row-sparse, and with the full softmax; compares.

The model is an MLP on the embeddings of the last few tokens, with a head of its own. Same initial parameters, same batches,
same optimizer: Ember for both tables, AdamW for the MLP. The input table is row-sparse in both runs, the head in the sampled
one: its step touches the rows of the labels and of the negatives. Both are validated with the full softmax.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lm.command_line import add_text_options
from lm.config import Part, TextConfig
from lm.option_types import learning_rate, positive_int, seed
from lm.program import run
from lm.sampled_softmax import draw_negatives, sampled_softmax_loss, smoothed_unigram
from lm.text import read_documents
from lm.tokens import Corpus, check_length, load_corpus, random_batch, validation_batches
from tabulate import tabulate
from tqdm import tqdm

from ember_optax import ember, row_sparse


@dataclass(frozen=True)
class MlpConfig(Part):
    """Sizes of the model; `window` tokens predict the next one."""

    vocabulary_size: int
    width: int
    hidden: int
    window: int


@dataclass(frozen=True)
class SamplingConfig(Part):
    """How long to train, on what batches and negatives, at which peak rates."""

    steps: int
    batch_size: int
    negatives: int
    learning_rate: float
    ember_learning_rate: float
    seed: int


@dataclass(frozen=True)
class Config:
    """What the program is told."""

    text: TextConfig
    model: MlpConfig
    training: SamplingConfig


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    return run("sampled_softmax.py", compare, read_command_line(arguments))


def compare(config: Config) -> None:
    """Trains with either softmax and prints the table."""
    model, training = config.model, config.training
    corpus = load_corpus(read_documents(config.text.data), model.vocabulary_size, config.text.cache_dir)
    check_length(corpus, model.window)
    print(f"{len(corpus.training):,} training tokens, {training.negatives} negatives of {model.vocabulary_size}")
    rows = [(name, *train(name, corpus, model, training)) for name in ("sampled", "full")]
    headers = ("softmax", "full-softmax loss before", "after training")
    print(f"\n{tabulate(rows, headers, tablefmt='github', floatfmt='.3f')}")


def read_command_line(arguments: list[str] | None) -> Config:
    """The configuration that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_text_options(parser)
    add = parser.add_argument
    add("--width", type=positive_int, default=128, help="features of each token, in both tables")
    add("--hidden", type=positive_int, default=512, help="features between the layers of the MLP")
    add("--window", type=positive_int, default=4, help="tokens that the next one is predicted from")
    add("--negatives", type=positive_int, default=1024, help="tokens drawn in each step, shared by its batch")
    add("--steps", type=positive_int, default=400, help="optimizer steps of each run")
    add("--batch-size", type=positive_int, default=512, help="predictions in a batch")
    add("--learning-rate", type=learning_rate, default=1e-3, help="peak rate of AdamW, for the MLP")
    add("--ember-learning-rate", type=learning_rate, default=1e-2, help="peak rate of Ember, for the tables")
    add("--seed", type=seed, default=0, help="seed of parameters, batches and negatives")
    options = parser.parse_args(arguments)
    return Config(TextConfig.from_options(options), MlpConfig.from_options(options), SamplingConfig.from_options(options))


def train(name: str, corpus: Corpus, model: MlpConfig, config: SamplingConfig) -> tuple[float, float]:
    """Validation losses with the full softmax, before and after training."""
    tx = make_optimizer(config)
    step = jax.jit(make_step(name, tx), donate_argnums=0)
    params = init_params(model, config.seed)
    state = params, tx.init(params)
    proposal = smoothed_unigram(corpus.training, model.vocabulary_size)
    held_out = np.stack(validation_batches(corpus.validation, config.batch_size, model.window, most=20))
    validate = jax.jit(lambda params: jnp.mean(jax.lax.map(lambda tokens: full_loss(params, tokens), held_out)))
    before = float(validate(params))
    for i in (bar := tqdm(range(config.steps), desc=name, unit="step", disable=None)):
        batch = random_batch(corpus.training, config.batch_size, model.window, (config.seed, i))
        state, loss = step(state, batch, *draw_negatives(proposal, config.negatives, (config.seed, i, 1)))
        bar.set_postfix({"loss": f"{float(loss):.3f}"}, refresh=False)
    return before, float(validate(state[0]))


def make_step(name: str, tx: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """A train step with the `sampled` or the `full` softmax."""
    loss_fn = sampled_loss if name == "sampled" else full_loss

    def step(state, tokens, negatives, log_expected_counts):
        params, opt_state = state
        looked_up = {"embed/embedding": tokens[:, :-1]}
        if name == "sampled":
            looked_up["lm_head/weight"] = jnp.concatenate([tokens[:, -1], negatives])
        grad_fn = row_sparse.value_and_grad(loss_fn)
        loss, grads = grad_fn(params, looked_up, tokens, negatives, log_expected_counts)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return step


def make_optimizer(config: SamplingConfig) -> optax.GradientTransformationExtraArgs:
    """Ember for the two tables, which it finds by their names, and AdamW for the MLP."""
    cosine = optax.cosine_decay_schedule(1.0, config.steps, alpha=0.1)
    body = optax.adamw(lambda count: config.learning_rate * cosine(count))
    return ember(lambda count: config.ember_learning_rate * cosine(count), body)


def init_params(model: MlpConfig, seed: int) -> dict[str, dict[str, jax.Array]]:
    """Two tables of tokens and the MLP between them."""
    tokens, width, hidden, inputs = model.vocabulary_size, model.width, model.hidden, model.window * model.width
    keys, normal = jax.random.split(jax.random.key(seed), 4), jax.random.normal
    return {
        "embed": {"embedding": normal(keys[0], (tokens, width))},
        "up": {"kernel": normal(keys[1], (inputs, hidden)) * inputs**-0.5},
        "down": {"kernel": normal(keys[2], (hidden, width)) * hidden**-0.5},
        "lm_head": {"weight": normal(keys[3], (tokens, width)) * 0.02},
    }


def hidden_states(params: Any, tokens_BxT: jax.Array) -> jax.Array:
    """What the head gets, (B, D), of the tokens before the last."""
    x = row_sparse.lookup(params["embed"]["embedding"], tokens_BxT[:, :-1]).reshape(tokens_BxT.shape[0], -1)
    return jax.nn.gelu(x @ params["up"]["kernel"]) @ params["down"]["kernel"]


def sampled_loss(params: Any, tokens_BxT: jax.Array, negatives: jax.Array, log_expected_counts: jax.Array) -> jax.Array:
    """The mean sampled softmax loss of the last tokens."""
    hidden, head = hidden_states(params, tokens_BxT), params["lm_head"]["weight"]
    return jnp.mean(sampled_softmax_loss(hidden, head, tokens_BxT[:, -1], negatives, log_expected_counts))


def full_loss(params: Any, tokens_BxT: jax.Array, *_: jax.Array) -> jax.Array:
    """The mean cross-entropy of the last tokens over the whole vocabulary."""
    logits = hidden_states(params, tokens_BxT) @ params["lm_head"]["weight"].T
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BxT[:, -1]))


if __name__ == "__main__":
    sys.exit(main())
