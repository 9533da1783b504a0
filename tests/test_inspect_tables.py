"""The program that inspects a table of a file, on small files with what is known of them planted."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from programs import call

import inspect_tables as program  # isort: skip
from lm.table_inspection import published_table, suspicious_table  # isort: skip

pytestmark = pytest.mark.usefixtures("quick_compilation")
V, D = 64, 8
ROOT = Path(__file__).parents[1]
TEXTS = [f"w{i}" for i in range(V)]
TEXTS[9] = "<|unused|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table whose rows 5 to 9 lie apart from the trained ones, and row 20, the shortest, elsewhere; counts and tokenizer."""
    path = tmp_path_factory.mktemp("tables")
    random = np.random.default_rng(0)
    table = random.normal(size=(V, D)).astype(np.float32) + 1.0
    table[5:10] = [0, 0, 0, 0, 0.4, 0, 0, 0]
    table[20] = [0.1, 0, 0, 0, 0, 0, 0, 0]
    np.save(path / "wte.npy", table)
    damaged = table.copy()
    damaged[3, 1], damaged[7, 0] = np.nan, np.inf
    np.save(path / "damaged.npy", damaged)
    np.save(path / "counts.npy", np.arange(V))
    np.save(path / "negative.npy", -np.ones(V))
    np.save(path / "few.npy", np.ones(3))
    tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(TEXTS, range(V), strict=True)), unk_token="w0")).save(
        str(path / "tokenizer.json")
    )
    return path


@pytest.fixture
def inspect_tables(tmp_path, capsys):
    return partial(call, program.main, capsys, "--output-dir", str(tmp_path))


def test_prints_draws_and_keeps_the_report(inspect_tables, folder, tmp_path):
    done = inspect_tables(
        str(folder / "wte.npy"), "--token-counts", str(folder / "counts.npy"), "--known-unused", "5,6-7", "--top", "5"
    )
    assert done.returncode == 0, done.stderr
    assert "64 tokens x 8 features" in done.stdout
    assert r"`'<\u007cunused\u007c>'`" in done.stdout  # a bar would end the cell of a table
    results = json.loads((tmp_path / "tables" / "tables.json").read_text(encoding="utf-8"))
    assert {token["token"] for token in results["under_trained"]} == {5, 6, 7, 8, 9}  # two that nobody named
    assert results["report"]["smallest_row_norm"] == pytest.approx(0.1)
    assert [row["tokens"] for row in results["by_frequency"]] == [13, 13, 13, 13, 12]
    for name in ("spectrum.png", "under_trained.png"):
        assert 5_000 < (tmp_path / "tables" / name).stat().st_size < 300_000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.npy"], "nowhere.npy: no such file"),
        (["{folder}/damaged.npy"], "has NaN or infinity in 2 of 64 rows, 3, 7"),
        (["{folder}/wte.npy", "--table", "other"], "has one array, without a name"),
        (["{folder}/wte.npy", "--token-counts", "nowhere.npy"], "--token-counts nowhere.npy: no such file"),
        (["{folder}/wte.npy", "--token-counts", "{folder}/few.npy"], "float64 of shape (3,), but the table needs 64 numbers"),
        (["{folder}/wte.npy", "--token-counts", "{folder}/negative.npy"], "counts must not be negative"),
        (
            ["{folder}/wte.npy", "--token-counts", "{folder}/tokenizer.json"],
            "tokenizer.json: the file is damaged, or not what its name says",
        ),
        (["{folder}/wte.npy", "--known-unused", "3,64"], "--known-unused 64: the table wte has the rows 0 to 63"),
        (["{folder}/wte.npy", "--known-unused", "9-3"], "9-3 is not a list of token ids like 3,7,100-110"),
        (["{folder}/wte.npy", "--top", "0"], "0 is not a positive whole number"),
    ],
)
def test_explains_mistakes(inspect_tables, folder, arguments, message):
    done = inspect_tables(*(argument.format(folder=folder) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr


def test_the_page_of_published_tables_shows_their_results():
    names = ("smollm2", "minilm")
    paths = [ROOT / "benchmarks" / "results" / f"geometry_{name}.json" for name in names]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    page = (ROOT / "docs" / "geometry_tables.md").read_text(encoding="utf-8")
    assert published_table([of["report"] for of in found]) in page
    for of in found:
        assert suspicious_table(of["under_trained"][:20]) in page
