"""A step on a table in host memory against PyTorch's `nn.Embedding(sparse=True)` with `SparseAdam`, in paired processes.

Both have the same table, the same ids and the same loss. A step is lookup, gradient and optimizer; that of `HostTable` also
fetches the rows and writes them back. Two processes take turns in short blocks, so that both meet the same load of the machine;
the ratio is that of neighbours. With one thread both processes are bound to one core. PyTorch needs an environment of its own:

    python3 -m venv FOLDER && FOLDER/bin/pip install torch numpy
    python -m benchmarks.measure.sparse_adam --torch-python FOLDER/bin/python
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.harness.results import RESULTS, ROOT, load, machine, parser, save
from benchmarks.measure.large_tables import IDS, RATE, WIDTH, id_sets

_STEP = ROOT / "benchmarks" / "measure" / "sparse_adam_step.py"
_OURS, _THEIRS = "HostTable, Ember", "nn.Embedding, SparseAdam"


def main() -> None:
    """Measures, prints and writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--torch-python", type=Path, required=True, help="a Python that has torch and numpy")
    arguments.add_argument("--rows", type=int, default=10_000_000, help="rows of the table")
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of both processes")
    arguments.add_argument("--blocks", type=int, default=12, help="pairs of blocks")
    arguments.add_argument("--block", type=int, default=40, help="steps in a block")
    arguments.add_argument("--output", type=Path, default=RESULTS / "sparse_adam.json", help="results")
    options = arguments.parse_args()
    results = load(options.output)
    results |= {"machine": machine(), "rows": options.rows, "features": WIDTH, "ids": IDS}
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.npy"
        np.save(ids, np.stack(id_sets(options.rows)))
        for threads in options.threads:
            told = [str(threads), str(options.rows), str(WIDTH), str(RATE), str(ids)]
            commands = {_OURS: [sys.executable, _STEP, "ember", *told], _THEIRS: [options.torch_python, _STEP, "torch", *told]}
            results.setdefault("threads", {})[f"{threads}"] = compare(commands, threads, options.blocks, options.block)
            save(options.output, results)
    print(json.dumps(results, indent=1))


def compare(commands: dict[str, list[Any]], threads: int, blocks: int, block: int) -> dict[str, Any]:
    """Milliseconds of a step and the median ratio of neighbouring blocks, by wall time and by CPU time.

    On a machine that others use, the tenth of the steps that was fastest says more of the programs than the median does.
    """
    children = {name: _start(command, threads) for name, command in commands.items()}
    try:
        versions = {name: _answer(child)["version"] for name, child in children.items()}  # both have been through all ids
        times: dict[str, list[dict[str, list[float]]]] = {name: [] for name in children}
        for _ in tqdm(range(blocks), desc=f"{threads} threads", unit="pair"):
            for name, child in children.items():
                print(block, file=child.stdin, flush=True)
                times[name].append(_answer(child))
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    found: dict[str, Any] = {"versions": versions}
    for clock in ("wall", "cpu"):
        by = {name: 1e3 * np.array([of_block[clock] for of_block in of_child]) for name, of_child in times.items()}
        ratios = by[_THEIRS].mean(1) / by[_OURS].mean(1)
        fastest = {name: float(np.quantile(of_child, 0.1)) for name, of_child in by.items()}
        found[clock] = {name: float(np.median(of_child)) for name, of_child in by.items()} | {
            "ratio": float(np.median(ratios)),
            "fastest tenth": fastest | {"ratio": fastest[_THEIRS] / fastest[_OURS]},
        }
    return found


def _start(command: list[Any], threads: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    if threads == 1:
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
        environment |= {"XLA_FLAGS": flags.strip(), "OPENBLAS_NUM_THREADS": "1"}
    told = [str(part) for part in command]
    return subprocess.Popen(told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{child.args} ended with {child.wait()}")
    return json.loads(line)


if __name__ == "__main__":
    main()
