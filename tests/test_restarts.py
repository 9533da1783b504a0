"""The main job in real processes: stopped on one set of devices, continued on another, and compared with a run never stopped."""

import time

import jax
import numpy as np
import pytest
from programs import compiled_once

from benchmarks.drills.restarts import measure
from benchmarks.drills.runs import Layout, final_state, losses, pretrain, start

MODEL = ["--vocabulary-size=500", "--width=16", "--heads=2", "--layers=1", "--sequence-length=32", "--steps=30"]
TWO = Layout(2, 1, "data=2")
PAIRS = {
    Layout(2, 2, "data=2,fsdp=2"): [Layout(1, 1, "data=1"), Layout(1, 8, "data=2,fsdp=2,tp=2")],
    Layout(4, 2, "fsdp=4,tp=2"): [Layout(2, 2, "data=2,tp=2"), Layout(1, 4, "fsdp=4")],
}


@pytest.fixture(autouse=True, scope="module")
def _compiled_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.mark.slow  # up to eleven processes, each of which compiles its programs
@pytest.mark.parametrize("save", PAIRS, ids=str)
def test_goes_on_elsewhere(save, tmp_path, text):
    model = [*MODEL, "--data", str(text), "--cache-dir", str(tmp_path / "cache")]
    found = measure(save, PAIRS[save], tmp_path, model)
    for restore in PAIRS[save]:
        difference = max(found[str(restore)].values())
        assert difference < 1e-6, found
        if restore.devices * restore.processes != save.devices * save.processes:
            assert difference > 0.0, "other programs round differently; without any difference nothing was continued"


FUSED = "ember, fused head"


def saved_steps(folder):
    """The steps of the fused run's checkpoints. Orbax renames a folder when it is whole."""
    return {int(found.name) for found in (folder / FUSED).glob("*") if found.name.isdecimal()}


def kill_after(step, folder, processes):
    """Kills all processes once the fused run has written a checkpoint of this step or a later one, as a machine that fails."""
    deadline = time.monotonic() + 600
    try:
        while max(saved_steps(folder), default=0) < step:
            assert time.monotonic() < deadline, "no checkpoint was written in ten minutes"
            assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


@pytest.mark.slow  # six processes, each of which compiles its programs
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_fused_head_on_two_killed_processes_goes_on_bit_for_bit(tied, tmp_path, text):
    """The head is split by tokens over two processes. Both are killed, start again, and end where a run without a stop ends."""
    layout, steps = Layout(2, 2, "data=2,fsdp=2"), 100
    model = ["--vocabulary-size=512", *MODEL[1:-1], f"--steps={steps}", "--fused-head", "--checkpoint-every=10"]
    model += ["--data", str(text), "--cache-dir", str(tmp_path / "cache"), *(["--tied"] if tied else [])]
    pretrain(layout, tmp_path / "whole", model)
    kill_after(20, tmp_path / "parts", start(layout, tmp_path / "parts", model))
    assert 20 <= max(saved_steps(tmp_path / "parts")) < steps, "killed too late"
    pretrain(layout, tmp_path / "parts", [*model, "--resume"])
    assert losses(tmp_path / "parts", FUSED).tolist() == losses(tmp_path / "whole", FUSED).tolist()
    ours, theirs = (final_state(tmp_path / name / FUSED, steps) for name in ("parts", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert len(jax.tree.leaves(ours)) > 10


def test_processes_that_differ(tmp_path, text):
    """Both say so and stop; they would wait for each other's collectives otherwise."""
    model = [*MODEL, "--data", str(text), "--cache-dir", str(tmp_path / "cache")]
    processes = start(TWO, tmp_path, model, of_process=[["--stop-after", "5"], ["--stop-after", "6"]])
    for number, process in enumerate(processes):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert f"the processes were started with different stop_after; this one has stop_after = {5 + number}" in output
