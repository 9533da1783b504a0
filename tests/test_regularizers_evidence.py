"""What the page says of regularizers is what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import regularizers as evidence

ROOT = Path(__file__).parents[1]
EACH_FILE = pytest.mark.parametrize("file", evidence.RESULTS_OF_PAGE, ids=lambda path: path.stem)


@EACH_FILE
def test_the_page_is_that_of_its_results(file):
    page = (ROOT / "docs" / "regularizers.md").read_text(encoding="utf-8")
    assert f"<!-- {file.stem} -->\n{evidence.table(json.loads(file.read_text(encoding='utf-8')))}" in page


@EACH_FILE
def test_every_regularizer_was_run_with_the_seeds_of_none(file):
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    names = (evidence.NONE, *(entry.setting for entry in evidence.ENTRIES))
    assert {len(evidence._values(runs, name)["loss"]) for name in names} == {3}
    assert np.isfinite([value for numbers in runs.values() for value in numbers.values()]).all()


def rows_of(differences, metric_difference=-1.0):
    """The table of made-up runs: a loss of 5 without a regularizer, and 5 plus these with each."""
    metrics = {entry.metric: 2.0 for entry in evidence.ENTRIES} | {"IsoScore": 0.5}
    runs = {}
    for seed, difference in enumerate(differences):
        runs[evidence.run_name(evidence.NONE, seed)] = metrics | {"loss": 5.0}
        for entry in evidence.ENTRIES:
            moved = {entry.metric: 2.0 + metric_difference + 0.01 * seed}
            runs[evidence.run_name(entry.setting, seed)] = metrics | moved | {"loss": 5.0 + difference}
    table = evidence.table({"runs": runs, "setting": "quick", "steps": 60, "machine": "this one"})
    return {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ") and "=" in line}


def test_one_that_hurts_is_said_to_hurt():
    hurt, helped, neither = (rows_of(d)["cap=3"] for d in ([0.1, 0.11, 0.1], [-0.1, -0.11, -0.1], [0.1, -0.1, 0.0]))
    assert "higher: hurts" in hurt and "+0.1033" in hurt
    assert "lower: helps" in helped
    assert "no difference seen" in neither


def test_both_directions_are_told_apart():
    down, up = rows_of([0.1, 0.1, 0.1], -1.0), rows_of([0.1, 0.1, 0.1], 1.0)
    assert " yes " in down["anisotropy=0.3"] and " yes " in up["anisotropy=-0.3"]
    assert " no " in up["anisotropy=0.3"] and " no " in down["anisotropy=-0.3"]


@pytest.mark.slow  # compiles the train step of two settings
def test_a_run_measures_what_the_page_shows():
    from examples.lm.tokens import Corpus  # noqa: PLC0415

    ids = np.random.default_rng(0).zipf(1.2, 40_000) % 1024
    setting = evidence.SETTINGS["quick"]._replace(steps=25)
    corpus = Corpus(ids, ids[:24_000])
    shown = {entry.metric for entry in evidence.ENTRIES} | {"loss", "IsoScore"}
    numbers = {}
    for name in (evidence.NONE, "cap=3"):
        numbers[name] = evidence.measure(evidence.program(name, setting, corpus), 0, setting, corpus)
        assert shown <= set(numbers[name])
        assert np.isfinite(list(numbers[name].values())).all()
    assert numbers["cap=3"]["largest row step"] == pytest.approx(3.0, rel=1e-3)
    assert numbers[evidence.NONE]["largest row step"] > 3.1
