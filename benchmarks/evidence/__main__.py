"""Compares optimizers of the token tables, each at its own best learning rate, and repeats the best with fresh seeds.

Only what trains the tables differs: model, text, batches and the body's AdamW are the same. Finished runs are lines in
benchmarks/results/evidence/ and are not made again, so a sweep that was stopped goes on where it was.
"""

import tempfile
from pathlib import Path

from benchmarks.evidence import page, pictures, studies
from benchmarks.evidence.comparison import results
from benchmarks.evidence.pair_comparison import pair_results
from benchmarks.evidence.records import FOLDER, merge, read_all
from benchmarks.evidence.sweep import be_nice, sweep
from benchmarks.harness.results import RESULTS, ROOT, parser

DOCUMENTS = ROOT / "docs"
# Whether it is the model for a GPU, and whether it is quick.
_STUDIES = {
    (False, False): studies.FULL,
    (False, True): studies.QUICK,
    (True, False): studies.GPT2,
    (True, True): studies.GPT2_TOY,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the program."""
    command = parser(__doc__)
    add = command.add_argument
    add("--tasks", nargs="+", choices=list(studies.TASKS), default=list(studies.TASKS), help="which tasks")
    add("--budget-minutes", type=float, default=float("inf"), help="stop after the run at hand once this time is over")
    add("--quick", action="store_true", help="tiny models and few runs: noisy versions of everything, in under 10 minutes")
    add(
        "--gpt2",
        action="store_true",
        help="a model of GPT-2 small's size instead, 124M parameters, for a GPU; with --quick a toy",
    )
    add("--write", action="store_true", help="make no run, but the page and its pictures from those that are finished")
    add("--folder", type=Path, help="where the runs are kept; with --quick or --gpt2 also page and pictures")
    add("--merge", type=Path, metavar="FOLDER", help="make no run, but take those of another folder that are missing here")
    options = command.parse_args(arguments)
    be_nice()
    study = _STUDIES[options.gpt2, options.quick]
    kept = RESULTS / "evidence_gpt2" if options.gpt2 else FOLDER
    folder = options.folder or (Path(tempfile.mkdtemp(prefix="evidence-")) if options.quick else kept)
    if options.merge:
        print(f"{merge(options.merge, folder)} runs taken from {options.merge}")
    elif not options.write:
        cells = [cell for cell in (*study.pairs, *study.cells) if cell.task in options.tasks]
        complete = sweep(cells, folder, 60 * options.budget_minutes)
        print("every run is finished" if complete else "runs are missing; the same command goes on")
    if options.write or options.quick or options.gpt2:
        documents = DOCUMENTS if study is studies.FULL else folder
        records = read_all(folder)
        page.write(study, records, documents)
        if study is studies.FULL:
            page.write_lengths(study, records, ROOT / "README.md")
        pictures.draw(results(study.cells, records), pair_results(study.pairs, records), study, documents / "images")
        print(f"wrote evidence.md, evidence_runs.md and their pictures into {documents}")


if __name__ == "__main__":
    main()
