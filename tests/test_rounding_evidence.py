"""What the page says of tables of two bytes on the main job is what was measured."""

import json
import math

from benchmarks.evidence import rounding

FILE = rounding.RESULTS / "rounding.json"


def test_the_page_is_that_of_its_results():
    results = json.loads(FILE.read_text(encoding="utf-8"))
    assert f"<!-- ROUNDING -->\n{rounding.table(results)}" in rounding.PAGE.read_text(encoding="utf-8")


def test_every_form_was_run_with_the_same_seeds():
    losses = json.loads(FILE.read_text(encoding="utf-8"))["losses"]
    assert list(losses) == list(rounding.FORMS)
    assert {tuple(of_seed) for of_seed in losses.values()} == {tuple("01234")}
    assert all(map(math.isfinite, (loss for of_seed in losses.values() for loss in of_seed.values())))


def test_a_difference_is_one_of_pairs():
    losses = {"float32": [4.0, 5.0], "bfloat16, stochastic": [4.1, 5.1], "bfloat16, nearest": [4.1, 4.9]}
    made = {form: dict(enumerate(values)) for form, values in losses.items()}
    _, _, whole, stochastic, nearest, *_ = rounding.table({"losses": made, "setting": "quick", "machine": "this"}).splitlines()
    assert "4.5000 ± 0.7071" in whole
    assert "+0.1000 [+0.1000, +0.1000]" in stochastic and "higher" in stochastic
    assert "no difference seen" in nearest
