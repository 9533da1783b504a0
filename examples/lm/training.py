"""One training run: a jitted step, a progress bar, validation on the way."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from lm.model import ModelConfig, Transformer
from lm.tokens import Corpus, random_batch, validation_batches


class TrainingConfig(NamedTuple):
    """How long, on what and how often to validate."""

    steps: int
    batch_size: int
    sequence_length: int
    seed: int
    validate_every: int
    validation_batches: int = 20


class TrainingResult(NamedTuple):
    """What one run measured."""

    training_losses: list[float]
    validation_steps: list[int]
    validation_losses: list[float]
    milliseconds_per_step: float
    parameters: Any


def init_params(config: ModelConfig, seed: int) -> tuple[dict, Callable[[dict, jax.Array], jax.Array]]:
    """A nested dictionary of parameters and the function `logits(params, ids)`."""
    graph, state = nnx.split(Transformer(config, nnx.Rngs(seed)))

    def logits(params: dict, ids_BxT: jax.Array) -> jax.Array:
        restored = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(restored, params)
        return nnx.merge(graph, restored)(ids_BxT)

    return nnx.to_pure_dict(state), logits


def train(
    name: str,
    model: ModelConfig,
    config: TrainingConfig,
    tx: optax.GradientTransformation,
    corpus: Corpus,
) -> TrainingResult:
    """Trains a fresh model with `tx`; parameters and batches depend on the seed alone, so runs can be compared."""
    params, logits = init_params(model, config.seed)

    def loss_fn(params, batch):
        per_token = optax.softmax_cross_entropy_with_integer_labels(logits(params, batch[:, :-1]), batch[:, 1:])
        return jnp.mean(per_token)

    def step_fn(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = jax.jit(tx.init)(params)
    step = jax.jit(step_fn, donate_argnums=(0, 1)).lower(params, opt_state, _batch(corpus, config, 0)).compile()
    held_out = validation_batches(corpus.validation, config.batch_size, config.sequence_length, config.validation_batches)
    evaluate = jax.jit(loss_fn)

    losses, seconds, validation = [], [], []
    tokens = config.batch_size * config.sequence_length
    with tqdm(total=config.steps, desc=name, unit="step") as bar:
        for i in range(config.steps):
            batch = _batch(corpus, config, i)
            start = time.perf_counter()
            params, opt_state, loss = step(params, opt_state, batch)
            losses.append(float(loss))
            seconds.append(time.perf_counter() - start)
            bar.update()
            bar.set_postfix({"loss": f"{losses[-1]:.3f}", "tokens/s": f"{tokens / seconds[-1]:,.0f}"}, refresh=False)
            if (i + 1) % config.validate_every == 0 or i + 1 == config.steps:
                validation.append((i + 1, float(np.mean([evaluate(params, batch) for batch in held_out]))))
    steps, validation_losses = zip(*validation, strict=True)
    return TrainingResult(losses, list(steps), list(validation_losses), 1e3 * float(np.median(seconds)), params)


def state_bytes(tx: optax.GradientTransformation, params: Any) -> int:
    """Bytes of the optimizer state for these parameters, without allocating it."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params)))


def _batch(corpus: Corpus, config: TrainingConfig, step: int) -> np.ndarray:
    return random_batch(corpus.training, config.batch_size, config.sequence_length, (config.seed, step))
