"""What one gradient of a published model says: SmolLM2-135M on the beginning of a module of the standard library."""

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness.report import markdown
from ember_optax import geometry
from examples.lm.llama import logits, read_llama
from examples.lm.training import next_token_loss_of

BATCH_SIZE, LENGTH = 4, 128
_HIDDEN = ("query", "attention_out", "gate", "down")
_BLOCKS = (0, 14, 29)


def measure_model(path: Path) -> dict[str, float]:
    """Effective rank of the gradient, and how well token times feature explains its squares: table and hidden matrices."""
    model = read_llama(path)
    source = Path(argparse.__file__).read_text(encoding="utf-8")
    ids = model.tokenizer.encode(source[:20_000]).ids[: BATCH_SIZE * (LENGTH + 1)]
    batch = jnp.asarray(ids).reshape(BATCH_SIZE, LENGTH + 1)

    loss_fn = next_token_loss_of(functools.partial(logits, model.config))
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(model.params, batch)
    table = _numbers(grads["embed_tokens"]["weight"])
    hidden = [_numbers(grads["blocks"][name]["weight"][block]) for name in _HIDDEN for block in _BLOCKS]
    found = {"loss": float(loss)} | {f"{name}/table": value for name, value in table.items()}
    return found | {f"{name}/hidden": float(np.mean([of[name] for of in hidden])) for name in table}


def _numbers(gradient: jax.Array) -> dict[str, float]:
    rank, explained = geometry.effective_rank(gradient), geometry.factorization_error(jnp.square(gradient))
    most = min(*gradient.shape, BATCH_SIZE * LENGTH) if gradient.shape[0] < 10_000 else min(gradient.shape)
    return {
        "effective rank": float(rank),
        "effective rank over the largest possible": float(rank) / most,
        "explained energy": float(explained.explained_energy),
        "rank one share": float(explained.rank_one_share),
    }


def model_section(numbers: dict[str, Any]) -> str:
    """The numbers for the page."""
    names = [name.removesuffix("/table") for name in numbers if name.endswith("/table")]
    rows = [(name, *(f"{numbers[f'{name}/{of}']:.3g}" for of in ("table", "hidden"))) for name in names]
    text = (
        f"## One gradient of SmolLM2-135M\n\nThe published model, {BATCH_SIZE} sequences of {LENGTH} tokens of Python's "
        f"`argparse.py`, loss {numbers['loss']:.3f} nats\n"
        "per token: its tied table (49,152 x 576) and the mean of four matrices in each of three blocks. One batch, so\n"
        "no spread, and squares of one batch are noise around what an optimizer averages.\n\n"
    )
    return text + markdown(rows, ("", "tied table", "hidden matrices"))
