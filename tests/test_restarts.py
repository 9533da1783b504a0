"""The main job in real processes: stopped on one set of devices, continued on another, and compared with a run never stopped."""

import pytest
from restarts import Layout, measure

MODEL = ["--vocabulary-size=500", "--width=16", "--heads=2", "--layers=1", "--sequence-length=32", "--steps=30"]
PAIRS = {
    Layout(2, 2, "data=2,fsdp=2"): [Layout(1, 1, "data=1"), Layout(1, 8, "data=2,fsdp=2,tp=2")],
    Layout(4, 2, "fsdp=4,tp=2"): [Layout(2, 2, "data=2,tp=2"), Layout(1, 4, "fsdp=4")],
}


@pytest.mark.parametrize("save", PAIRS, ids=str)
def test_goes_on_elsewhere(save, tmp_path, text):
    model = [*MODEL, "--data", str(text), "--cache-dir", str(tmp_path / "cache")]
    found = measure(save, PAIRS[save], tmp_path, model)
    for restore in PAIRS[save]:
        difference = max(found[str(restore)].values())
        assert difference < 1e-6, found
        if restore.devices * restore.processes != save.devices * save.processes:
            assert difference > 0.0, "other programs round differently; without any difference nothing was continued"
