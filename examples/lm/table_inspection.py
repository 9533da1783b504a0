"""What can be said of a token table by itself: the report, its spectrum, and the tokens that look under-trained."""

import dataclasses
import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from ember_optax import EmberDimensionNumbers, geometry
from ember_optax.integrations import plots

from .config import Part
from .damage import read_npy
from .errors import UsageError
from .model_files import NamedTable
from .standing_out import number_standing_out

_BUCKETS = 5
_BY_FREQUENCY = {
    "mean row norm": geometry.mean_row_norm,
    "mean cosine": geometry.mean_cosine_similarity,
    "mean cosine, centred": partial(geometry.mean_cosine_similarity, centered=True),
    "IsoScore": geometry.iso_score,
}
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_LONGEST = 40


@dataclasses.dataclass(frozen=True)
class InspectionConfig(Part):
    """What is known of the table besides its numbers."""

    token_counts: Path | None
    known_unused: list[int] | None
    untied: bool | None
    top: int


class Inspection(NamedTuple):
    """What was found; arrays are NumPy's.

    Attributes:
      metrics: of `geometry.report`, by their short names.
      spectra: singular values, as they are and centred.
      tokens: scores of all tokens.
      tied: whether the table was taken for a head, or for a table that is also the head.
      standing_out: how many of the lowest scores differ from what random numbers show.
      by_frequency: rows of a table, rarest bucket first; empty without counts.
    """

    metrics: dict[str, float]
    spectra: dict[str, np.ndarray]
    tokens: geometry.UnderTrainedTokens
    tied: bool
    standing_out: int
    by_frequency: list[dict[str, float]]


def token_ids(text: str) -> list[int]:
    """Parses `3,7,100-110`."""
    ids: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ArgumentTypeError(f"{text} is not a list of token ids like 3,7,100-110")
        ids += range(int(match[1]), int(match[2] or match[1]) + 1)
    return ids


def inspect(named: NamedTable, config: InspectionConfig) -> Inspection:
    """Measures a table.

    Raises:
      UsageError: `--token-counts` or `--known-unused` do not fit the table; it holds numbers that are none.
    """
    rows = len(named.table)
    if (damaged := np.flatnonzero(~np.isfinite(named.table).all(1))).size:
        shown = ", ".join(map(str, damaged[:10])) + (", ..." if damaged.size > 10 else "")
        where = f"{damaged.size} of {rows} rows, {shown}"
        raise UsageError(f"the table {named.name} has NaN or infinity in {where}: no metric is defined")
    if outside := [i for i in config.known_unused or [] if i >= rows]:
        raise UsageError(f"--known-unused {outside[0]}: the table {named.name} has the rows 0 to {rows - 1}")
    counts = None if config.token_counts is None else _read_counts(config.token_counts, rows)
    report = geometry.report({named.name: named.table}, token_counts=counts, tables=EmberDimensionNumbers())
    tied = not (named.has_own_head if config.untied is None else config.untied)
    tokens = jax.device_get(geometry.under_trained_tokens(named.table, known_unused=config.known_unused, tied=tied))
    standing_out = number_standing_out(tokens.score, named.table.shape[1], config.known_unused, tied)
    spectra = {"raw": geometry.spectrum(named.table), "centred": geometry.spectrum(named.table, centered=True)}
    by_frequency = [] if counts is None else _by_frequency(named.table, counts)
    prefix = f"geometry/{named.name}/"
    metrics = {name.removeprefix(prefix): value.item() for name, value in report.items()}
    spectra = {name: np.asarray(sigma) for name, sigma in spectra.items()}
    return Inspection(metrics, spectra, tokens, tied, standing_out, by_frequency)


def metrics_table(found: Inspection, texts: Sequence[str] | None) -> str:
    """The report, what is measured of centred rows beside what is measured of the rows themselves."""
    rows = []
    for name, value in found.metrics.items():
        if name.endswith("_centered"):
            continue
        shown = shown_token(value, texts) if name.endswith("_token") else f"{value:,.5g}"
        centred = found.metrics.get(f"{name}_centered")
        rows.append((name.replace("_", " "), shown, "" if centred is None else f"{centred:,.5g}"))
    return tabulate(rows, ("metric", "value", "of centred rows"), tablefmt="github", disable_numparse=True)


def published_table(reports: Sequence[dict[str, float]]) -> str:
    """Rows of the document: every metric that is no token, of several tables."""
    names = [name for name in reports[0] if not name.endswith("_token")]
    return "\n".join(f"| {name.replace('_', ' ')} | {' | '.join(f'{of[name]:.4g}' for of in reports)} |" for name in names)


def frequency_table(found: Inspection) -> str:
    """One line for each bucket of token frequency."""
    rows = [[f"{value:,.4g}" for value in row.values()] for row in found.by_frequency]
    return tabulate(rows, list(found.by_frequency[0]), tablefmt="github", disable_numparse=True)


def suspicious(found: Inspection, texts: Sequence[str] | None, top: int) -> list[dict[str, Any]]:
    """The most suspicious tokens, with every indicator."""
    fields = ("score", "norm", "distance", "distance_centered", "distance_without_first")
    return [
        {"token": i, "text": None if texts is None else texts[i]}
        | {field: float(f"{getattr(found.tokens, field)[i]:.5g}") for field in fields}
        for i in found.tokens.order[:top].tolist()
    ]


def caveat(standing_out: int, shown: int) -> str:
    """What the order of tokens is worth, one sentence."""
    random = "the lowest in a table of random numbers of this size"
    if not standing_out:
        return f"Nothing stands out: the lowest scores are like {random}."
    more = f"All of these and {standing_out - shown:,} more" if standing_out > shown else "All of these"
    which = f"The first {standing_out}" if standing_out < shown else more
    return f"{which} stand out: their scores are further below the bulk than {random}."


def suspicious_table(tokens: list[dict[str, Any]]) -> str:
    """The same for the terminal and for documents."""
    rows = [
        (
            str(token["token"]),
            "" if token["text"] is None else shown_text(token["text"]),
            *(f"{token[field]:.4f}" for field in ("score", "norm", "distance", "distance_centered")),
        )
        for token in tokens
    ]
    headers = ("token", "text", "score", "norm", "distance", "distance, centred")
    align = ("right", "left", *("right",) * 4)
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)


def draw(found: Inspection, named: NamedTable, top: int, folder: Path) -> list[Path]:
    """Writes the pictures; returns where they are."""
    paths = [folder / "spectrum.png", folder / "under_trained.png"]
    axes = [plots.spectrum(found.spectra), plots.under_trained_tokens(found.tokens, named.texts, top=top)]
    for path, of_picture in zip(paths, axes, strict=True):
        of_picture.set_title(f"{of_picture.get_title()}: {named.name}")
        figure: Figure = of_picture.figure  # pyright: ignore[reportAssignmentType]
        figure.savefig(path, dpi=110)
    return paths


def shown_text(text: str) -> str:
    """A token's text on one line of a table: control characters escaped, and what a table would take for its own."""
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"`{repr(cut).replace('|', chr(92) + 'u007c').replace('`', chr(92) + 'x60')}`"


def shown_token(token: float, texts: Sequence[str] | None) -> str:
    """An id, with its text where that is known."""
    return str(int(token)) if texts is None else f"{int(token)} {shown_text(texts[int(token)])}"


def _by_frequency(table: np.ndarray, counts: np.ndarray) -> list[dict[str, float]]:
    found = {name: geometry.by_frequency(metric, table, counts, _BUCKETS) for name, metric in _BY_FREQUENCY.items()}
    any_metric = next(iter(found.values()))
    return [
        {"lowest count": any_metric.lower[i].item(), "highest count": any_metric.upper[i].item()}
        | {"tokens": any_metric.num_tokens[i].item()}
        | {name: of.values[i].item() for name, of in found.items()}
        for i in range(_BUCKETS)
    ]


def _read_counts(path: Path, rows: int) -> np.ndarray:
    try:
        counts = read_npy(path)
    except UsageError as error:
        raise UsageError(f"--token-counts {error}") from error
    if counts.shape != (rows,) or counts.dtype.kind not in "iuf":
        what = f"{counts.dtype} of shape {counts.shape}"
        raise UsageError(f"--token-counts {path}: {what}, but the table needs {rows} numbers, one for each token")
    if not np.all(counts >= 0):
        raise UsageError(f"--token-counts {path}: counts must not be negative")
    return counts.astype(np.float32)
