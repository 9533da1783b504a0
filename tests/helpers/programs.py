"""The example programs, called as functions or started as processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

EXAMPLES = Path(__file__).parents[2] / "examples"


class Done(NamedTuple):
    """What a program left on the terminal, and its exit status."""

    returncode: int | str | None
    stdout: str
    stderr: str


def call(main: Callable[[list[str]], int], capsys, *arguments: str) -> Done:
    """The program in this process, on its eight devices; an exception that it does not report itself comes out."""
    capsys.readouterr()
    try:
        status = main(list(arguments))
    except SystemExit as end:  # argparse
        status = end.code
    return Done(status, *capsys.readouterr())


def start(name: str, *arguments: str, devices_of_tests: bool = False) -> Done:
    """The program as a user runs it, in a process of its own; on one device, or on as many as the tests have."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = dict(os.environ) if devices_of_tests else without_devices(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return Done(done.returncode, done.stdout, done.stderr)


def without_devices(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process with devices of its own, which compiles as quickly as the tests."""
    kept = [flag for flag in environment.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    return {**environment, "XLA_FLAGS": " ".join(kept)}


@contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Compiled programs are kept in a folder, here and in processes started here: compiling is most of a tiny run's time."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
            os.environ[name.upper()] = str(value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
            os.environ.pop(name.upper(), None)
        compilation_cache.reset_cache()
