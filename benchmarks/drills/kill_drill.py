"""Kills a training run with SIGKILL while it saves, again and again, and compares what comes out with an uninterrupted run.

Every run is `examples/pretrain.py` with a checkpoint after every step. While a checkpoint is being written, the process (or
all of several) is killed after a random time, and started again with `--resume`. Checked: no finished checkpoint is lost, so
that at most the step in flight is; and at the end losses, parameters and optimizer state are bit for bit those of the run
that was never killed.
"""

import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.drills.runs import Layout, final_state, losses, pretrain, start
from benchmarks.harness.results import RESULTS, load, parser, save


class Kill(NamedTuple):
    """One kill: the newest finished checkpoint before it, the one being written, and the one that the next start found."""

    finished: int
    in_flight: int
    found: int
    delay: float


def main() -> None:
    """Runs the drill and writes its results."""
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=25, help="how often to kill")
    arguments.add_argument("--processes", type=int, default=1, help="processes of the run; all are killed at once")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the delays")
    arguments.add_argument("--output", type=Path, default=RESULTS / "kill_drill.json", help="results")
    options = arguments.parse_args()
    layout = Layout(options.processes, 2, f"fsdp={2 * options.processes}")
    steps = 4 * options.kills + 10
    model = ["--steps", str(steps), "--sequence-length", "32", "--checkpoint-every", "1"]
    delays = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        pretrain(layout, whole, model)
        kills = []
        for _ in tqdm(range(options.kills), desc="kills", unit="kill"):
            finished, in_flight, delay = start_and_kill(layout, killed, model, delays)
            kills.append(Kill(finished, in_flight, newest(killed), delay))
        pretrain(layout, killed, [*model, "--resume"])
        same = np.array_equal(losses(whole), losses(killed)) and equal(
            final_state(whole / "ember", steps), final_state(killed / "ember", steps)
        )
    result = {
        "kills": len(kills),
        "processes": options.processes,
        "checkpoint in flight survived": sum(kill.found >= kill.in_flight for kill in kills),
        "finished checkpoints lost": sum(kill.found < kill.finished for kill in kills),
        "most steps lost": max(kill.in_flight - kill.found for kill in kills),
        "bit-identical to the uninterrupted run": same,
    }
    results = load(options.output)
    results[f"processes: {options.processes}"] = result | {"each": [kill._asdict() for kill in kills]}
    save(options.output, results)
    print(json.dumps(result, indent=1))
    if not same or result["finished checkpoints lost"] or result["most steps lost"] > 1:
        raise SystemExit("the drill failed")


def start_and_kill(layout: Layout, folder: Path, model: list[str], delays: random.Random) -> tuple[int, int, float]:
    """Lets a run go on for a few checkpoints, kills it while it writes one; newest finished one, the one in flight, the delay."""
    target = newest(folder) + delays.randint(2, 4)
    processes = start(layout, folder, [*model, "--resume"])
    try:
        while (in_flight := being_written(folder)) < target:
            if any(process.poll() is not None for process in processes):
                raise RuntimeError(f"a process ended by itself: {[process.communicate()[0] for process in processes]}")
            time.sleep(0.001)
        delay = delays.uniform(0.0, 1.0)
        time.sleep(delay)
        finished, in_flight = newest(folder), max(in_flight, being_written(folder))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
    return finished, in_flight, delay


def newest(folder: Path) -> int:
    """The newest finished checkpoint, 0 without any: Orbax renames a folder to the step's number when all is written."""
    return max((int(path.name) for path in _entries(folder) if path.name.isdecimal()), default=0)


def being_written(folder: Path) -> int:
    """The step of the checkpoint in flight, 0 without any."""
    names = (re.match(r"(\d+)\.orbax-checkpoint-tmp", path.name) for path in _entries(folder))
    return max((int(match.group(1)) for match in names if match), default=0)


def equal(ours, theirs) -> bool:
    """Whether two trees of arrays are the same bit for bit."""
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))


def _entries(folder: Path) -> list[Path]:
    return list((folder / "ember").iterdir()) if (folder / "ember").exists() else []


if __name__ == "__main__":
    main()
