"""Saves on one set of processes and devices, goes on on another, and compares with the run that was never interrupted.

Every run is `examples/pretrain.py` in processes of its own on simulated CPU devices. The run stops after step 20 of 30 with a
checkpoint; the continued run's losses, parameters and optimizer state are compared with those of the uninterrupted run on the
saving layout. Results are written as they come.
"""

import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.drills.runs import Layout, compiled_once, final_state, losses
from benchmarks.drills.runs import pretrain as pretrain_on
from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, load, parser, save

STEPS, SAVED_AT = 30, 20
# What differences may come to: programs for other meshes round differently.
MOST = {"losses": 1e-6, "params": 1e-6, "opt_state": 1e-6}
# With RESTORE: every pair of 1, 2, 4 and 8 devices of one process, and two processes, each time with the mesh split otherwise.
SAVE = [
    Layout(1, 1, "data=1"),
    Layout(1, 2, "tp=2"),
    Layout(1, 4, "fsdp=4"),
    Layout(1, 8, "data=2,fsdp=2,tp=2"),
    Layout(2, 2, "data=2,fsdp=2"),
    Layout(2, 4, "data=2,fsdp=2,tp=2"),
    Layout(4, 2, "fsdp=4,tp=2"),
    Layout(4, 4, "data=2,fsdp=4,tp=2"),
]
RESTORE = [
    Layout(1, 1, "data=1"),
    Layout(1, 2, "fsdp=2"),
    Layout(1, 4, "fsdp=2,tp=2"),
    Layout(1, 8, "data=2,fsdp=4"),
    Layout(2, 2, "data=2,tp=2"),
]


def main() -> None:
    """Makes every pair of layouts and prints the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--output", type=Path, default=RESULTS / "restarts.json", help="results")
    options = arguments.parse_args()
    results = load(options.output)
    model = ["--steps", str(STEPS), "--sequence-length", "32"]  # 256 tokens a step; the main job's model otherwise
    with tempfile.TemporaryDirectory() as folder:
        for layout in tqdm([layout for layout in SAVE if str(layout) not in results], unit="saving layout"):
            results[str(layout)] = measure(layout, RESTORE, Path(folder) / str(layout), model)
            save(options.output, results)
    results = {str(layout): results[str(layout)] for layout in SAVE}
    save(options.output, results)
    print(table(results))


def measure(layout: Layout, restores: list[Layout], work: Path, model: list[str]) -> dict[str, dict[str, float]]:
    """Differences after a restart on each of `restores`, from the run on `layout` that was never interrupted."""
    saved, whole = save_and_finish(layout, work, model)
    return {str(restore): difference(whole, resume(restore, saved, work / str(restore), model)) for restore in restores}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """One line for each pair of layouts."""
    rows = [
        (save, restore, *(f"{value:.1e}" for value in values.values()))
        for save, restored in results.items()
        for restore, values in restored.items()
    ]
    headers = ("saved on", "restored on", "losses", "parameters", "optimizer state")
    return markdown(rows, headers, names=2)


def save_and_finish(layout: Layout, work: Path, model: list[str]) -> tuple[Path, Path]:
    """Folders of two runs on one layout: one that stopped at a checkpoint after step `SAVED_AT`, one that did all steps."""
    saved, whole = work / "saved", work / "whole"
    pretrain(layout, saved, [*model, "--stop-after", str(SAVED_AT)])
    pretrain(layout, whole, model)
    return saved, whole


def resume(layout: Layout, saved: Path, work: Path, model: list[str]) -> Path:
    """The folder of a run that goes on on `layout` from a copy of `saved`."""
    shutil.copytree(saved, work)
    pretrain(layout, work, [*model, "--resume"])
    return work


def pretrain(layout: Layout, work: Path, model: list[str]) -> None:
    """A run in `work`; of one process, with programs that were compiled by earlier ones.

    Of several processes the first alone finds its programs, and the collectives give up on the others after 30 seconds.
    """
    with compiled_once(work.parent / "compiled") if layout.processes == 1 else nullcontext():
        pretrain_on(layout, work, model)


def difference(whole: Path, resumed: Path) -> dict[str, float]:
    """Largest relative difference of a loss, of a parameter array and of an optimizer-state array."""
    ours, theirs = final_state(resumed / "ember", STEPS), final_state(whole / "ember", STEPS)
    return {
        "losses": float(np.max(np.abs(losses(resumed) / losses(whole) - 1))),
        "params": _relative(ours["params"], theirs["params"]),
        "opt_state": _relative(ours["opt_state"], theirs["opt_state"]),
    }


def _relative(ours: Any, theirs: Any) -> float:
    """The largest difference in any array, as a fraction of the largest value in it."""

    def one(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(one, ours, theirs)))


if __name__ == "__main__":
    main()
