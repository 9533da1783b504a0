"""A hashed memory of bigrams and trigrams on the main job at three sizes, each optimizer of the memory at its own best rate.

The model is that of the setting "0.5M" of `benchmarks.evidence.pretraining`. Ember trains its tables and AdamW its body in all
runs. Only the memory and its optimizer differ. An interrupted measurement goes on with the runs that are missing.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.evidence import plan, records
from benchmarks.evidence.comparison import paired
from benchmarks.evidence.likeness import UnlikeRunsError
from benchmarks.evidence.plan import Cell
from benchmarks.evidence.pretraining import SETTINGS as MODELS
from benchmarks.evidence.pretraining import corpus
from benchmarks.evidence.records import Record, Records
from benchmarks.evidence.statistics import Difference, paired_difference, spread
from benchmarks.evidence.sweep import sweep
from benchmarks.evidence.training import curve, tree_hash
from benchmarks.harness.report import markdown, put
from benchmarks.harness.results import RESULTS, ROOT, parser
from examples.lm.config import RatesConfig, TrainingConfig
from examples.lm.memory_optimizers import MEMORY_OPTIMIZERS
from examples.lm.ngram_memory import make_program, make_table, ngram_ids, train
from examples.lm.tokens import fingerprint, validation_batches
from examples.lm.training import training_batch

TASK, NONE = "ngram_memory", "no memory"
PAGE = ROOT / "docs" / "large_tables.md"
ROWS = {"64k rows": 1 << 16, "512k rows": 1 << 19, "4M rows": 1 << 22}
SETTINGS = {NONE: 0, **ROWS, "quick": 1 << 12}
_MODEL, _TABLE_RATE = MODELS["0.5M"], 1e-2
_RATES = RatesConfig(_MODEL.body_rate, _TABLE_RATE, _TABLE_RATE)
_GRID = (2e-3, 5e-3, 1e-2)
_VALIDATION_BATCHES = 40
_ORDER = ("512k rows", "4M rows", "64k rows")


def main() -> None:
    """Makes the runs that are missing and the table of docs/large_tables.md."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--budget-minutes", type=float, default=math.inf, help="stop after the run at hand once this time is over"
    )
    arguments.add_argument("--write", action="store_true", help="make no run, but the table from those that are finished")
    arguments.add_argument("--folder", type=Path, default=RESULTS, help="results")
    options = arguments.parse_args()
    if not options.write:
        complete = sweep(cells(), options.folder, 60 * options.budget_minutes)
        print("every run is finished" if complete else "runs are missing; the same command goes on")
    if options.folder == RESULTS:
        put(PAGE, "NGRAM_MEMORY", table(finished(options.folder)))


def cells(seeds: int = 8) -> list[Cell]:
    """Ember against the others, size by size and the middle one first; all with few seeds, then with all."""
    found = []
    for number in (3, seeds):
        found.append(Cell(TASK, NONE, "ember", (1.0,), number))
        found += [Cell(TASK, *pair, _GRID, number) for pair in itertools.product(_ORDER, MEMORY_OPTIMIZERS)]
    return found


def prepare(rows: int, method: str) -> Callable[..., tuple[float | None, dict[str, Any]]]:
    """`run(rate, seed)` gives the validation loss after the last step and details; all runs share one program."""
    model, text = _MODEL.model, corpus(_MODEL.vocabulary)
    program = make_program(model, _RATES, _MODEL.steps, method)
    held_out = validation_batches(text.validation, _MODEL.batch, _MODEL.length, _VALIDATION_BATCHES)

    def ids_of(batch: np.ndarray) -> np.ndarray:
        return ngram_ids(batch[:, :-1], rows)

    def run(rate: float, seed: int, _: float | None = None) -> tuple[float | None, dict[str, Any]]:
        config = TrainingConfig(_MODEL.steps, _MODEL.batch, _MODEL.length, seed, validate_every=_MODEL.steps)
        result = train(method, program, config, text, held_out, make_table(rows, model, method), ids_of, rate)
        ids = np.concatenate([ids_of(training_batch(text, config, step)) for step in range(config.steps)])
        details = _MODEL._asdict() | {
            "table_rate": _TABLE_RATE,
            "memory_rows": rows,
            "memory_rows_touched": len(np.unique(ids[ids >= 0])),
            "table_state_bytes": MEMORY_OPTIMIZERS[method].state_bytes(rows, model.width),
            "text": fingerprint(text),
            "base": tree_hash(program.init(seed)[0]),
            "losses": curve(result.training_losses),
        }
        loss = result.validation_losses[-1]
        return (round(loss, 6) if loss < math.log(_MODEL.vocabulary) else None), details

    return run


def finished(folder: Path) -> Records:
    """The runs of all settings."""
    paths = (records.path_of(folder, TASK, setting) for setting in (NONE, *ROWS))
    return {run: record for path in paths for run, record in records.read(path).items()}


def table(found: Records) -> str:
    """What the page shows."""
    of_none = plan.fresh(_cell(NONE, "ember"), found)
    rows = [(NONE, "", "", _spread(of_none), "", "", "0", _milliseconds(of_none))] if of_none else []
    for setting in ROWS:
        ours = plan.fresh(_cell(setting, "ember"), found)
        for name, method in MEMORY_OPTIMIZERS.items():
            cell = _cell(setting, name)
            best, fresh = plan.best(cell, found), plan.fresh(cell, found)
            if best is None or not fresh:
                rows.append((setting, method.title, "not run" if best is None else "not finished", "", "", "", "", ""))
                continue
            rate = f"{best.rate:g}" if best.inside else f"{best.rate:g}, at the edge"
            of_ember = "" if name == "ember" else _shown(paired(ours, fresh))
            state = f"{next(iter(fresh.values())).details['table_state_bytes']:,}"
            cells = rate, _spread(fresh), _shown(_against_none(fresh, of_none)), of_ember, state, _milliseconds(fresh)
            rows.append((setting, method.title, *cells))
    headers = (
        *("memory", "optimizer of the memory", "best rate", "validation loss", "minus no memory, 95 %", "Ember minus it, 95 %"),
        *("state (bytes)", "CPU time of a step (ms)"),
    )
    return markdown(rows, headers, names=2)


def _cell(setting: str, method: str) -> Cell:
    return next(cell for cell in reversed(cells()) if (cell.setting, cell.method) == (setting, method))


def _against_none(ours: dict[int, Record], none: dict[int, Record]) -> Difference | None:
    """Within pairs that have the same text and the same parameters to begin with."""
    seeds = sorted(ours.keys() & none.keys())
    for key, seed in itertools.product(("text", "base"), seeds):
        if ours[seed].details[key] != none[seed].details[key]:
            raise UnlikeRunsError(f"seed {seed}: {key} is {ours[seed].details[key]} and {none[seed].details[key]}")
    return paired_difference([ours[s].value for s in seeds], [none[s].value for s in seeds]) if seeds else None


def _spread(fresh: dict[int, Record]) -> str:
    found = spread([record.value for record in fresh.values()])
    return f"{found.mean:.4f} ± {found.deviation:.4f} (n = {found.size})"


def _shown(difference: Difference | None) -> str:
    if difference is None:
        return ""
    low, high = difference.mean - difference.half, difference.mean + difference.half
    return f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def _milliseconds(fresh: dict[int, Record]) -> str:
    return f"{1e3 * median(record.details['processor_seconds'] for record in fresh.values()) / _MODEL.steps:.1f}"


if __name__ == "__main__":
    main()
