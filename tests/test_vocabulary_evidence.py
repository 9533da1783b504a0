"""A published model's layout, pruned in mid-training as the page of the vocabulary has it."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf_files import tiny_llama

from benchmarks.evidence import vocabulary

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    text = "def add(a, b):\n    return a + b\n" * 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "read_documents", lambda _: [text])
        return vocabulary.measure(tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"), steps=3)


@pytest.mark.slow
def test_pruning_leaves_out_logits_and_nothing_else(measured):
    loss = measured["loss"]
    assert loss["pruned"] == pytest.approx(loss["whole, among the kept"], abs=1e-4)
    assert loss["pruned"] < loss["whole"] - 0.1


@pytest.mark.slow
def test_training_goes_on_with_its_state(measured):
    """The first loss is of the parameters alone; then the table steps as it did, where a fresh state steps further."""
    runs, before = measured["runs"], measured["before"]
    assert runs[vocabulary.PRUNED]["losses"][0] == runs[vocabulary.FRESH]["losses"][0]
    assert runs[vocabulary.PRUNED]["losses"][1] != runs[vocabulary.FRESH]["losses"][1]
    assert all(len(run["losses"]) == len(before["losses"]) == 3 for run in runs.values())


@pytest.mark.slow
def test_sizes(measured):
    before, after = measured["sizes"]["before"], measured["sizes"]["after"]
    assert before["file"] - after["file"] == pytest.approx(4 * 16 * (before["tokens"] - after["tokens"]), abs=32)
    assert before["state"] - after["state"] == 4 * (before["tokens"] - after["tokens"])


def test_the_page_is_that_of_its_results():
    results = json.loads((ROOT / "benchmarks" / "results" / "vocabulary.json").read_text(encoding="utf-8"))
    assert vocabulary.table(results) in (ROOT / "docs" / "vocabulary.md").read_text(encoding="utf-8")
    assert results["loss"]["pruned"] == pytest.approx(results["loss"]["whole, among the kept"], abs=1e-4)
    assert np.isfinite(results["runs"][vocabulary.PRUNED]["losses"]).all()
