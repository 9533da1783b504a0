"""What docs/large_tables.md says of a memory of n-grams is what was measured."""

import json
from statistics import mean

import pytest

from benchmarks.evidence import ngram_memory, plan
from benchmarks.evidence.likeness import UnlikeRunsError
from benchmarks.evidence.ngram_memory import NONE, RESULTS, ROWS, TASK, cells, finished, prepare, table

FOUND = finished(RESULTS)
PAGE = ngram_memory.PAGE.read_text(encoding="utf-8")


def test_the_page_is_that_of_its_results():
    assert f"<!-- NGRAM_MEMORY -->\n{table(FOUND)}\n<!-- end -->" in PAGE


@pytest.mark.parametrize("setting", ROWS)
def test_differences_are_those_of_the_lines(setting):
    """Computed once more, without the code of the table."""
    lines = [json.loads(line) for path in (RESULTS / TASK).glob("*.jsonl") for line in path.read_text().splitlines()]
    fresh = [line for line in lines if line["seed"]]
    loss = {(line["setting"], line["method"], line["rate"], line["seed"]): line["loss"] for line in fresh}
    none = {seed: value for (where, *_, seed), value in loss.items() if where == NONE}
    for method, rate in {(line["method"], line["rate"]) for line in fresh if line["setting"] == setting}:
        ours = {seed: loss[setting, method, rate, seed] for seed in none if (setting, method, rate, seed) in loss}
        difference = mean(ours[seed] - none[seed] for seed in ours)
        title = ngram_memory.MEMORY_OPTIMIZERS[method].title
        (row,) = [row for row in PAGE.splitlines() if row.startswith(f"| {setting} ") and f" {title} " in row]
        assert f"{mean(ours.values()):.4f} ± " in row and f"(n = {len(ours)})" in row and f" {difference:+.4f} [" in row


def test_best_rates_are_inside_what_was_tried():
    for cell in cells():
        best = plan.best(cell, FOUND)
        assert best is not None and best.inside and len(plan.fresh(cell, FOUND)) == cell.seeds


def test_what_is_missing_is_named():
    assert table({}).count("not run") == 12
    kept = {run: record for run, record in FOUND.items() if run.seed == 0 or run.method == "ember"}
    assert table(kept).count("not finished") == 9


def test_runs_that_began_with_other_parameters_are_refused():
    run = next(run for run in FOUND if run.setting == NONE and run.seed == 1)
    changed = FOUND[run]._replace(details=FOUND[run].details | {"base": "other"})
    with pytest.raises(UnlikeRunsError, match="seed 1: base is"):
        table(FOUND | {run: changed})


@pytest.mark.slow
def test_a_run_is_what_its_line_says(monkeypatch):
    """A short run, twice: the same loss, and the details that pairs are compared by."""
    monkeypatch.setattr(ngram_memory, "_MODEL", ngram_memory.MODELS["quick"])
    run = prepare(1 << 12, "ember")
    (loss, details), (again, _) = run(5e-3, 1), run(5e-3, 1)
    assert loss == again is not None
    assert details["memory_rows"] == 1 << 12 and 0 < details["memory_rows_touched"] <= 1 << 12
    assert details["table_state_bytes"] == 4 * (2 * (1 << 12) + 32) and details["text"] and details["base"]
