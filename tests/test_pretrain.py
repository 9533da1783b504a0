"""The main job as a user runs it: a process of its own, real text, real files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "examples" / "pretrain.py"
TINY = ["--vocabulary-size=512", "--width=16", "--heads=2", "--layers=1"]
TINY += ["--sequence-length=32", "--batch-size=4", "--validate-every=10"]


def pretrain(tmp_path, *arguments):
    command = [sys.executable, str(PROGRAM), "--cache-dir", str(tmp_path / "cache"), "--output-dir", str(tmp_path), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Real English, some 150 kB: this repository's licence and documentation strings of the standard library."""
    folder = tmp_path_factory.mktemp("text")
    source = Path(os.__file__).parent
    for name in ("argparse.py", "os.py", "typing.py", "zipfile.py"):
        path = source / name
        if path.exists():
            (folder / name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "picture.bin").write_bytes(b"\xff\xfe\x00\x80")
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_compares_the_optimizers(tmp_path, text, tied):
    arguments = [*TINY, "--data", str(text), "--steps", "30", "--name", "run", *(["--tied"] if tied else [])]
    done = pretrain(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "left out 1 of" in done.stdout
    assert "| adamw" in done.stdout
    assert "| ember" in done.stdout
    assert "tokens/s" in done.stderr
    assert (tmp_path / "run" / "loss.png").stat().st_size > 10_000
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    runs, tables = results["runs"], 1 if tied else 2
    assert runs["adamw"]["table_state_bytes"] == tables * 2 * 4 * 512 * 16 + 8  # and two step counters
    assert runs["ember"]["table_state_bytes"] == tables * (4 * (512 + 16) + 8) + 4  # and the schedule's step
    body = runs["adamw"]["state_bytes"] - runs["adamw"]["table_state_bytes"]
    assert runs["ember"]["state_bytes"] - runs["ember"]["table_state_bytes"] == body
    for run in runs.values():
        assert len(run["training_losses"]) == 30
        assert run["training_losses"][-1] < run["training_losses"][0] - 0.1
    assert runs["adamw"]["training_losses"][0] == runs["ember"]["training_losses"][0]
    assert "training a BPE tokenizer" in done.stdout
    again = pretrain(tmp_path, *arguments, "--steps", "1", "--optimizers", "ember")
    assert again.returncode == 0, again.stderr
    assert "training a BPE tokenizer" not in again.stdout
    (cache,) = (tmp_path / "cache").glob("*.npz")
    cache.write_bytes(cache.read_bytes()[:1000])
    damaged = pretrain(tmp_path, *arguments, "--steps", "1", "--optimizers", "ember")
    assert damaged.returncode == 0, damaged.stderr
    assert "is damaged" in damaged.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere.txt"], "--data nowhere.txt: no such file or folder"),
        (["--data", "{text}/picture.bin"], "none of its 1 files is UTF-8 text"),
        (["--data", "{text}", "--vocabulary-size", "60000"], "this text makes a vocabulary of"),
        (["--data", "{text}", "--sequence-length", "1000000"], "too few for --sequence-length 1000000: use at most"),
        (["--heads", "3"], "--width 16 must be a multiple of 2 * --heads (6)"),
        (["--data", "{text}", "--vocabulary-size", "100"], "a byte-level vocabulary has at least 257 tokens"),
        (["--steps", "0"], "0 is not a positive whole number"),
        (["--steps", "abc"], "abc is not a positive whole number"),
        (["--seed", "-1"], "-1 is not a whole number from 0"),
        (["--output-dir", "{text}/picture.bin"], "picture.bin"),
        (["--cache-dir", "{text}/picture.bin"], "picture.bin"),
        (["--learning-rate", "nan"], "nan is not a finite, non-negative number"),
    ],
)
def test_explains_mistakes(tmp_path, text, arguments, message):
    done = pretrain(tmp_path, *TINY, *(a.format(text=text) for a in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_explains_every_option():
    done = subprocess.run([sys.executable, str(PROGRAM), "--help"], capture_output=True, text=True, check=True)
    options = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    assert len(options) >= 18
