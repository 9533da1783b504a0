"""Pretraining: the main job's transformer on its text, the standard library, at several sizes and batch sizes.

The loss that is compared is the validation loss after the last step, in nats per token. Seeds decide initial parameters and
batches; the validation text is always the same.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.evidence.methods import make_method
from benchmarks.evidence.training import curve, partitioned, table_numbers, table_step, tree_hash
from examples.lm.config import ModelConfig
from examples.lm.text import read_documents
from examples.lm.tokens import Corpus, default_cache_dir, fingerprint, load_corpus, random_batch, validation_batches
from examples.lm.training import init_params, next_token_loss

_VALIDATION_TOKENS = 20_480
_CHECK_EVERY = 25


class Setting(NamedTuple):
    """Sizes, length and the body's peak rate: of 3e-4, 1e-3 and 3e-3 the best for "0.5M" with AdamW on tables and body.

    `precision` is that of matrix products, by JAX's name for it; None is JAX's default. Parameters are float32 in any case.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    tied: bool
    batch: int
    length: int
    steps: int
    body_rate: float
    precision: str | None = None

    @property
    def model(self) -> ModelConfig:
        """As the examples take it."""
        return ModelConfig(self.vocabulary, self.width, self.layers, self.heads, self.tied)

    @property
    def work(self) -> float:
        """Numbers times tokens, by which the cost of a run is estimated."""
        tables = self.vocabulary * self.width * (1 if self.tied else 2)
        return (tables + 12 * self.layers * self.width**2) * self.batch * self.length * self.steps

    def details(self) -> dict[str, Any]:
        """As a line has them; a precision that is not named is left out."""
        return {key: value for key, value in self._asdict().items() if value is not None}


# bfloat16 factors, float32 sums.
_BFLOAT16 = "BF16_BF16_F32"
_SMALL = Setting(4096, 64, 2, 2, tied=False, batch=8, length=64, steps=300, body_rate=1e-3)
_SIZE = _SMALL._replace(vocabulary=24_576)
SETTINGS = {
    "0.5M": _SMALL,
    "0.3M tied": _SMALL._replace(tied=True),
    # Other estimates of the second moment are compared with Ember and Adam without momentum in settings of their own.
    "0.3M tied, estimates": _SMALL._replace(tied=True),
    "0.5M, batch 128, estimates": _SMALL._replace(batch=2, steps=1200),
    # As many tokens, in more or fewer steps.
    "0.5M, batch 128": _SMALL._replace(batch=2, steps=1200),
    "0.5M, batch 2048": _SMALL._replace(batch=32, steps=75),
    "0.5M, batch 64": _SMALL._replace(batch=1, steps=2400),
    "0.5M, batch 8192": _SMALL._replace(batch=128, steps=19),
    "0.5M, 1200 steps": _SMALL._replace(steps=1200),
    "0.5M, 4800 steps": _SMALL._replace(steps=4800),
    "1.6M": _SMALL._replace(vocabulary=8192, width=96, heads=3),
    "2.1M, main job": Setting(8192, 128, 4, 4, tied=False, batch=8, length=128, steps=300, body_rate=1e-3),
    "4.2M": _SMALL._replace(vocabulary=16384, width=128, heads=4),
    "12.6M": _SMALL._replace(vocabulary=32768, width=192, heads=4, steps=150),
    # One vocabulary, so that nats compare; tokens in proportion to the width.
    "size 3.1M": _SIZE,
    "size 4.7M": _SIZE._replace(width=96, heads=3, steps=450),
    "size 6.3M": _SIZE._replace(width=128, layers=4, heads=4, steps=600),
    "size 9.4M": _SIZE._replace(width=192, layers=6, heads=6, steps=900),
    "size 12.6M": _SIZE._replace(width=256, layers=8, heads=8, steps=1200),
    "124M, GPT-2 small": Setting(
        50_257, 768, 12, 12, tied=True, batch=16, length=512, steps=2000, body_rate=6e-4, precision=_BFLOAT16
    ),
    "GPT-2 toy": Setting(1024, 48, 12, 12, tied=True, batch=4, length=32, steps=30, body_rate=1e-3, precision=_BFLOAT16),
    "quick": _SMALL._replace(vocabulary=1024, width=32, layers=1, steps=60, length=32),
    "quick, batch 64": _SMALL._replace(vocabulary=1024, width=32, layers=1, steps=240, length=32, batch=2),
    "quick, larger": _SMALL._replace(vocabulary=2048, width=48, layers=1, steps=60, length=32),
}


def prepare(setting: Setting, method: str) -> Callable[..., tuple[float | None, dict[str, Any]]]:
    """`run(rate, seed, head_rate)` gives the validation loss and details; all runs share one program.

    The loss is None of a run that diverged: not finite, or no better than to know nothing of the text, ln V.
    """
    tables = make_method(method, setting.batch * setting.length)
    loss_fn = _loss(setting)
    evaluate = validation(setting)

    def optimizer(rate, head_rate):
        return partitioned(tables, rate, setting.body_rate, setting.steps, head_rate)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, batch, rate, head_rate):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer(rate, head_rate).update(grads, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, opt_state), (loss, table_step(updates, rate))

    def run(rate: float, seed: int, head_rate: float | None = None) -> tuple[float | None, dict[str, Any]]:
        rates = jnp.float32(rate), jnp.float32(rate if head_rate is None else head_rate)
        params = _init(setting.model)(seed)
        carry = params, optimizer(*rates).init(params)
        numbers = table_numbers(tables, params) | {"base": tree_hash(params)}
        measured = []
        for i in range(setting.steps):
            batch = random_batch(corpus(setting.vocabulary).training, setting.batch, setting.length, (seed, i))
            carry, losses = step(carry, batch, *rates)
            measured.append(losses)
            if i % _CHECK_EVERY == 0 and not np.isfinite(float(losses[0])):
                break
        losses, steps = np.asarray(measured).T
        loss = evaluate(carry[0])
        text = {"text": _fingerprint(setting.vocabulary)}
        details = setting.details() | numbers | text | {"losses": curve(losses), "table_steps": curve(steps)}
        return (round(loss, 6) if loss < math.log(setting.vocabulary) else None), details

    return run


def _loss(setting: Setting) -> Callable[[Any, jax.Array], jax.Array]:
    of_model = next_token_loss(setting.model)

    def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(setting.precision):
            return of_model(params, batch)

    return loss_fn


@functools.cache
def corpus(vocabulary: int) -> Corpus:
    """The standard library's text under a tokenizer of `vocabulary` tokens."""
    return load_corpus(read_documents(None), vocabulary, default_cache_dir())


@functools.cache
def _fingerprint(vocabulary: int) -> str:
    return fingerprint(corpus(vocabulary))


@functools.cache
def _init(model: ModelConfig):
    return jax.jit(lambda seed: init_params(model, jax.random.key(seed)))


@functools.cache
def validation(setting: Setting) -> Callable[[Any], float]:
    """The mean loss on the validation text, the same windows of it for every batch size."""
    loss_fn = jax.jit(_loss(setting))
    count = _VALIDATION_TOKENS // (8 * setting.length)
    batches = validation_batches(corpus(setting.vocabulary).validation, 8, setting.length, count)
    return lambda params: float(np.mean([float(loss_fn(params, batch)) for batch in batches]))
