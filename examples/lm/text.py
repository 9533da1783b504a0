"""Documents to train on: files of the user's, or the standard library of the Python that runs this."""

import sysconfig
from pathlib import Path

from lm.devices import report
from lm.errors import UsageError

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
    files = [root] if root.is_file() else sorted(_standard_library(root) if data is None else _files_below(root, "*"))
    documents = [text for text in map(_read, files) if text]
    if not documents:
        raise UsageError(f"--data {root}: none of its {len(files)} files is UTF-8 text")
    if len(documents) < len(files):
        report(f"left out {len(files) - len(documents)} of {len(files)} files that are empty or not UTF-8 text")
    return documents


def split_documents(documents: list[str]) -> tuple[list[str], list[str]]:
    """Training and validation texts: every 20th document is held out, or the last 5 % of each where there are few."""
    if len(documents) >= _VALIDATION_EVERY:
        training = [text for i, text in enumerate(documents) if i % _VALIDATION_EVERY != 0]
        return training, documents[::_VALIDATION_EVERY]
    cuts = [len(text) - len(text) // _VALIDATION_EVERY for text in documents]
    pairs = list(zip(documents, cuts, strict=True))
    return [text[:cut] for text, cut in pairs], [text[cut:] for text, cut in pairs]


def _standard_library(root: Path) -> list[Path]:
    return [path for path in _files_below(root, "*.py") if not _LEFT_OUT & set(path.relative_to(root).parts)]


def _files_below(root: Path, pattern: str) -> list[Path]:
    return [path for path in root.rglob(pattern) if path.is_file()]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
