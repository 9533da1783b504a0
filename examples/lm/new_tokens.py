"""A published model with a larger vocabulary: texts that become tokens of their own, and special tokens without a text."""

from pathlib import Path

import numpy as np

from ember_optax import vocab

from .errors import UsageError
from .llama import Llama


def read_new_tokens(path: Path) -> list[str]:
    """The texts of a file, one in each line.

    Raises:
      UsageError: the file cannot be read, is no UTF-8, holds nothing, or a text twice.
    """
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--new-tokens {path}: {error}") from error
    if not texts:
        raise UsageError(f"--new-tokens {path}: there is no text in it; write one new token in each line")
    if twice := {text for text in texts if texts.count(text) > 1}:
        raise UsageError(f"--new-tokens {path}: {sorted(twice)[0]!r} is there twice")
    return texts


def with_new_tokens(model: Llama, texts: list[str]) -> tuple[Llama, np.ndarray]:
    """The model with these texts as tokens, each beginning as the mean of the rows of its old pieces; and their ids.

    Raises:
      UsageError: the model has one of them already.
    """
    old = model.tokenizer.get_vocab()
    pieces = {text: model.tokenizer.encode(text, add_special_tokens=False).ids for text in texts}
    if known := [text for text, ids in pieces.items() if len(ids) == 1]:
        raise UsageError(f"--new-tokens: {known[0]!r} is a token of the model already")
    model.tokenizer.add_tokens(texts)
    params, _, _ = vocab.transplant(None, model.params, None, old, model.tokenizer.get_vocab(), pieces=pieces.__getitem__)
    return model._replace(params=params), len(old) + np.arange(len(texts))


def with_special_tokens(model: Llama, count: int) -> tuple[Llama, np.ndarray]:
    """The model with `count` more rows, each the mean of all rows at first, and their ids."""
    size = len(model.params["embed_tokens"]["weight"])
    return model._replace(params=vocab.resize(None, model.params, None, size + count).params), size + np.arange(count)
