"""Documents to train on: files of the user's, or the standard library of the Python that runs this."""

import importlib.metadata
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from .devices import report
from .errors import UsageError

# Of the standard library: tests are repetitive and missing from some distributions, installed packages are no part of it.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_VALIDATION_EVERY = 20


def read_documents(data: Path | None) -> list[str]:
    """The texts below a file or folder; None means the running Python's standard library, about 12 MB.

    Raises:
      UsageError: nothing is there, or nothing there is UTF-8 text.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if data is None else data
    if not root.exists():
        raise UsageError(f"--data {root}: no such file or folder")
    files = [root] if root.is_file() else sorted(standard_library(root) if data is None else _files_below(root, "*"))
    documents = [text for text in map(_read, files) if text]
    if not documents:
        raise UsageError(f"--data {root}: none of its {len(files)} files is UTF-8 text")
    if len(documents) < len(files):
        report(f"left out {len(files) - len(documents)} of {len(files)} files that are empty or not UTF-8 text")
    return documents


def read_descriptions() -> list[str]:
    """What the installed packages say of themselves: English, with little code, and nothing of the standard library.

    Raises:
      UsageError: none has a description.
    """
    described = {item.metadata["Name"] or "": item.read_text("METADATA") or "" for item in importlib.metadata.distributions()}
    # A description follows the fields of the file, behind an empty line.
    documents = [text for _, file in sorted(described.items()) if (text := file.partition("\n\n")[2].strip())]
    if not documents:
        raise UsageError("none of the installed packages has a description to train on; use --model smollm2")
    return documents


def split_documents(documents: list[str]) -> tuple[list[str], list[str]]:
    """Training and validation texts: every 20th document is held out, or the last 5 % of each where there are few."""
    if len(documents) >= _VALIDATION_EVERY:
        training = [text for i, text in enumerate(documents) if i % _VALIDATION_EVERY != 0]
        return training, documents[::_VALIDATION_EVERY]
    cuts = [len(text) - len(text) // _VALIDATION_EVERY for text in documents]
    pairs = list(zip(documents, cuts, strict=True))
    return [text[:cut] for text, cut in pairs], [text[cut:] for text, cut in pairs]


def standard_library(root: Path) -> list[Path]:
    """The modules of a standard library, tests left out."""
    return [path for path in _files_below(root, "*.py") if not _LEFT_OUT & set(path.relative_to(root).parts)]


def read_documents_below(root: Path, files: list[Path]) -> Iterator[tuple[Path, str]]:
    """Path below the root and text of each file that is UTF-8 text, in order of the paths."""
    for path in sorted(files):
        if text := _read(path):
            yield path.relative_to(root), text


def _files_below(root: Path, pattern: str) -> list[Path]:
    return [path for path in root.rglob(pattern) if path.is_file()]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
