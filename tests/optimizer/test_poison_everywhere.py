"""5 poisons at 6 positions in 3 dtypes: eager, jitted, in a scan, on 8 devices, in 2 processes; dense, row-sparse, fused head."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import poison
import pytest

pytestmark = pytest.mark.slow  # 1,350 drills


@pytest.mark.parametrize("dtype", poison.DTYPES)
@pytest.mark.parametrize("mode", poison.MODES)
@pytest.mark.parametrize("kind", poison.KINDS)
def test_poisoned_batch_leaves_no_trace(kind, mode, dtype):
    assert poison.drill(kind, mode, dtype) == {}


@pytest.mark.parametrize("kind", poison.KINDS)
def test_poisoned_batch_leaves_no_trace_in_two_processes(kind):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, str(Path(poison.__file__)), str(port)]
    processes = [
        subprocess.Popen(
            [*command, str(number), kind], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for number in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert [line for line in output.splitlines() if line.endswith("{}")] == [f"{dtype} {{}}" for dtype in poison.DTYPES], (
            output
        )
