"""Runs of `examples/pretrain.py` in processes of their own on simulated CPU devices, and what they leave."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.harness.results import ROOT


class Layout(NamedTuple):
    """A number of processes with a number of devices each, and the mesh over all of them."""

    processes: int
    devices: int
    mesh: str

    def __str__(self):
        return f"{self.processes} x {self.devices}"


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


@contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Processes started in here keep their compiled programs in a folder: compiling is most of a small run's time."""
    settings = {"COMPILATION_CACHE_DIR": str(folder), "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    settings |= {"PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    names = {f"JAX_{name}": value for name, value in settings.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def losses(folder: Path, name: str = "ember") -> np.ndarray:
    """The training loss of every step of the run with this name."""
    results = json.loads((folder / "results" / "results.json").read_text())
    return np.array(results["runs"][name]["training_losses"])


def final_state(folder: Path, step: int) -> dict[str, Any]:
    """The arrays of the checkpoint of that step, as NumPy has them."""
    arrays = folder.resolve() / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(arrays).item_metadata.tree
        return checkpointer.restore(arrays, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
