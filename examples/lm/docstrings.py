"""Pairs that every machine with these programs has: a function's signature, and the first sentence of its documentation."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from .devices import report
from .errors import UsageError
from .text import read_documents_below, standard_library

# Besides the standard library: what these programs need anyway.
_PACKAGES = ("flax", "jax", "matplotlib", "numpy", "optax")
_HELD_OUT_EVERY = 5
_QUOTES = '"""'


class Pair(NamedTuple):
    """A signature up to where its documentation begins, the documentation's first sentence, and whose function it is."""

    package: str
    prompt: str
    answer: str


class Examples(NamedTuple):
    """Pairs as rows of tokens.

    Attributes:
      tokens: prompt, answer and padding, (N, T) int32.
      is_answer: 1.0 for the tokens of the answer, (N, T) float32.
    """

    tokens: np.ndarray
    is_answer: np.ndarray


def collect_pairs(cache_dir: Path) -> list[Pair]:
    """One pair for each public, documented function of the standard library and the packages here; each sentence once.

    They are cached below a name made from the versions.
    """
    versions = [sys.version, *(f"{package} {importlib.metadata.version(package)}" for package in _installed())]
    path = cache_dir / f"pairs-{hashlib.sha256(repr(versions).encode()).hexdigest()[:16]}.json"
    if (cached := _read_cache(path)) is not None:
        return cached
    report(f"collecting documented functions of the standard library, {', '.join(_installed())} ...")
    pairs = sorted({pair.answer: pair for package, text in _sources() for pair in pairs_of(package, text)}.values())
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(pairs), encoding="utf-8")
    partial.replace(path)
    return pairs


def pairs_of(package: str, source: str) -> Iterator[Pair]:
    """The pairs of a module's source, none where it cannot be parsed.

    Example:
      >>> print(*next(pairs_of("here", 'def add(a, b=1):\\n    "Add one number to another.  Then stop."')), sep=" | ")
      here | def add(a, b=1):
          \"\"\" | Add one number to another.\"\"\"
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and (sentence := _first_sentence(node)):
            yield Pair(package, f"{_signature(node)}\n    {_QUOTES}", sentence + _QUOTES)


def split_pairs(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs: all of a package are on one side, chosen by a hash of its name."""
    held_out = {package for package, *_ in pairs if int(hashlib.sha256(package.encode()).hexdigest(), 16) % _HELD_OUT_EVERY == 0}
    return [pair for pair in pairs if pair.package not in held_out], [pair for pair in pairs if pair.package in held_out]


def encode_pairs(pairs: list[Pair], tokenizer: tokenizers.Tokenizer, length: int, end: int) -> Examples:
    """The pairs that fit into `length` tokens, `end` behind each answer and in the padding.

    Raises:
      UsageError: none fits.
    """
    prompts = tokenizer.encode_batch_fast([pair.prompt for pair in pairs], add_special_tokens=False)
    answers = tokenizer.encode_batch_fast([pair.answer for pair in pairs], add_special_tokens=False)
    both = [(p.ids, [*a.ids, end]) for p, a in zip(prompts, answers, strict=True) if len(p.ids) + len(a.ids) < length]
    if not both:
        raise UsageError(f"--length {length}: no signature with its documentation fits into so few tokens; use 64 or more")
    tokens = np.full((len(both), length), end, np.int32)
    is_answer = np.zeros((len(both), length), np.float32)
    for row, (prompt, answer) in enumerate(both):
        tokens[row, : len(prompt) + len(answer)] = prompt + answer
        is_answer[row, len(prompt) : len(prompt) + len(answer)] = 1.0
    return Examples(tokens, is_answer)


def _sources() -> Iterator[tuple[str, str]]:
    """Package and text of every module."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path, text in read_documents_below(root, standard_library(root)):
        yield path.parts[0].removesuffix(".py"), text
    for package in _installed():
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for _, text in read_documents_below(Path(folder), list(Path(folder).rglob("*.py"))):
                yield package, text


def _installed() -> list[str]:
    return [package for package in _PACKAGES if importlib.util.find_spec(package)]


def _read_cache(path: Path) -> list[Pair] | None:
    try:
        return [Pair(*pair) for pair in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        report(f"the cache {path} is damaged ({error}), making it anew")
        return None


def _signature(node: ast.FunctionDef) -> str:
    bare = ast.FunctionDef(node.name, node.args, [ast.Pass()], [], node.returns, lineno=1)
    return ast.unparse(bare).rpartition("\n")[0]


def _first_sentence(node: ast.FunctionDef) -> str | None:
    """The first paragraph up to its first full stop, if it is a sentence of four words or more."""
    paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    sentence, stop, _ = (paragraph + " ").partition(". ")
    is_prose = len(sentence.split()) >= 4 and sentence.isascii() and _QUOTES not in sentence and "\\" not in sentence
    return f"{sentence.strip()}." if stop and is_prose else None
