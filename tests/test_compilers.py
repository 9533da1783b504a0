"""The programs that ask compilers for devices that are not here: what they make of the answers, and what the documents show."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from benchmarks.harness.compiled import Cost
from benchmarks.harness.targets import TARGETS, available
from benchmarks.measure import (
    accelerators,
    chunk_sizes,
    fits,
    fsdp,
    fsdp_head,
    head_losses,
    rounding_times,
    split_heads,
    table_bytes,
)
from ember_optax._math.parts import Layout
from ember_optax._math.shares import Share

ROOT = Path(__file__).parents[1]
SPEED, MEMORY = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("speed.md", "memory.md"))


def results_of(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", ["moved_table", "temporaries_table", "collectives_table"])
def test_tables_of_speed_are_those_of_the_compilers(table):
    assert getattr(accelerators, table)(results_of("accelerators")) in SPEED


def test_the_tables_of_bytes_are_those_of_the_compiler():
    results, page = results_of("table_bytes"), (ROOT / "docs" / "bfloat16_tables.md").read_text(encoding="utf-8")
    assert table_bytes.table(results) in page
    assert table_bytes.batch_table(results) in page
    for model, of_recipes in results.items():
        for recipe, found in of_recipes.items():
            expected = table_bytes.bytes_per_number(model, recipe)
            assert {what: found[what] for what in expected} == expected
            assert "sequences" not in found or (found["peak"] is None) == (found["sequences"] == 0)


def test_the_table_of_rounding_is_that_of_the_clock():
    """And no figure is above what is promised: twice the time of the plain apply pass."""
    results = results_of("rounding_times")
    assert rounding_times.table(results) in (ROOT / "docs" / "bfloat16_tables.md").read_text(encoding="utf-8")
    assert all(found["ratio"] <= 2.0 for found in results["tables"].values())


def test_tables_of_heads_are_what_was_measured():
    assert set(head_losses.PAGES) == {"HEAD LOSSES", "HEAD STEPS"}
    for mark, page in head_losses.PAGES.items():
        assert head_losses.TABLES[mark](results_of("head_losses")) in page.read_text(encoding="utf-8")


def test_the_table_of_chunk_sizes_is_that_of_the_compilers():
    """And the default takes at most the logits of one chunk more than the least, in a fused step those and its rows."""
    results = results_of("chunk_sizes")
    assert chunk_sizes.table(results) in chunk_sizes.PAGE.read_text(encoding="utf-8")
    for head, of_head in (item for of_chip in results.values() for item in of_chip.items()):
        for way, of_way in of_head.items():
            least = min(found["temporaries"] for found in of_way.values())
            columns = chunk_sizes.TOKENS + (chunk_sizes.HEADS[head][1] if way == chunk_sizes.FUSED else 0)
            assert of_way["2048"]["temporaries"] <= least + 4 * 2_048 * columns


def test_tables_of_what_fits_are_those_of_the_compilers():
    assert fits.table(results_of("fits")) in MEMORY
    assert fsdp.table(results_of("fsdp")) in SPEED
    assert fsdp_head.table(results_of("fsdp_head")) in MEMORY


def more_than_dense(size, width, dtype, data, vocab):
    """The bytes that a fused step may send in addition to a dense step: its statistics, and rows of padding.

    The squares of the gradient are summed by token and by feature over `data`, and by feature over `vocab`. Each device along
    `data` steps an equal share of each chunk, so chunks may end in rows of padding, whose gradient and new rows are sent.
    """
    layout = Layout(("vocab",), PartitionSpec("data"), AbstractMesh((data, vocab), ("data", "vocab")))
    rows, chunk = size // vocab, min(2_048, 2**23 // width)
    padding = sum(Share(layout, 0, min(chunk, rows - start)).padding for start in range(0, rows, chunk))
    statistics = 4 * (rows + width) * _of_ring(data) + 4 * width * _of_ring(vocab)
    return statistics + padding * width * jnp.dtype(dtype).itemsize * _of_ring(data)


def _of_ring(devices):
    """The bytes that a device sends for each byte of an all-reduce, or of a reduce-scatter and an all-gather."""
    return 2 * (devices - 1) / devices


def _near(found, expected):
    """Whether two programs need the same memory, to 1 MiB, and send the same, to 0.1 %."""
    sizes = abs(found["temporaries"] - expected["temporaries"]) <= 2**20
    return sizes and abs(found["sent"] - expected["sent"]) <= 1e-3 * expected["sent"]


def test_split_heads_are_as_promised():
    """No table is gathered at once, and a fused step sends no more than the dense step and needs less memory."""
    results = results_of("split_heads")
    assert split_heads.table(results) in (ROOT / "docs" / "fused_head.md").read_text(encoding="utf-8")
    for mesh, (data, vocab) in split_heads.MESHES.items():
        for head, (size, width, dtype) in split_heads.HEADS.items():
            of_head = results[mesh][head]
            dense, fused = of_head[split_heads.DENSE], of_head[split_heads.FUSED]
            assert fused["temporaries"] < dense["temporaries"]
            assert _near(of_head[split_heads.MANUAL], fused)
            assert fused["sent"] <= dense["sent"] + more_than_dense(size, width, dtype, data, vocab)
            assert set(fused["in a turn"]) <= {"reduce-scatter", "all-gather"}
            for way, found in of_head.items():
                assert way in (split_heads.FUSED, split_heads.MANUAL) or found["in a turn"] == {}
                assert way == split_heads.FUSED_ALL or found["outside"].get("all-gather", 0) < size * width // vocab
            assert of_head[split_heads.CHUNKS]["temporaries"] < of_head[split_heads.USUAL]["temporaries"]
            assert of_head[split_heads.CHUNKS]["temporaries"] <= 150 * 2**20


def test_a_split_head_above_its_limit_fails_the_check(monkeypatch, capsys):
    most = results_of("split_heads")["8 x v5e"][next(iter(split_heads.HEADS))][split_heads.DENSE]["sent"]
    found = {"temporaries": 64 * 2**20, "in a turn": {}, "outside": {}, "sent": most}
    monkeypatch.setattr(split_heads, "measure", lambda *case: found)
    split_heads.check("8 x v5e")
    found["temporaries"] += 1
    with pytest.raises(SystemExit, match="fused step"):
        split_heads.check("8 x v5e")
    found |= {"temporaries": 0, "in a turn": {"all-gather": 1}}
    with pytest.raises(SystemExit, match="loss in chunks"):
        split_heads.check("8 x v5e")
    found |= {"in a turn": {}, "sent": most + 1}
    with pytest.raises(SystemExit, match="fused step"):
        split_heads.check("8 x v5e")
    assert "TOO MUCH" in capsys.readouterr().out


@pytest.mark.parametrize("chip", accelerators.CHIPS)
def test_what_is_committed_is_as_promised(chip):
    most_moved = 4.1 if TARGETS[chip].platform == "tpu" else 5.0
    of_chip = results_of("accelerators")["chips"][chip]
    for key, found in of_chip.items():
        if key.startswith("Ember, ("):
            assert found["tables moved"] <= most_moved, key
            assert found["temporaries"] < 0.01, key
        elif key.startswith(accelerators.ROW_SPARSE):
            assert found["tables moved"] is None or found["tables moved"] <= 0.5
            assert found["temporaries"] <= 0.03


def test_what_is_sent_is_committed_as_promised():
    tokens, features = accelerators.SHARDED
    for of_mesh in results_of("accelerators")["meshes"].values():
        for found in of_mesh.values():
            assert found["train step"] == found["optimizer step"]
            assert set(found["optimizer step"]) == {"all-reduce"}
            assert found["optimizer step"]["all-reduce"] <= tokens + features


def test_a_figure_above_its_limit_fails_the_check(monkeypatch, capsys):
    found = {"tables moved": 4.05, "temporaries": 0.001}
    monkeypatch.setattr(accelerators, "LIMITS", {"Ember": (4.1, 0.01)})
    monkeypatch.setattr(accelerators, "one_chip", lambda *case: found)
    accelerators.check(["v5e", "H100"])
    found["temporaries"] = 0.011
    with pytest.raises(SystemExit, match="H100"):
        accelerators.check(["H100"])
    found |= {"tables moved": 4.2, "temporaries": 0.0}
    accelerators.check(["H100"])  # whose compiler counts no bytes
    with pytest.raises(SystemExit, match="v5e"):
        accelerators.check(["v5e"])
    assert "TOO MUCH" in capsys.readouterr().out


@pytest.mark.parametrize("fixed", [0.5, 6.0, 10.0, 14.0, 15.7])
@pytest.mark.parametrize("sequence", [0.2, 0.27, 0.4, 1.3, 5.0])
def test_the_largest_batch_is_found(monkeypatch, fixed, sequence):
    """Whether the first guess is too large or too small."""

    def compiled(chip, model, optimizer, batch, effort=0.0):
        peak = int((fixed + batch * sequence) * 2**30)
        return Cost(int((1.0 + batch * sequence) * 2**30), peak, None, []) if peak <= TARGETS[chip].memory else None

    monkeypatch.setattr(fits, "compiled", compiled)
    found = fits.measure("v5e", "GPT-2", "Adam")
    expected = [2**n for n in range(9) if compiled("v5e", "", "", 2**n)]
    assert found["sequences"] == max(expected, default=0)
    assert (found["peak of one sequence"] is None) == (not expected)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="tpu-compiler"):
        available(["v5e"])
