"""Which lines of the package each test runs: those that run a faulty line are the ones that could notice the fault."""

import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

from benchmarks.harness.results import ROOT

PACKAGE = ROOT / "ember_optax"
# Plain assertions: pytest would import a file that it is told to look at for doctests itself, past a fault in it.
PYTEST = ("-q", "-m", "not slow", "--assert=plain", "-p", "no:cacheprovider", "-W", "ignore:Module already imported")


class Ran(NamedTuple):
    """A test that passes, how many seconds it takes, and the lines that it runs of each module."""

    test: str
    seconds: float
    lines: dict[str, list[int]]


def lines_run(file: str, folder: Path, in_a_fork: Callable[[Callable[[], int]], int | None]) -> list[Ran]:
    """What each test of a file runs, in a process of its own; kept until this file, a helper or the library changes."""
    sources = [ROOT / file, *sorted((ROOT / "tests" / "helpers").rglob("*.py")), *sorted(PACKAGE.rglob("*.py"))]
    kept = folder / f"{hashlib.sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()}.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if (status := in_a_fork(lambda: _record(file, kept))) not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            print(f"without a fault {file} ends with status {status}; what fails is left out", file=sys.stderr)
    return [Ran(*ran) for ran in json.loads(kept.read_text())] if kept.exists() else []


def _record(file: str, kept: Path) -> int:
    recorder = _Recorder()
    status = pytest.main([*PYTEST, file], plugins=[recorder])
    kept.write_text(json.dumps([ran for ran in recorder.ran if ran.test not in recorder.failed]))
    return int(status)


class _Recorder:
    """Told by pytest of each test. Lines that only an import runs are no test's, whichever was the first to import them."""

    def __init__(self):
        self.ran: list[Ran] = []
        self.failed: set[str] = set()

    def pytest_collection_finish(self) -> None:
        for path in set(PACKAGE.rglob("*.py")) - set(PACKAGE.rglob("__init__.py")):
            importlib.import_module(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        lines: dict[str, set[int]] = {}

        def trace(frame, event, argument):
            name = frame.f_code.co_filename
            if not name.startswith(str(PACKAGE)):
                return None
            if event == "line":  # a call's line is that of the definition, which the import has run
                lines.setdefault(name, set()).add(frame.f_lineno)
            return trace

        # What an earlier test has traced, or computed for all of a file, would run without a line.
        jax.clear_caches()
        for value in vars(item.module).values() if isinstance(item, pytest.Function) else ():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
        began = time.monotonic()
        sys.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            modules = {Path(name).relative_to(PACKAGE).with_suffix("").as_posix(): sorted(lines[name]) for name in lines}
            self.ran.append(Ran(item.nodeid, round(time.monotonic() - began, 2), modules))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
