"""Compares AdamW and Ember on the token tables, each at its own best learning rate, and repeats the best with other seeds.

Every run is `examples/pretrain.py` with its default model, text and body (AdamW); only the optimizer of the embedding and the
head and its peak learning rate differ. Results are written as they come; an interrupted sweep goes on where it stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
RATE_OPTION = {"adamw": "--adamw-table-learning-rate", "ember": "--ember-learning-rate"}


def main() -> None:
    """Runs the sweep and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2, 3e-2], help="peak learning rates of the tables"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="the first seed is for the sweep, all for the best rates"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "learning_rates.json", help="results")
    options = parser.parse_args()
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    first, *others = options.seeds
    sweep = [(optimizer, rate, first) for rate in options.rates for optimizer in RATE_OPTION]
    for run in tqdm(sweep, desc="learning rates", unit="run"):
        measure(run, results, options.output)
    best = {o: min(options.rates, key=lambda rate, o=o: results[key(o, rate, first)]) for o in RATE_OPTION}
    for run in tqdm([(o, best[o], seed) for seed in others for o in RATE_OPTION], desc="seeds", unit="run"):
        measure(run, results, options.output)
    print(summary(results, options.rates, options.seeds, best))


def key(optimizer: str, rate: float, seed: int) -> str:
    """The name of one run in the results."""
    return f"{optimizer} {rate:g} seed {seed}"


def measure(run: tuple[str, float, int], results: dict[str, float], output: Path) -> None:
    """Trains once unless the results hold that run already, and writes its validation loss."""
    if key(*run) in results:
        return
    optimizer, rate, seed = run
    name = f"learning_rates/{optimizer}_{rate:g}_{seed}"
    command = [
        sys.executable,
        str(ROOT / "examples" / "pretrain.py"),
        "--optimizers",
        optimizer,
        RATE_OPTION[optimizer],
        str(rate),
    ]
    command += ["--seed", str(seed), "--output-dir", str(ROOT / "runs"), "--name", name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    measured: dict[str, Any] = json.loads((ROOT / "runs" / name / "results.json").read_text())
    results[key(*run)] = measured["runs"][optimizer]["validation_loss"]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")


def summary(results: dict[str, float], rates: list[float], seeds: list[int], best: dict[str, float]) -> str:
    """Validation loss at each rate, and mean and standard deviation over the seeds at the best."""
    rows = []
    for optimizer in RATE_OPTION:
        at_best = [results[key(optimizer, best[optimizer], seed)] for seed in seeds]
        spread = f"{mean(at_best):.3f}" + (f" ± {stdev(at_best):.3f}" if len(at_best) > 1 else "")
        rows.append([optimizer, *(f"{results[key(optimizer, rate, seeds[0])]:.3f}" for rate in rates), spread])
    headers = ["tables trained by", *(f"{rate:g}" for rate in rates), f"best rate, {len(seeds)} seeds"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=("left",) + ("right",) * (len(rates) + 1))


if __name__ == "__main__":
    main()
