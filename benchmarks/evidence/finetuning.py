"""Fine-tuning: SmolLM2-135M on documentation, and the main job's small model on Python's manual, which is in data/.

The loss that is compared is that of the held-out answers after the last step, in nats per token. Runs of a setting begin with the
same parameters; seeds decide the batches.
"""

import functools
import hashlib
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.evidence.methods import make_method
from benchmarks.evidence.training import curve, partitioned, table_numbers, tree_hash
from examples.lm.config import ModelConfig, RatesConfig, TrainingConfig
from examples.lm.finetuning import Lesson, answer_loss, batches, description_lesson, docstring_lesson, evaluator, published_model
from examples.lm.llama import read_llama
from examples.lm.optimizers import make_optimizer
from examples.lm.tokens import default_cache_dir

_MANUAL = Path(__file__).parent / "data" / "python_manual.txt.xz"


class Setting(NamedTuple):
    """Which model, how long, and the body's peak rate; `pretraining_steps` is None for the published one.

    Without `pinned` the small model learns what the installed packages say of themselves, which cannot be made again elsewhere.
    """

    steps: int
    batch: int
    length: int
    evaluation_examples: int
    body_rate: float
    pretraining_steps: int | None = None
    vocabulary: int = 4096
    width: int = 64
    pinned: bool = True

    @property
    def work(self) -> float:
        """Tokens, by which the cost of a run is estimated."""
        return self.steps * self.batch * self.length


_SMALL = Setting(steps=100, batch=8, length=64, evaluation_examples=320, body_rate=3e-4, pretraining_steps=600)
SETTINGS = {
    "small": _SMALL._replace(pinned=False),
    "small, Python's manual": _SMALL,
    "SmolLM2-135M": Setting(steps=60, batch=8, length=64, evaluation_examples=128, body_rate=3e-5, pinned=False),
    "quick": _SMALL._replace(steps=30, evaluation_examples=64, pretraining_steps=60, vocabulary=1024, width=32, length=32),
}


def prepare(setting: Setting, method: str) -> Callable[..., tuple[float | None, dict[str, Any]]]:
    """`run(rate, seed, head_rate)` gives the held-out loss at the end and details; all runs share one program."""
    lesson = _lesson(setting)
    loss_fn, evaluate = answer_loss(lesson), evaluator(lesson, setting.evaluation_examples)
    tables = make_method(method, setting.batch * setting.length)
    before, base = evaluate(lesson.params), tree_hash(lesson.params)

    def optimizer(rate, head_rate):
        return partitioned(tables, rate, setting.body_rate, setting.steps, head_rate)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, tokens, is_answer, rate, head_rate):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens, is_answer)
        updates, opt_state = optimizer(rate, head_rate).update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def run(rate: float, seed: int, head_rate: float | None = None) -> tuple[float | None, dict[str, Any]]:
        rates = jnp.float32(rate), jnp.float32(rate if head_rate is None else head_rate)
        params = jax.tree.map(jnp.array, lesson.params)  # a copy, whose memory the steps may take
        carry, losses = (params, optimizer(*rates).init(params)), []
        examples = batches(lesson.training, setting.batch, seed)
        for _ in range(setting.steps):
            carry, loss = step(carry, *next(examples), *rates)
            losses.append(float(loss))
            if not np.isfinite(losses[-1]):
                break
        after = evaluate(carry[0])
        numbers = table_numbers(tables, lesson.params) | {"base": base}
        measured = {"text": _fingerprint(lesson), "loss_before": round(before, 6), "losses": curve(losses)}
        details = setting._asdict() | numbers | measured
        return (round(after, 6) if np.isfinite(after) else None), details

    return run


def _fingerprint(lesson: Lesson) -> str:
    """A short name for exactly these examples."""
    arrays = (array for examples in (lesson.training, lesson.held_out) for array in examples)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


@functools.cache
def _lesson(setting: Setting) -> Lesson:
    """Made once, also for several methods."""
    cache = default_cache_dir()
    if setting.pretraining_steps is None:
        return docstring_lesson(read_llama(published_model()), setting.length, cache)
    model = ModelConfig(setting.vocabulary, setting.width, 2, 2, tied=False)
    pretraining = TrainingConfig(setting.pretraining_steps, 8, setting.length, 0, setting.pretraining_steps)
    tx = make_optimizer("adamw", RatesConfig(1e-3, 0.0, 1e-2), setting.pretraining_steps)
    return description_lesson(model, pretraining, tx, cache, manual() if setting.pinned else None)


def manual() -> tuple[list[str], list[str]]:
    """Python's tutorial and FAQ: documents to learn from, and every fifth held out."""
    documents = lzma.decompress(_MANUAL.read_bytes()).decode("utf-8").split("\f")
    return [text for i, text in enumerate(documents) if i % 5 != 0], documents[::5]
