"""The program that times a GPU, with small sizes on whatever is here."""

import json

import pytest

from benchmarks.measure import gpu


@pytest.mark.slow  # compiles seven programs
def test_goes_on_with_what_is_missing(monkeypatch, tmp_path, capsys):
    output = tmp_path / "gpu.json"
    command = ["gpu", "--sizes", "64x8x32 float32", "--chunks", "16", "--repeats", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", [*command, "--minutes", "-1"])
    gpu.main()
    assert "the time is over" in capsys.readouterr().out
    assert not output.exists()
    monkeypatch.setattr("sys.argv", command)
    gpu.main()
    (found,) = json.loads(output.read_text()).values()
    assert set(found["optimizer step 64x8x32 float32"]["ways"]) == {"adamw", "ember", "ember, row-sparse"}
    assert len(found) == 3
    before = output.read_text()
    gpu.main()
    assert output.read_text() == before


def test_share_of_the_memory_speed():
    key, ways = "optimizer step 1024x1024x8 float32", {"adamw": {"milliseconds": 0.1, "temporaries": 0}}
    assert "9%" in gpu.table("NVIDIA H100 80GB HBM3", key, ways)  # 7 x 4 MiB in 0.1 ms are 0.29 of 3.35 TB/s
