"""What the documents show runs: their Python blocks, the benchmarks and their harness."""

import doctest
import importlib
import json
import re
from pathlib import Path

import flax
import pytest

from benchmarks.drills import bit_flips, restarts
from benchmarks.measure import collectives, row_sparse_steps, state_memory, step_times

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "```python\n" in path.read_text(encoding="utf-8")
]
# Pages of which each takes more than 1.5 s.
LONG = {
    "checkpoints.md",
    "equinox.md",
    "haliax.md",
    "keras.md",
    "large_tables.md",
    "linen.md",
    "plain_trees.md",
    "recipes_models.md",
    "regularizers.md",
    "row_sparse.md",
    "trainers.md",
}
# nnx.Optimizer of Flax 0.11 fails on any optax.partition: tuple indices must be integers.
FLAX_0_12 = tuple(map(int, flax.__version__.split(".")[:2])) >= (0, 12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:haliax")
@pytest.mark.parametrize(
    "document", [pytest.param(path, marks=pytest.mark.slow if path.name in LONG else (), id=path.name) for path in DOCUMENTS]
)
def test_examples_run_in_order(document):
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    if document.name == "haliax.md":
        pytest.importorskip("haliax", exc_type=ImportError)  # haliax 1.3 uses names that newer versions of jax do not have
    namespace = {}
    for block in blocks:
        if FLAX_0_12 or "nnx.Optimizer" not in block:
            exec(compile(block, document.name, "exec"), namespace)


def test_sharding_tables_are_those_of_the_benchmark():
    results = json.loads((ROOT / "benchmarks" / "results" / "collectives.json").read_text(encoding="utf-8"))
    document = (ROOT / "docs" / "sharding.md").read_text(encoding="utf-8")
    assert collectives.bytes_table(results) in document
    assert collectives.collectives_table(results) in document
    measured = collectives.measure((96, 40))
    assert {layout: set(row) for layout, row in measured.items()} == {layout: set(row) for layout, row in results.items()}
    assert measured["P('fsdp', None)"]["Ember"]["state bytes per device"] == 4 * (96 // 2 + 40 + 2 + 1)


def test_drills_shown_are_those_that_were_run():
    """And none of them failed: the numbers that the documents promise."""
    document = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    flips, restarts_found = (
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("bit_flips", "restarts")
    )
    for table in (bit_flips.table(flips), restarts.table(restarts_found)):
        assert table in document
    for drawn in ("every bit alike", "every file alike"):
        assert flips[drawn]["bits flipped"] == 300
        assert flips[drawn]["restored wrong"] == 0
    layouts = {"1 x 1", "1 x 2", "1 x 4", "1 x 8", "2 x 2"}
    assert all(layouts == set(restarts_found[saved]) for saved in layouts)
    worst = {name: max(values[name] for of in restarts_found.values() for values in of.values()) for name in restarts.MOST}
    assert all(worst[name] < most for name, most in restarts.MOST.items()), worst


def test_memory_table_is_that_of_the_benchmark():
    results = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text(encoding="utf-8"))
    assert state_memory.table(results) in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    tiny = state_memory.Shape((512, 32), 2, 2, 1, 16, 64)
    adam, ember = (state_memory.measure(tiny, state_memory.OPTIMIZERS[name]()) for name in ("Adam", "Ember + Adam"))
    assert adam["table state"] == 2 * 4 * 512 * 32 + 4
    assert ember["table state"] == 4 * (512 + 32) + 8 + 4
    assert adam["state"] - ember["state"] == 2 * 4 * 512 * 32 - 4 * (512 + 32) - 8


def test_speed_tables_are_those_of_the_benchmarks():
    document = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for table, name in (
        (step_times.table, "step_time"),
        (row_sparse_steps.table, "row_sparse"),
        (collectives.train_steps_table, "collectives_row_sparse"),
    ):
        results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert table(results) in document
    assert set(collectives.measure_train_steps((96, 40), 16)) == set(results)


@pytest.mark.slow  # every optimizer on every benchmark
def test_benchmarks_of_speed_run(tmp_path, monkeypatch):
    """Small, and all of them: the numbers are not looked at."""
    arguments = ["step_times", "--shapes", "64x16", "--rounds", "1", "--repeats", "2", "--output", str(tmp_path / "a.json")]
    monkeypatch.setattr("sys.argv", [*arguments, "--picture", str(tmp_path / "a.png")])
    step_times.main()
    monkeypatch.setattr(row_sparse_steps, "STEPS", [(4096, 256, 2048)])
    monkeypatch.setattr(
        row_sparse_steps, "MODEL", {**row_sparse_steps.MODEL, "vocabulary": 512, "width": 16, "hidden": 16, "negatives": 8}
    )
    arguments = ["row_sparse_steps", "--repeats", "1", "--output", str(tmp_path / "b.json")]
    monkeypatch.setattr("sys.argv", [*arguments, "--picture", str(tmp_path / "b.png")])
    row_sparse_steps.main()
    found = json.loads((tmp_path / "b.json").read_text())
    assert set(found["train"]["sampled softmax"]) == {"row-sparse", "dense Ember", "AdamW"}
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert (tmp_path / "b.png").stat().st_size > 10_000


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "benchmarks" / "harness").glob("[a-z]*.py")))
def test_examples_of_the_harness_hold(module):
    assert doctest.testmod(importlib.import_module(f"benchmarks.harness.{module}")).failed == 0
