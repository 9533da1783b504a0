"""Compares optimizers of the token tables, each at its own best learning rate, and repeats the best with fresh seeds.

Only what trains the tables differs: model, text, batches and the body's AdamW are the same. Finished runs are lines in
benchmarks/results/evidence/ and are not made again, so a sweep that was stopped goes on where it was.
"""

import tempfile
from pathlib import Path

from benchmarks.evidence import page, pictures, studies
from benchmarks.evidence.comparison import results
from benchmarks.evidence.records import FOLDER, read_all
from benchmarks.evidence.sweep import be_nice, sweep
from benchmarks.harness.results import ROOT, parser

DOCUMENTS = ROOT / "docs"


def main(arguments: list[str] | None = None) -> None:
    """Runs the program."""
    command = parser(__doc__)
    add = command.add_argument
    add("--tasks", nargs="+", choices=list(studies.TASKS), default=list(studies.TASKS), help="which tasks")
    add("--budget-minutes", type=float, default=float("inf"), help="stop after the run at hand once this time is over")
    add("--quick", action="store_true", help="tiny models and few runs: noisy versions of everything, in under 10 minutes")
    add("--write", action="store_true", help="make no run, but the page and its pictures from those that are finished")
    add("--folder", type=Path, help="where the runs are kept; with --quick also page and pictures, a temporary folder by default")
    options = command.parse_args(arguments)
    be_nice()
    study = studies.QUICK if options.quick else studies.FULL
    folder = options.folder or (Path(tempfile.mkdtemp(prefix="evidence-")) if options.quick else FOLDER)
    if not options.write:
        cells = [cell for cell in study.cells if cell.task in options.tasks]
        complete = sweep(cells, folder, 60 * options.budget_minutes)
        print("every run is finished" if complete else "runs are missing; the same command goes on")
    if options.write or options.quick:
        documents = folder if options.quick else DOCUMENTS
        records = read_all(folder)
        page.write(study, records, documents / "evidence.md")
        pictures.draw(results(study.cells, records), study, documents / "images")
        print(f"wrote {documents / 'evidence.md'} and its pictures")


if __name__ == "__main__":
    main()
