"""The main job in real processes: stopped on one set of devices, continued on another, and compared with a run never stopped."""

import pytest
from programs import compiled_once

from benchmarks.drills.restarts import measure
from benchmarks.drills.runs import Layout, start

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


def test_processes_that_differ(tmp_path, text):
    """Both say so and stop; they would wait for each other's collectives otherwise."""
    model = [*MODEL, "--data", str(text), "--cache-dir", str(tmp_path / "cache")]
    processes = start(TWO, tmp_path, model, of_process=[["--stop-after", "5"], ["--stop-after", "6"]])
    for number, process in enumerate(processes):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert f"the processes were started with different stop_after; this one has stop_after = {5 + number}" in output
