"""The example with a memory in a file: its optimizers take their dense steps, and a killed run goes on as if it had not been."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import ngram_memory as program
import numpy as np
import optax
import pytest
from lm.config import ModelConfig
from lm.memory_optimizers import MEMORY_OPTIMIZERS
from lm.ngram_memory import make_table, ngram_ids
from programs import EXAMPLES, call, compiled_once

from benchmarks.evidence.ablations import scale_by_part, scale_by_token_sum
from ember_optax import scale_by_ember

TINY = ["--vocabulary-size=512", "--width=16", "--heads=2", "--layers=1", "--sequence-length=32", "--batch-size=4"]
TINY += ["--validate-every=10", "--memory-learning-rate=0.002"]


@pytest.fixture(autouse=True, scope="module")
def _compiled_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture
def options(tmp_path, text):
    return [*TINY, "--data", str(text), "--cache-dir", str(tmp_path / "cache"), "--output-dir", str(tmp_path)]


def runs_of(folder):
    return json.loads((folder / "results.json").read_text())["runs"]


@pytest.mark.slow
def test_compares_with_and_without_a_memory(options, tmp_path, capsys):
    ngram_memory = partial(call, program.main, capsys, *options)
    done = ngram_memory("--steps=40", "--memory-rows", "0", "20000")
    assert done.returncode == 0, done.stderr
    assert "| no memory" in done.stdout and "| 20,000 rows" in done.stdout
    runs = runs_of(tmp_path / "ngram_memory")
    without, with_memory = runs["no memory"], runs["20,000 rows"]
    assert without["training_losses"][0] == with_memory["training_losses"][0]  # the memory begins with zeros
    assert with_memory["validation_loss"] < without["validation_loss"]
    assert with_memory["memory_state_bytes"] == 8 * 20_000 + 4 * 16 and without["memory_state_bytes"] == 0
    assert (tmp_path / "ngram_memory" / "loss.png").stat().st_size > 10_000
    assert (tmp_path / "ngram_memory" / "memory_20000_rows" / "rows").stat().st_size == 20_000 * (16 * 4 + 12)
    refused = {
        "has results already; go on with --resume or name another folder": [],
        "was made with seed = 0, this run has 1": ["--resume", "--seed=1"],
        "--resume needs --memory-in file": ["--resume", "--memory-in=host"],
    }
    for message, arguments in refused.items():
        again = ngram_memory("--steps=40", *arguments)
        assert (again.returncode, message in again.stderr) == (2, True), again.stderr
    again = ngram_memory("--steps=40", "--memory-rows", "0", "20000", "--memory-in=host", "--name=host")
    assert again.returncode == 0, again.stderr
    assert runs_of(tmp_path / "host")["20,000 rows"]["training_losses"] == with_memory["training_losses"]


def test_rows_depend_on_the_last_tokens_alone():
    text = np.random.default_rng(0).integers(0, 8192, (1, 20_000)).astype(np.int32)
    ids = ngram_ids(text, 1 << 14)[0]
    assert ids[0].tolist() == [-1, -1] and ids[1, 1] == -1
    assert ids[1:, 0].min() >= 0 and ids[2:].max() < 1 << 14
    np.testing.assert_array_equal(ngram_ids(text[:, 7:], 1 << 14)[0, 2:], ids[9:])
    assert (ngram_ids(text, 0) == -1).all()
    expected = (1 << 14) * (1 - np.exp(-20_000 / (1 << 14)))  # distinct rows of a uniform hash
    for which in range(2):
        assert len(np.unique(ids[2:, which])) == pytest.approx(expected, rel=0.02)
    assert np.mean(ids[2:, 0] == ids[2:, 1]) < 0.001


DENSE = {
    "ember": scale_by_ember(),
    "rowwise_rmsprop": scale_by_part("token"),
    "rowwise_adagrad": scale_by_token_sum(),
    "rmsprop": optax.scale_by_rms(0.999, 1e-8, eps_in_sqrt=False, bias_correction=True),
}


@pytest.mark.parametrize("name", MEMORY_OPTIMIZERS)
def test_rows_are_trained_as_in_the_dense_step(name):
    """Also rows that were silent for some steps. The references divide by 1 - b2^t in float32, which has four digits at first."""
    optimizer, tx, rng = MEMORY_OPTIMIZERS[name], DENSE[name], np.random.default_rng(0)
    table = make_table(50, ModelConfig(256, 8, 1, 1, tied=False), name)
    params = {"embedding": jnp.zeros((50, 8))}
    state, dense, step = tx.init(params), jax.jit(tx.update), jax.jit(optimizer.update)
    for _ in range(8):
        ids = np.unique(rng.integers(0, 50, 12))
        fetched = table.fetch(ids)
        grads_NxD = np.zeros((len(fetched.rows), 8), np.float32)
        grads_NxD[: len(ids)] = rng.normal(size=(len(ids), 8))
        row_grads = grads_NxD if optimizer.parts == 1 else np.stack([grads_NxD, np.zeros_like(grads_NxD)], 1)
        table.write(step(fetched, jnp.asarray(row_grads), jnp.float32(0.1)))
        dense_grads = {"embedding": jnp.zeros((50, 8)).at[ids].set(grads_NxD[: len(ids)])}
        updates, state = dense(dense_grads, state)
        params = jax.tree.map(lambda p, u: p - 0.1 * u, params, updates)
    rows = table.fetch(np.arange(50)).rows[:50]
    np.testing.assert_allclose(rows if optimizer.parts == 1 else rows[:, 0], params["embedding"], rtol=1e-3, atol=1e-5)
    held = 4 * (50 * 8 * (optimizer.parts - 1) + 50 * optimizer.numbers + 8 * optimizer.shared)
    assert optimizer.state_bytes(50, 8) == held and optimizer.state_bytes(0, 8) == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(options, tmp_path, capsys):
    """Killed between two saves, in a process of its own."""
    arguments = [*options, "--steps=60", "--memory-rows", "5000", "--save-every=5"]
    assert call(program.main, capsys, *arguments, "--name=whole").returncode == 0
    command = [sys.executable, str(EXAMPLES / "ngram_memory.py"), *arguments, "--name=killed"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    folder = tmp_path / "killed" / "memory_5000_rows"
    while child.poll() is None and not (folder / "undo.3").exists():  # the third save has been, and a step after it
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL
    done = call(program.main, capsys, *arguments, "--name=killed", "--resume")
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"5,000 rows: going on from step (\d+), (\d+) steps were lost", done.stdout)
    step, lost = map(int, found)
    assert 10 <= step < 60 and step % 5 == 0 and 0 <= lost <= 5
    whole, killed = (runs_of(tmp_path / name)["5,000 rows"] for name in ("whole", "killed"))
    assert killed["training_losses"] == whole["training_losses"]
    assert killed["validation"] == whole["validation"]
