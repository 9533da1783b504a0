"""A file run as a program by two processes together, with four simulated devices each."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax

HELPERS = Path(__file__).parent
LONGEST = 900  # seconds, on a machine that does other things too


def outputs(file: str, *arguments: str) -> list[str]:
    """What each process printed; fails with that where one of them failed. The file calls `join` first."""
    processes = _started(file, *arguments)
    printed = [process.communicate(timeout=LONGEST)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    return printed


def until_one_dies(file: str, *arguments: str) -> list[str]:
    """What each process printed until one of them killed itself, which ends the other, as a scheduler of jobs does."""
    processes = _started(file, *arguments)
    while all(process.poll() is None for process in processes):
        time.sleep(0.1)
    killed = [process.returncode == -signal.SIGKILL for process in processes]
    for process in processes:
        process.kill()
    printed = [process.communicate(timeout=LONGEST)[0] for process in processes]
    assert any(killed), "\n".join(printed)
    return printed


def _started(file: str, *arguments: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HELPERS), str(HELPERS.parents[1]), os.environ.get("PYTHONPATH", "")])
    return [
        subprocess.Popen(
            [sys.executable, file, str(port), str(number), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]


def join() -> list[str]:
    """Makes this process one of the two; the arguments after its own."""
    port, number, *arguments = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
    return arguments
