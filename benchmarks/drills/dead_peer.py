"""Kills one of two processes that train together with SIGKILL, and times how long the other goes on waiting for it.

The run is `examples/pretrain.py`. The survivor has to exit with an error, within the heartbeat timeout that
`jax.distributed.initialize` was given, whether the killed process was the coordinator (process 0) or not. One run asks for no
timeout and shows JAX's own, 100 seconds.
"""

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.drills.kill_drill import SMALL, newest
from benchmarks.drills.runs import Layout, start
from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, load, parser, save

# JAX's, where nothing else is asked for.
DEFAULT_HEARTBEAT = 100
# How long a busy machine may take to end a process that has to end.
GRACE = 30.0
# What the survivor's messages may say, and how they say it.
_SIGNS = {"connection closed": "closed by peer", "heartbeat": "heartbeat", "fatal": "distributed service detected fatal errors"}


def main() -> None:
    """Runs the drill and writes its results as they come."""
    arguments = parser(__doc__)
    arguments.add_argument("--heartbeats", type=int, nargs="+", default=[10, 30, 100], help="timeouts in seconds")
    arguments.add_argument("--output", type=Path, default=RESULTS / "dead_peer.json", help="results")
    options = arguments.parse_args()
    results = load(options.output)
    wanted = {
        f"{heartbeat} s, process {victim} killed": (heartbeat, victim) for heartbeat in options.heartbeats for victim in (0, 1)
    }
    for name, (heartbeat, victim) in tqdm(wanted.items(), unit="kill"):
        if name not in results:
            with tempfile.TemporaryDirectory() as folder:
                results[name] = measure(Path(folder), heartbeat, victim, SMALL)
            save(options.output, results)
    print(table(results))
    if late := [name for name, of in results.items() if not of["exited"] or of["seconds"] > of["heartbeat"] + GRACE]:
        raise SystemExit(f"the drill failed: {late}")


def measure(folder: Path, heartbeat: int, victim: int, model: list[str]) -> dict[str, Any]:
    """Seconds from the kill to the survivor's exit, its exit status, and the line of its messages that says why."""
    asked = [] if heartbeat == DEFAULT_HEARTBEAT else ["--heartbeat-timeout", str(heartbeat)]
    layout = Layout(2, 1, "data=2")
    processes = start(layout, folder, [*model, "--steps", "100000", "--checkpoint-every", "5", *asked])
    survivor = processes[1 - victim]
    try:
        while not newest(folder):
            if any(process.poll() is not None for process in processes):
                raise RuntimeError(f"a process ended by itself: {[process.communicate()[0] for process in processes]}")
            time.sleep(0.1)
        processes[victim].kill()
        killed_at = time.perf_counter()
        try:
            output, _ = survivor.communicate(timeout=heartbeat + 2 * GRACE)
        except subprocess.TimeoutExpired:
            output = ""
        seconds = time.perf_counter() - killed_at
        status = survivor.poll()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return {
        "heartbeat": heartbeat,
        "killed": victim,
        "exited": bool(status),
        "status": status,
        "seconds": round(seconds, 1),
        "said": sorted({name for name, sign in _SIGNS.items() if sign in output}),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line for each timeout and process killed."""
    rows = [
        (f"{of['heartbeat']} s", "0, the coordinator" if of["killed"] == 0 else "1", f"{of['seconds']} s", str(of["status"]))
        for of in results.values()
    ]
    return markdown(rows, ("heartbeat timeout", "process killed", "the other exited after", "with status"), names=2)


if __name__ == "__main__":
    main()
