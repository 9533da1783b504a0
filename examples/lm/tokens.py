"""Byte-pair encoding, cached token streams and random batches of them."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from .damage import read_npz
from .devices import report
from .errors import UsageError
from .text import split_documents

_SEPARATOR = "<|endoftext|>"


class Corpus(NamedTuple):
    """Two streams of token ids, uint16 or uint32."""

    training: np.ndarray
    validation: np.ndarray


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/ember_optax`, or `~/.cache/ember_optax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ember_optax"


def load_corpus(documents: list[str], vocabulary_size: int, cache_dir: Path) -> Corpus:
    """Encodes documents with a byte-level BPE of exactly `vocabulary_size` tokens, trained on the training part.

    Tokenizer and ids are cached below a name made from the text and the size.

    Raises:
      UsageError: the text has too few distinct byte pairs for that many tokens.
    """
    path = _cache_path(documents, vocabulary_size, cache_dir)
    if (cached := _read_cache(path, vocabulary_size)) is not None:
        return cached
    report(
        f"training a BPE tokenizer of {vocabulary_size} tokens on {sum(map(len, documents)) / 1e6:.1f} M characters ...",
    )
    training, validation = split_documents(documents)
    tokenizer = _train_tokenizer(training, vocabulary_size)
    corpus = Corpus(encode_documents(tokenizer, training), encode_documents(tokenizer, validation))
    cache_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path.with_suffix(".json")))
    # Renaming is atomic: an interrupted run leaves no half-written cache, and two runs at once do not mix.
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    np.savez(partial, training=corpus.training, validation=corpus.validation)
    partial.replace(path)
    return corpus


def load_tokenizer(documents: list[str], vocabulary_size: int, cache_dir: Path) -> tokenizers.Tokenizer:
    """The tokenizer of `load_corpus`, which must have been called before."""
    return tokenizers.Tokenizer.from_file(str(_cache_path(documents, vocabulary_size, cache_dir).with_suffix(".json")))


def encode_documents(tokenizer: tokenizers.Tokenizer, documents: list[str]) -> np.ndarray:
    """One stream of token ids, with a separator behind each document."""
    separator = tokenizer.token_to_id(_SEPARATOR)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    encodings = tokenizer.encode_batch_fast(documents)
    return np.concatenate([np.asarray([*encoding.ids, separator], dtype) for encoding in encodings])


def fingerprint(corpus: Corpus) -> str:
    """A short name for exactly these tokens."""
    return hashlib.sha256(b"".join(stream.tobytes() for stream in corpus)).hexdigest()[:16]


def check_length(corpus: Corpus, sequence_length: int) -> None:
    """Raises UsageError unless both streams hold at least one sequence and the token after it."""
    for name, stream in corpus._asdict().items():
        if len(stream) <= sequence_length:
            raise UsageError(
                f"the {name} text has {len(stream)} tokens, too few for --sequence-length {sequence_length}: "
                f"use at most {max(len(stream) - 1, 0)}, or more text"
            )


def random_batch(stream: np.ndarray, batch_size: int, sequence_length: int, seed: tuple[int, ...]) -> np.ndarray:
    """`(batch_size, sequence_length + 1)` int32 windows at random places that depend on `seed` alone."""
    starts = np.random.default_rng(seed).integers(0, len(stream) - sequence_length, batch_size)
    return np.stack([stream[start : start + sequence_length + 1] for start in starts]).astype(np.int32)


def validation_batches(stream: np.ndarray, batch_size: int, sequence_length: int, most: int) -> list[np.ndarray]:
    """At most `most` batches of windows spread evenly over the stream, always the same ones."""
    windows = (len(stream) - 1) // sequence_length
    count = max(1, min(most, windows // batch_size))
    starts = np.linspace(0, len(stream) - sequence_length - 1, count * batch_size).astype(int)
    rows = np.stack([stream[start : start + sequence_length + 1] for start in starts]).astype(np.int32)
    return list(rows.reshape(count, batch_size, sequence_length + 1))


def _cache_path(documents: list[str], vocabulary_size: int, cache_dir: Path) -> Path:
    digest = hashlib.sha256("\0".join([tokenizers.__version__, str(vocabulary_size), *documents]).encode()).hexdigest()[:16]
    return cache_dir / f"corpus-{vocabulary_size}-{digest}.npz"


def _read_cache(path: Path, vocabulary_size: int) -> Corpus | None:
    if not path.is_file():
        return None
    try:
        arrays = read_npz(path)
        return Corpus(*(_checked_stream(arrays.get(name), name, vocabulary_size) for name in Corpus._fields))
    except UsageError as error:
        report(f"the cache is not used, and made anew: {error}")
        return None


def _checked_stream(ids: np.ndarray | None, name: str, vocabulary_size: int) -> np.ndarray:
    """Ids beyond the vocabulary would be clipped in silence where a table is read."""
    if ids is None or ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32) or np.max(ids, initial=0) >= vocabulary_size:
        what = "nothing" if ids is None else f"{ids.dtype} of shape {ids.shape}"
        raise UsageError(f"its {name} stream is {what}, not ids below {vocabulary_size}")
    return ids


def _train_tokenizer(documents: list[str], vocabulary_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[_SEPARATOR],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    found = tokenizer.get_vocab_size()
    if found > vocabulary_size:
        raise UsageError(
            f"--vocabulary-size {vocabulary_size}: a byte-level vocabulary has at least {found} tokens, use {found} or more"
        )
    if found < vocabulary_size:
        raise UsageError(
            f"--vocabulary-size {vocabulary_size}: this text makes a vocabulary of {found} tokens, use {found} or more text"
        )
    return tokenizer
