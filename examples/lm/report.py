"""What a comparison of runs leaves behind: a table, a JSON file and a picture."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from tabulate import tabulate

from lm.training import SMOOTHED_STEPS, TrainingResult

matplotlib.use("Agg")


def summary_table(runs: dict[str, dict[str, Any]]) -> str:
    """One line a run: validation loss, bytes of optimizer state for the tables and in total."""
    rows = [
        (name, f"{run['validation_loss']:.4f}", f"{run['table_state_bytes']:,}", f"{run['state_bytes']:,}")
        for name, run in runs.items()
    ]
    headers = ("optimizer", "validation loss", "state of the tables (bytes)", "state in total (bytes)")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=("left",) + ("right",) * 3)


def save_results(path: Path, settings: dict[str, Any], runs: dict[str, dict[str, Any]]) -> None:
    """Writes everything measured as JSON."""
    path.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n", encoding="utf-8")


def save_picture(path: Path, results: dict[str, TrainingResult], title: str) -> None:
    """Draws training loss (running mean of `SMOOTHED_STEPS`) and validation loss of each run."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, result in results.items():
        window = min(SMOOTHED_STEPS, len(result.training_losses))
        smooth = np.convolve(result.training_losses, np.ones(window) / window, mode="valid")
        (line,) = axes.plot(np.arange(window, window + len(smooth)), smooth, alpha=0.4, linewidth=1)
        axes.plot(result.validation_steps, result.validation_losses, "o-", color=line.get_color(), markersize=4, label=name)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(title="dots: validation, thin: training")
    figure.savefig(path, dpi=110)
    plt.close(figure)
