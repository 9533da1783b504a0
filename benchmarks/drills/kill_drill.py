"""Kills a training run with SIGKILL while it saves, again and again, and compares what comes out with an uninterrupted run.

Every run is `examples/pretrain.py` with a checkpoint after every step. While a checkpoint is being written, the process (or
all of several) is killed after a random time, and started again with `--resume`. Checked: no finished checkpoint is lost, so
that at most the step in flight is; and at the end losses, parameters and optimizer state are bit for bit those of the run
that was never killed. Each start of the program is one round; its kills are added to those of earlier rounds in the results.
"""

import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.drills.runs import Layout, compiled_once, final_state, losses, pretrain, start
from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, ROOT, load, parser, save

# Compiled, traced and saved in a fraction of the main job's time, so that a kill costs seconds; the same program otherwise.
SMALL = ["--vocabulary-size", "500", "--width", "16", "--heads", "2", "--layers", "1", "--batch-size", "4"]
SMALL += ["--data", str(ROOT / "ember_optax")]
# Kills come within the time that a checkpoint of the model takes, or soon after it.
_LONGEST_DELAY = {"small": 0.1, "main job": 1.0}


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
    arguments.add_argument("--model", choices=_LONGEST_DELAY, default="small", help="the main job's model, or a small one")
    arguments.add_argument("--output", type=Path, default=RESULTS / "kill_drill.json", help="results")
    options = arguments.parse_args()
    results = load(options.output)
    name = f"{options.model}, processes: {options.processes}"
    before = results.get(name, {"rounds": 0, "each": []})
    delays = random.Random(f"{name}, {before['rounds']}")
    kills, same = one_round(options.kills, options.processes, options.model, delays)
    each = [*map(Kill._make, before["each"]), *kills]
    result = {
        "model": options.model,
        "processes": options.processes,
        "rounds": before["rounds"] + 1,
        "kills": len(each),
        "while a checkpoint was being written": sum(kill.finished < kill.in_flight for kill in each),
        "finished checkpoints lost": sum(kill.found < kill.finished for kill in each),
        "most steps lost": max(kill.in_flight - kill.found for kill in each),
        "bit-identical to the uninterrupted run": same and before.get("bit-identical to the uninterrupted run", True),
    }
    results[name] = result | {"each": each}
    save(options.output, results)
    print(json.dumps(result, indent=1))
    if not same or result["finished checkpoints lost"] or result["most steps lost"] > 1:
        raise SystemExit("the drill failed")


def one_round(count: int, processes: int, model: str, delays: random.Random) -> tuple[list[Kill], bool]:
    """So many kills of one run; and whether what came out at its end is what the uninterrupted run made."""
    layout = Layout(processes, 2, f"fsdp={2 * processes}")
    steps = 5 * count + 10
    options = ["--steps", str(steps), "--sequence-length", "32", "--checkpoint-every", "1", *(SMALL if model == "small" else [])]
    with tempfile.TemporaryDirectory() as folder, compiled_once(Path(folder) / "compiled"):
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        pretrain(layout, whole, options)
        kills = []
        for _ in tqdm(range(count), desc="kills", unit="kill"):
            finished, in_flight, delay = start_and_kill(layout, killed, options, delays, _LONGEST_DELAY[model])
            kills.append(Kill(finished, in_flight, newest(killed), round(delay, 4)))
        pretrain(layout, killed, [*options, "--resume"])
        arrays = [final_state(run / "ember", steps) for run in (whole, killed)]
        return kills, np.array_equal(losses(whole), losses(killed)) and equal(*arrays)


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line for each model and number of processes."""
    rows = [
        (
            f"{of['model']}, {of['processes']}",
            str(of["kills"]),
            str(of["while a checkpoint was being written"]),
            str(of["finished checkpoints lost"]),
            str(of["most steps lost"]),
            "yes" if of["bit-identical to the uninterrupted run"] else "no",
        )
        for of in results.values()
    ]
    headers = (
        "model, processes",
        "kills",
        "in a write",
        "finished checkpoints lost",
        "most steps lost",
        "bit-identical to the run never killed",
    )
    return markdown(rows, headers)


def sentence(results: dict[str, dict[str, Any]]) -> str:
    """All kills together, as the document says it."""
    kills, in_a_write, lost = (
        sum(of[name] for of in results.values())
        for name in ("kills", "while a checkpoint was being written", "finished checkpoints lost")
    )
    after = f"{lost or 'no'} finished checkpoint was torn or lost"
    return f"Of {kills} kills {in_a_write} came while a checkpoint was being written, and {after}."


def start_and_kill(
    layout: Layout, folder: Path, model: list[str], delays: random.Random, longest: float
) -> tuple[int, int, float]:
    """Lets a run go on for a few checkpoints, kills it while it writes one; newest finished one, the one in flight, the delay."""
    target = newest(folder) + delays.randint(2, 4)
    processes = start(layout, folder, [*model, "--resume"])
    try:
        while (in_flight := being_written(folder)) < target:
            if any(process.poll() is not None for process in processes):
                raise RuntimeError(f"a process ended by itself: {[process.communicate()[0] for process in processes]}")
            time.sleep(0.002)
        delay = delays.uniform(0.0, longest)
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
