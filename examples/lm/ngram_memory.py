"""A hashed memory of bigrams and trigrams that is added to the input of the main job's model, and its training.

The memory is a `large_tables.HostTable`: its rows are in host memory or in a file. Each place of a text has the row of its bigram
and that of its trigram, by a hash of the tokens.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from ember_optax import large_tables

from .config import ModelConfig, RatesConfig, TrainingConfig
from .memory_optimizers import MEMORY_OPTIMIZERS
from .optimizers import make_optimizer, schedule
from .tokens import Corpus
from .training import TrainingResult, init_params, model_function, next_token_loss_of, progress, training_batch

_TOKEN_BITS = 21  # three tokens in 63 bits
_BIGRAM = np.uint64(1 << 63)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd: multiplicative hashing


class Program(NamedTuple):
    """The compiled functions of a run."""

    init: Callable[[int], tuple[Any, Any]]
    step: Callable[..., tuple[Any, Any, large_tables.FetchedRows, jax.Array]]
    evaluate: Callable[..., jax.Array]


def make_table(rows: int, model: ModelConfig, optimizer: str, path: Any = None) -> large_tables.HostTable:
    """A memory of zeros. Without rows it is a table of one row, which no place of a text has."""
    parts = MEMORY_OPTIMIZERS[optimizer].parts
    shape = (max(rows, 1), model.width) if parts == 1 else (max(rows, 1), parts, model.width)
    return large_tables.HostTable(shape, seed=0, std=0.0, path=path)


def ngram_ids(tokens_BxT: np.ndarray, rows: int) -> np.ndarray:
    """The rows of the bigram and the trigram that end at each place, (B, T, 2); -1 where the text has not enough tokens yet.

    Example:
      >>> ngram_ids(np.array([[5, 6, 7], [4, 6, 7]]), 1000).tolist()
      [[[-1, -1], [286, -1], [119, 438]], [[-1, -1], [70, -1], [119, 274]]]
    """
    ids_BxTx2 = np.full((*tokens_BxT.shape, 2), -1, np.int64)
    if rows:
        keys = tokens_BxT.astype(np.uint64)
        bigrams = keys[:, :-1] << np.uint64(_TOKEN_BITS) | keys[:, 1:]
        trigrams = keys[:, :-2] << np.uint64(2 * _TOKEN_BITS) | bigrams[:, 1:]
        ids_BxTx2[:, 1:, 0] = _hashed(bigrams | _BIGRAM, rows)
        ids_BxTx2[:, 2:, 1] = _hashed(trigrams, rows)
    return ids_BxTx2


def _hashed(keys: np.ndarray, rows: int) -> np.ndarray:
    return ((keys * _MULTIPLIER >> np.uint64(32)) * np.uint64(rows) >> np.uint64(32)).astype(np.int64)


@functools.cache
def make_program(model: ModelConfig, rates: RatesConfig, steps: int, optimizer: str) -> Program:
    """The functions of a run: `step(params, opt_state, fetched, batch, memory_rate)` and `evaluate(params, fetched, batch)`."""
    tx, of_memory = make_optimizer("ember", rates, steps), MEMORY_OPTIMIZERS[optimizer]
    with_parameters, shape = model_function(model), schedule(1.0, steps)

    def loss_fn(params: Any, rows: jax.Array, places: jax.Array, batch_BxT: jax.Array) -> jax.Array:
        weights = rows if of_memory.parts == 1 else rows[:, 0]
        memory_BxTxD = large_tables.lookup(weights, places).sum(-2)
        return next_token_loss_of(lambda params, ids_BxT: with_parameters(params)(ids_BxT, memory_BxTxD))(params, batch_BxT)

    @jax.jit
    def init(seed):
        params = init_params(model, jax.random.key(seed))
        return params, tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, fetched, batch_BxT, memory_rate):
        of_loss = jax.value_and_grad(loss_fn, (0, 1))
        loss, (grads, row_grads) = of_loss(params, fetched.rows, fetched.places, batch_BxT)
        updates, opt_state = tx.update(grads, opt_state, params)
        fetched = of_memory.update(fetched, row_grads, memory_rate * shape(fetched.count))
        return optax.apply_updates(params, updates), opt_state, fetched, loss

    evaluate = jax.jit(lambda params, fetched, batch_BxT: loss_fn(params, fetched.rows, fetched.places, batch_BxT))
    return Program(init, step, evaluate)


def train(
    name: str,
    program: Program,
    config: TrainingConfig,
    corpus: Corpus,
    held_out: list[np.ndarray],
    table: large_tables.HostTable,
    ids_of: Callable[[np.ndarray], np.ndarray],
    memory_rate: float,
    save_every: int | None = None,
) -> TrainingResult:
    """Trains a model and its memory from the last save of the table, or from the first step.

    `ids_of` gives the ids in the memory of a batch, (B, T + 1). With `save_every`, the table is in a file, and the model and what
    was measured are saved with it.
    """
    done = table.count + table.total_notfinite
    validated = [step for step in range(1, config.steps + 1) if step % config.validate_every == 0 or step == config.steps]
    carry = (*program.init(config.seed), np.zeros(config.steps, np.float32), np.zeros(len(validated), np.float32))
    params, opt_state, losses, validation = table.restore(carry) if done else carry
    losses, validation = np.array(losses), np.array(validation)
    rate, seconds = jnp.float32(memory_rate), []
    batches = (training_batch(corpus, config, step) for step in range(done, config.steps))
    with tqdm(total=config.steps, initial=done, desc=name, unit="step", disable=None) as bar:
        start = time.perf_counter()
        for batch, fetched in table.prefetch(batches, ids_of):
            params, opt_state, stepped, loss = program.step(params, opt_state, fetched, batch, rate)
            table.write(stepped)
            losses[done] = loss
            done += 1
            seconds.append(time.perf_counter() - start)
            if done in validated:
                found = [program.evaluate(params, table.fetch(ids_of(batch)), batch) for batch in held_out]
                validation[validated.index(done)] = np.mean([float(loss) for loss in found])
            if save_every and (done % save_every == 0 or done == config.steps):
                table.save((params, opt_state, losses, validation))
            known = sum(step <= done for step in validated)
            history = {"losses": losses[:done], "validation_losses": validation[:known].tolist()}
            bar.set_postfix(progress(history, config.batch_size * config.sequence_length / seconds[-1]), refresh=False)
            bar.update()
            start = time.perf_counter()
    median = float(np.median(seconds[1:] or seconds)) if seconds else None  # the first step compiles
    return TrainingResult(losses.tolist(), validated, validation.tolist(), median, params, [])
