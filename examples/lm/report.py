"""What a comparison of runs leaves behind: a table, a JSON file and a picture."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from tabulate import tabulate

from .training import SMOOTHED_STEPS, TrainingResult

matplotlib.use("Agg")

STATE_HEADERS = ("state of the tables (bytes)", "state in total (bytes)")
Curve = tuple[Sequence[float], Sequence[float]]


def summary_table(runs: dict[str, dict[str, Any]]) -> str:
    """One line for each run: validation loss, median time of a step, bytes of optimizer state for the tables and in total."""
    rows = [(name, f"{run['validation_loss']:.4f}", _milliseconds(run), *state_cells(run)) for name, run in runs.items()]
    return text_table(rows, ("optimizer", "validation loss", "time of a step (ms)", *STATE_HEADERS))


def text_table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A table of a name and numbers."""
    align = ("left",) + ("right",) * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)


def _milliseconds(run: dict[str, Any]) -> str:
    """None where a resumed run had no step left."""
    seconds = run["median_seconds_per_step"]
    return "" if seconds is None else f"{1e3 * seconds:,.1f}"


def state_cells(run: dict[str, Any]) -> tuple[str, str]:
    """The cells under `STATE_HEADERS`."""
    return f"{run['table_state_bytes']:,}", f"{run['state_bytes']:,}"


def save_results(path: Path, settings: dict[str, Any], runs: dict[str, dict[str, Any]]) -> None:
    """Writes everything measured as JSON, with the versions that made it."""
    written = {"settings": settings, "versions": versions(), "runs": runs}
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide the numbers.

    Example:
      >>> list(versions())
      ['python', 'ember_optax', 'jax', 'jaxlib', 'optax', 'flax', 'numpy']
    """
    libraries = ("ember_optax", "jax", "jaxlib", "optax", "flax", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in libraries}


def save_picture(path: Path, results: dict[str, TrainingResult], title: str) -> None:
    """Draws training loss (running mean of `SMOOTHED_STEPS`) and validation loss of each run."""
    curves = {name: result.training_losses for name, result in results.items()}
    dots = {name: (result.validation_steps, result.validation_losses) for name, result in results.items()}
    save_curves(path, curves, dots, title, "loss (nats per token)", "validation")


def save_curves(
    path: Path, curves: dict[str, list[float]], dots: Mapping[str, Curve], title: str, quantity: str, dotted: str
) -> None:
    """Draws what was measured in each step, as a running mean of `SMOOTHED_STEPS`, and dots (steps, values) over it.

    `dotted` says what the dots are. The legend names only what is drawn: a run without dots has none in it.
    """
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, values in curves.items():
        window = min(SMOOTHED_STEPS, len(values))
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        (line,) = axes.plot(np.arange(window, window + len(smooth)), smooth, alpha=0.4, linewidth=1)
        line.set_label(f"{name}, training")
        if dots[name][0]:
            axes.plot(*dots[name], "o-", color=line.get_color(), markersize=4, label=f"{name}, {dotted}")
    axes.set(xlabel="step", ylabel=quantity, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
