"""Trains a next-token model with a sampled softmax, whose head is row-sparse, and with the full softmax; compares.

The model is an MLP on the embeddings of the last few tokens, with a head of its own. Same initial parameters, same batches,
same optimizer: Ember for both tables, AdamW for the MLP. The input table is row-sparse in both runs, the head in the sampled
one: its step touches the rows of the labels and of the negatives. Both are validated with the full softmax.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lm.errors import UsageError
from lm.sampled_softmax import draw_negatives, sampled_softmax_loss, smoothed_unigram
from lm.text import read_documents
from lm.tokens import Corpus, check_length, default_cache_dir, load_corpus, random_batch, validation_batches
from tabulate import tabulate
from tqdm import tqdm

from ember_optax import ember, row_sparse


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = parse_options(arguments)
    try:
        corpus = load_corpus(read_documents(options.data), options.vocabulary_size, options.cache_dir)
        check_length(corpus, options.window)
    except (UsageError, OSError) as error:
        print(f"sampled_softmax.py: {error}", file=sys.stderr)
        return 2
    print(f"{len(corpus.training):,} training tokens, {options.negatives} negatives of {options.vocabulary_size}")
    rows = [(name, *train(name, corpus, options)) for name in ("sampled", "full")]
    headers = ("softmax", "full-softmax loss before", "after training", "ms per step")
    print(f"\n{tabulate(rows, headers, tablefmt='github', floatfmt=('', '.3f', '.3f', '.1f'))}")
    return 0


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="a UTF-8 text file, or a folder of them; the default is Python's standard library")
    add("--vocabulary-size", type=_positive_int, default=8192, help="tokens of the BPE vocabulary, trained on the text")
    add("--cache-dir", type=Path, default=default_cache_dir(), help="where tokenizers and encoded texts are kept")
    add("--width", type=_positive_int, default=128, help="features of each token, in both tables")
    add("--hidden", type=_positive_int, default=512, help="features between the layers of the MLP")
    add("--window", type=_positive_int, default=4, help="tokens that the next one is predicted from")
    add("--negatives", type=_positive_int, default=1024, help="tokens drawn in each step, shared by its batch")
    add("--steps", type=_positive_int, default=400, help="optimizer steps of each run")
    add("--batch-size", type=_positive_int, default=512, help="predictions in a batch")
    add("--learning-rate", type=float, default=1e-3, help="peak rate of AdamW, for the MLP")
    add("--ember-learning-rate", type=float, default=1e-2, help="peak rate of Ember, for the tables")
    add("--seed", type=int, default=0, help="seed of parameters, batches and negatives")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed {options.seed} is not a whole number from 0 to 2^32 - 1")
    return options


def train(name: str, corpus: Corpus, options: argparse.Namespace) -> tuple[float, float, float]:
    """Validation losses with the full softmax, before and after training, and the median milliseconds of a step."""
    tx = make_optimizer(options)
    step = jax.jit(make_step(name, tx), donate_argnums=0)
    params = init_params(options)
    state = params, tx.init(params)
    proposal = smoothed_unigram(corpus.training, options.vocabulary_size)
    held_out = np.stack(validation_batches(corpus.validation, options.batch_size, options.window, most=20))
    validate = jax.jit(lambda params: jnp.mean(jax.lax.map(lambda tokens: full_loss(params, tokens), held_out)))
    before, seconds = float(validate(params)), []
    for i in (bar := tqdm(range(options.steps), desc=name, unit="step")):
        start = time.perf_counter()
        batch = random_batch(corpus.training, options.batch_size, options.window, (options.seed, i))
        state, loss = step(state, batch, *draw_negatives(proposal, options.negatives, (options.seed, i, 1)))
        bar.set_postfix({"loss": f"{float(loss):.3f}"}, refresh=False)
        seconds.append(time.perf_counter() - start)
    return before, float(validate(state[0])), 1e3 * median(seconds[1:] or seconds)  # the first step compiles


def make_step(name: str, tx: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """A train step with the `sampled` or the `full` softmax."""
    loss_fn = sampled_loss if name == "sampled" else full_loss

    def step(state, tokens, negatives, log_expected_counts):
        params, opt_state = state
        looked_up = {"embed/embedding": tokens[:, :-1]}
        if name == "sampled":
            looked_up["lm_head/weight"] = jnp.concatenate([tokens[:, -1], negatives])
        grad_fn = row_sparse.value_and_grad(loss_fn)
        loss, grads, token_ids = grad_fn(params, looked_up, tokens, negatives, log_expected_counts)
        updates, opt_state = tx.update(grads, opt_state, params, token_ids=token_ids)
        return (row_sparse.apply_updates(params, updates, token_ids), opt_state), loss

    return step


def make_optimizer(options: argparse.Namespace) -> optax.GradientTransformationExtraArgs:
    """Ember for the two tables, which it finds by their names, and AdamW for the MLP."""
    cosine = optax.cosine_decay_schedule(1.0, options.steps, alpha=0.1)
    body = optax.adamw(lambda count: options.learning_rate * cosine(count))
    return ember(lambda count: options.ember_learning_rate * cosine(count), body)


def init_params(options: argparse.Namespace) -> dict[str, dict[str, jax.Array]]:
    """Two tables of tokens and the MLP between them."""
    tokens, width, hidden, inputs = options.vocabulary_size, options.width, options.hidden, options.window * options.width
    keys, normal = jax.random.split(jax.random.key(options.seed), 4), jax.random.normal
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


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
