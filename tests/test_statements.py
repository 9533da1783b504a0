"""The page of measured statements says what its results say, and its verdicts follow from their rules."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.evidence import statement_page, statement_runs, statements

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "statements.json").read_text(encoding="utf-8"))


def test_page_is_that_of_its_results():
    assert statement_page.page(RESULTS) == (ROOT / "docs" / "statements.md").read_text(encoding="utf-8")


def test_every_number_shown_was_measured():
    measured = set.intersection(*(set(numbers) for numbers in RESULTS["runs"].values()))
    shown = {name for statement in statement_page.STATEMENTS for name in statement.rows.values()}
    assert shown <= measured
    assert all(np.isfinite(numbers[name]) for numbers in RESULTS["runs"].values() for name in shown)


def test_a_measurement_that_begins_with_nothing(monkeypatch, tmp_path):
    """Each run is kept as it comes, and the page made when there are two optimizers to compare."""
    made = []

    def one_run(optimizer, seed, steps, corpus):
        made.append((optimizer, seed))
        return RESULTS["runs"][f"{optimizer} seed {seed}"]

    monkeypatch.setattr(statements, "one_run", one_run)
    monkeypatch.setattr(statements, "load_corpus", lambda *_: None)
    monkeypatch.setattr(statements, "read_documents", lambda _: [])
    command = ["statements", "--output", str(tmp_path / "s.json"), "--page", str(tmp_path / "s.md"), "--seeds"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="no run of adamw or ember"):
        statements.main()
    monkeypatch.setattr("sys.argv", [*command, "0"])
    statements.main()
    monkeypatch.setattr("sys.argv", [*command, "0", "1"])
    statements.main()
    assert made == [(optimizer, seed) for seed in (0, 1) for optimizer in statement_page.OPTIMIZERS]
    assert "2 of AdamW and 2 of Ember" in " ".join((tmp_path / "s.md").read_text(encoding="utf-8").split())


def verdict(title, numbers):
    (statement,) = (s for s in statement_page.STATEMENTS if s.title.startswith(title))
    return statement.verdict(lambda optimizer, name: numbers[name, optimizer] if (name, optimizer) in numbers else numbers[name])


def test_verdicts_follow_their_rules():
    halves = [f"ray share/{half} {table}" for half in ("rare", "frequent") for table in ("embed", "lm_head")]
    nulls = {"ray share/hidden": 0.9, "ray share/random walk": 0.8}
    assert verdict("Tokens move", nulls | dict.fromkeys(halves, 0.99)) == "true"
    assert verdict("Tokens move", nulls | dict.fromkeys(halves, 0.92)) == "true, but no different from the null"
    assert verdict("Tokens move", nulls | dict.fromkeys(halves, 0.6)) == "not true"
    largest, aged, recent = (f"row step/{name}/embed" for name in ("largest over recent", "after a long silence", "recent"))
    steps = {recent: 1.0, aged: 2.0, (largest, "adamw"): 200.0}
    assert verdict("Late in training", steps | {(largest, "ember"): 2.0}) == "true"
    assert verdict("Late in training", steps | {(largest, "ember"): 2.0, (aged, "ember"): 30.0}) == "not true of Ember"
    assert verdict("Late in training", steps | {largest: 9.0, (largest, "adamw"): 5.0}) == "not true of Adam, nor of Ember"
    correlated = {f"autocorrelation/{half} half/{table}": 0.05 for half in ("first", "second") for table in ("embed", "lm_head")}
    hidden = "autocorrelation/second half/hidden"
    assert verdict("Gradients of successive", correlated | {hidden: 0.3}) == "true"
    assert verdict("Gradients of successive", correlated | {hidden: 0.08}) == "true, but no different from the null"
    early = correlated | {hidden: 0.3, "autocorrelation/first half/lm_head": -0.2}
    assert verdict("Gradients of successive", early) == "true, in the second half alone"


@pytest.mark.slow  # compiles a train step and every metric
@pytest.mark.parametrize("optimizer", statement_page.OPTIMIZERS)
def test_a_run_measures_what_the_page_shows(optimizer):
    from examples.lm.config import ModelConfig  # noqa: PLC0415
    from examples.lm.tokens import Corpus  # noqa: PLC0415

    ids = np.random.default_rng(0).zipf(1.2, 40_000) % 4096
    model = ModelConfig(vocabulary_size=4096, width=16, layers=1, heads=2, tied=False)
    losses = []
    numbers = statement_runs.measure(optimizer, 0, 60, Corpus(ids, ids[:1000]), model=model, tick=losses.append)
    shown = {name for statement in statement_page.STATEMENTS for name in statement.rows.values()}
    assert shown <= set(numbers)
    assert losses[-1] < losses[0]
    assert 0 < numbers["ray share/random walk"] < 1
    jax.clear_caches()
