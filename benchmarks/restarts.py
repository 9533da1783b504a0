"""Saves on one set of processes and devices, goes on on another, and compares with the run that was never interrupted.

Every run is `examples/pretrain.py` in processes of its own on simulated CPU devices. The run stops after step 20 of 30 with a
checkpoint; the continued run's losses, parameters and optimizer state are compared with those of the uninterrupted run on the
saving layout. Results are written as they come.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from tabulate import tabulate
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
STEPS, SAVED_AT = 30, 20


class Layout(NamedTuple):
    """So many processes with so many devices each, and the mesh over all of them."""

    processes: int
    devices: int
    mesh: str

    def __str__(self):
        return f"{self.processes} x {self.devices}"


SAVE = [
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "restarts.json", help="results")
    options = parser.parse_args()
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    model = ["--steps", str(STEPS), "--sequence-length", "32"]  # 256 tokens a step; the main job's model otherwise
    with tempfile.TemporaryDirectory() as folder:
        for save in tqdm([save for save in SAVE if str(save) not in results], unit="saving layout"):
            results[str(save)] = measure(save, RESTORE, Path(folder) / str(save), model)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def measure(save: Layout, restores: list[Layout], work: Path, model: list[str]) -> dict[str, dict[str, float]]:
    """Differences after a restart on each of `restores`, from the run on `save` that was never interrupted."""
    saved, whole = save_and_finish(save, work, model)
    return {str(restore): difference(whole, resume(restore, saved, work / str(restore), model)) for restore in restores}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """One line for each pair of layouts."""
    rows = [
        (save, restore, *(f"{value:.1e}" for value in values.values()))
        for save, restored in results.items()
        for restore, values in restored.items()
    ]
    headers = ("saved on", "restored on", "losses", "parameters", "optimizer state")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=("left",) * 2 + ("right",) * 3)


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


def pretrain(layout: Layout, folder: Path, arguments: list[str]) -> None:
    """Runs `examples/pretrain.py` with Ember in one or several processes; checkpoints and results go to `folder`.

    Raises:
      RuntimeError: a process failed; with its messages.
    """
    processes = start(layout, folder, arguments)
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{arguments} failed on {layout}:\n" + "\n".join(outputs))


def start(
    layout: Layout, folder: Path, arguments: list[str], of_process: list[list[str]] | None = None
) -> list[subprocess.Popen]:
    """The processes of such a run, just started; `of_process` holds arguments for each alone."""
    command = [sys.executable, str(ROOT / "examples" / "pretrain.py"), "--optimizers", "ember", "--name", "results"]
    command += ["--mesh", layout.mesh, "--cpu-devices", str(layout.devices)]
    command += ["--checkpoint-dir", str(folder), "--output-dir", str(folder), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    together = ["--coordinator", f"127.0.0.1:{_free_port()}", "--num-processes", str(layout.processes), "--process-id"]
    return [
        subprocess.Popen(
            [*command, *([*together, str(number)] if layout.processes > 1 else []), *(of_process[number] if of_process else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for number in range(layout.processes)
    ]


def difference(whole: Path, resumed: Path) -> dict[str, float]:
    """Largest relative difference of a loss, of a parameter array and of an optimizer-state array."""
    ours, theirs = final_state(resumed / "ember", STEPS), final_state(whole / "ember", STEPS)
    return {
        "losses": float(np.max(np.abs(losses(resumed) / losses(whole) - 1))),
        "params": _relative(ours["params"], theirs["params"]),
        "opt_state": _relative(ours["opt_state"], theirs["opt_state"]),
    }


def losses(folder: Path) -> np.ndarray:
    """The training loss of every step."""
    results = json.loads((folder / "results" / "results.json").read_text())
    return np.array(results["runs"]["ember"]["training_losses"])


def final_state(folder: Path, step: int) -> dict[str, Any]:
    """The arrays of the checkpoint of that step, as NumPy has them."""
    arrays = folder.resolve() / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(arrays).item_metadata.tree
        return checkpointer.restore(arrays, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved))


def _relative(ours: Any, theirs: Any) -> float:
    """The largest difference in any array, as a fraction of the largest value in it."""

    def one(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(one, ours, theirs)))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()
