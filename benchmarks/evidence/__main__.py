"""Compares optimizers of the token tables, each at its own best learning rate, and repeats the best with fresh seeds.

Only what trains the tables differs: model, text, batches and the body's AdamW are the same. Finished runs are lines in
benchmarks/results/evidence/ and are not made again, so a sweep that was stopped goes on where it was.
"""

import tempfile
from pathlib import Path

from benchmarks.evidence import studies
from benchmarks.evidence.records import FOLDER
from benchmarks.evidence.sweep import be_nice, sweep
from benchmarks.harness.results import parser


def main(arguments: list[str] | None = None) -> None:
    """Runs the program."""
    command = parser(__doc__)
    add = command.add_argument
    add("--tasks", nargs="+", choices=list(studies.TASKS), default=list(studies.TASKS), help="which tasks")
    add("--budget-minutes", type=float, default=float("inf"), help="stop after the run at hand once this time is over")
    add("--quick", action="store_true", help="tiny models and few runs: noisy versions of everything, in under 10 minutes")
    add("--folder", type=Path, help=f"where the runs are kept (default: {FOLDER.relative_to(FOLDER.parents[2])})")
    options = command.parse_args(arguments)
    be_nice()
    chosen = studies.QUICK if options.quick else studies.FULL
    folder = options.folder or (Path(tempfile.mkdtemp(prefix="evidence-")) if options.quick else FOLDER)
    cells = [cell for cell in chosen if cell.task in options.tasks]
    complete = sweep(cells, folder, 60 * options.budget_minutes)
    print("every run is finished" if complete else "the time is over; the same command goes on")


if __name__ == "__main__":
    main()
