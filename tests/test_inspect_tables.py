"""The program that inspects a table of a file, on small files with what is known of them planted."""

import json
from functools import partial
from pathlib import Path

import inspect_tables as program
import numpy as np
import pytest
import tokenizers
from gguf_files import write_gguf
from lm.standing_out import number_standing_out
from lm.table_inspection import caveat, published_table, suspicious_table
from programs import call

from benchmarks.measure import repeated_tokens, unused_names
from ember_optax import geometry

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


def noise(rows: int = 512, features: int = 64) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(rows, features)).astype(np.float32)


def planted(untied: bool) -> np.ndarray:
    """Twelve rows that are short (of an input table), or lie together (of a head)."""
    table = noise()
    table[40:52] *= 0.3 if untied else 0.1
    table[40:52] += 0 if untied else np.linspace(-1, 1, 64)
    return table


def standing_out(table: np.ndarray, known_unused: list[int] | None, tied: bool) -> int:
    score = geometry.under_trained_tokens(table, known_unused=known_unused, tied=tied).score
    return number_standing_out(np.asarray(score), table.shape[1], known_unused, tied)


@pytest.mark.parametrize("known_unused, tied", [(None, False), (None, True), ([40, 41], True)])
def test_noise_and_planted_tokens(known_unused, tied):
    assert standing_out(noise(), known_unused, tied) == 0
    assert standing_out(noise() + 3, known_unused, tied) == 0  # rows that share a direction
    assert standing_out(planted(not tied), known_unused, tied) == 12


def test_named_tokens_are_no_evidence_by_themselves():
    """They are near to their own mean, whatever they are."""
    assert standing_out(noise(), list(range(40, 60)), tied=True) == 0
    table = noise()
    table[40:60] = 0.1 * table[40:60] + np.linspace(-1, 1, 64)
    assert standing_out(table, list(range(40, 60)), tied=True) == 20


def test_says_that_nothing_stands_out(inspect_tables, tmp_path):
    np.save(tmp_path / "noise.npy", noise())
    done = inspect_tables(str(tmp_path / "noise.npy"))
    assert "Nothing stands out: the lowest scores are like the lowest in a table of random numbers of this size." in done.stdout
    assert json.loads((tmp_path / "tables" / "tables.json").read_text(encoding="utf-8"))["standing_out"] == 0


def test_says_how_many_stand_out(inspect_tables, tmp_path):
    np.save(tmp_path / "planted.npy", planted(untied=True))
    assert "The first 12 stand out: their scores are" in inspect_tables(str(tmp_path / "planted.npy"), "--untied").stdout
    results = json.loads((tmp_path / "tables" / "tables.json").read_text(encoding="utf-8"))
    assert results["standing_out"] == 12
    assert {token["token"] for token in results["under_trained"][:12]} == set(range(40, 52))
    assert caveat(12, 12).startswith("All of these stand out: ")
    assert caveat(1200, 12).startswith("All of these and 1,188 more stand out: ")


@pytest.mark.parametrize(
    "table",
    [
        np.ones((64, 8)),
        noise(64, 8) / np.linalg.norm(noise(64, 8), axis=1, keepdims=True),
        noise(1, 8),
        noise(2, 8),
        np.zeros((64, 8)),
    ],
    ids=["equal rows", "rows of one norm", "one row", "two rows", "zeros"],
)
def test_norms_that_do_not_differ(table):
    """Differences of rounding are no evidence."""
    found = np.linalg.norm(table, axis=1).astype(np.float32)
    assert number_standing_out(found, table.shape[1], None, tied=False) == 0


def test_rows_of_zeros_stand_out():
    table = noise()
    table[:3] = 0
    assert number_standing_out(np.linalg.norm(table, axis=1), table.shape[1], None, tied=False) == 3


def test_the_unit_of_a_table_does_not_matter():
    norm = np.linalg.norm(planted(True), axis=1)
    assert {number_standing_out(norm * scale, 64, None, tied=False) for scale in (1e-6, 1.0, 1e6)} == {12}


def test_a_file_with_a_head_of_its_own_is_untied(inspect_tables, tmp_path):
    path = str(write_gguf(tmp_path / "model.gguf", {"token_embd.weight": noise(), "output.weight": noise()[::-1]}))
    for arguments, tied, by in [([], False, "norm"), (["--no-untied"], True, "the distance"), (["--untied"], False, "norm")]:
        done = inspect_tables(path, *arguments)
        assert f"that look least trained, by {by}" in done.stdout
        assert "note: the model has a head of its own, output.weight" in done.stdout
        results = json.loads((tmp_path / "tables" / "tables.json").read_text(encoding="utf-8"))
        assert (results["tied"], results["notes"]) == (tied, ["the model has a head of its own, output.weight"])


def test_features_first(inspect_tables, tmp_path):
    np.save(tmp_path / "head.npy", noise().T)
    assert "512 tokens x 64 features" in inspect_tables(str(tmp_path / "head.npy"), "--token-axis", "1").stdout


def test_the_page_of_published_tables_shows_their_results():
    names = ("smollm2", "gemma3", "minilm")
    paths = [ROOT / "benchmarks" / "results" / f"geometry_{name}.json" for name in names]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    page = (ROOT / "docs" / "geometry_tables.md").read_text(encoding="utf-8")
    assert published_table([of["report"] for of in found]) in page
    for of in found:
        assert suspicious_table(of["under_trained"][:20]) in page
    for module in (repeated_tokens, unused_names):
        results = (ROOT / "benchmarks" / "results" / f"{module.__name__.rpartition('.')[2]}.json").read_text(encoding="utf-8")
        assert module.table_of(json.loads(results)) in page
