"""Would the tests notice? Every mutant is the library with one small fault (`mutations`); its tests have to fail.

A mutant is tested by the tests that run the faulty line (`lines_run`; that run the module where none does), the most specific
ones, so many seconds of them; with `--again` those that survived, by the tests that they have got since. Each runs in a process
that is forked from one which has imported the libraries but not this one, and compiles only what the fault has changed. A mutant
that hangs is killed and counts as noticed. Results are written as they come; runs are repeatable, as each module's mutants come
in one shuffled order.

Those that no test can notice, because they change nothing that is promised, are explained in
benchmarks/results/equivalent_mutants.json.
"""

import argparse
import functools
import gc
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from benchmarks.drills.lines_run import PACKAGE, PYTEST, Ran, lines_run
from benchmarks.drills.mutations import Mutation, mutations
from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, ROOT, load, parser, save

TESTS = "test_defaults.py math optimizer tree state losses row_sparse vocab geometry regularizers integrations test_bad_inputs.py"
COMPUTING = ("losses", "regularizers", "_math", "_optimizer", "_tree", "row_sparse", "_state", "vocab", "geometry")
_IMPORTED = ("jax", "numpy", "optax", "pytest", "hypothesis", "scipy.stats", "flax.nnx", "flax.linen", "equinox", "haiku")
_FAILED = 1  # pytest's exit status where a test failed; 2 where a file could not even be imported
LATER = "a test fails later"  # when more of them ran, or it was written
EQUIVALENT = RESULTS / "equivalent_mutants.json"


def main() -> None:
    """Tests the mutants that have not been, and says how many were noticed."""
    arguments = parser(__doc__)
    arguments.add_argument("--rooms", nargs="+", default=COMPUTING, help="folders of the package, or modules")
    arguments.add_argument("--per-module", type=int, default=20, help="so many of each module, drawn at random")
    arguments.add_argument("--again", action="store_true", help="try those that survived with the tests that they have got since")
    arguments.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no mutant after that")
    arguments.add_argument(
        "--seconds", type=float, default=30, help="of tests for a mutant, as long as they take without a fault"
    )
    arguments.add_argument("--timeout", type=float, default=300, help="seconds after which a mutant hangs")
    arguments.add_argument("--output", type=Path, default=RESULTS / "mutants.json", help="where results are kept")
    options = arguments.parse_args()
    _prepare()
    results, end = of_present(load(options.output)), time.monotonic() + 60 * options.budget_minutes
    done = results["mutants"]
    survived, count = set(survivors(results)), None if options.again else options.per_module
    every = [(module, name) for module in modules(options.rooms) for name in drawn(module, count)]
    left = [(module, name) for module, name in every if (name in survived if options.again else name not in done)]
    for module, name in (progress := tqdm(left, unit="mutant", smoothing=0.05)):
        if time.monotonic() > end:
            break
        mutation = named(module)[name]
        progress.set_postfix_str(f"{module}:{mutation.line}, {len(survivors(results))} survived")
        done[name] = _tested(module, mutation, options)
        save(options.output, results)
    print(sentence(results, load(EQUIVALENT)), *survivors(results), sep="\n")


def of_present(results: dict[str, Any]) -> dict[str, Any]:
    """Results without those of lines that are no more, and how many mutants each module has by now."""
    possible = {module: named(module) for module in modules(COMPUTING)}
    present = {name: result for name, result in results.get("mutants", {}).items() if name in set().union(*possible.values())}
    return {"of": {module: len(mutants) for module, mutants in possible.items()}, "mutants": present}


def survivors(results: dict[str, Any]) -> list[str]:
    """The mutants that no test noticed."""
    return [name for name, result in results["mutants"].items() if result["noticed_by"] is None]


def table(results: dict[str, Any], equivalent: dict[str, str]) -> str:
    """One line for each room."""
    rooms = list(dict.fromkeys(module.partition("/")[0] for module in results["of"]))
    rows = [(f"`{room}`", *map(str, _counts(results, equivalent, f"{room}/"))) for room in rooms]
    return markdown(rows, ("room", "possible", "tested", "noticed", "change nothing", "missed"))


def sentence(results: dict[str, Any], equivalent: dict[str, str]) -> str:
    """All rooms together."""
    possible, tested, noticed, nothing, missed = _counts(results, equivalent, "")
    later = sum(result["noticed_by"] == LATER for result in results["mutants"].values())
    at_once = noticed - later
    return (
        f"Of {possible:,} possible faults {tested:,} ({tested / possible:.1%}) were drawn and tested. {nothing} change nothing "
        f"that is promised. Of the others the tests noticed {at_once:,} ({at_once / max(1, noticed + missed):.0%}) at once and "
        f"{later} when more tests ran or one was written for them, and {missed} are missed."
    )


def _counts(results: dict[str, Any], equivalent: dict[str, str], prefix: str) -> tuple[int, int, int, int, int]:
    """Mutants that are possible, tested, noticed, without an effect, and missed, in modules whose name begins so."""
    tested = [name for name in results["mutants"] if name.startswith(prefix)]
    survived = [name for name in survivors(results) if name.startswith(prefix)]
    nothing = sum(name in equivalent for name in survived)
    possible = sum(count for module, count in results["of"].items() if module.startswith(prefix))
    return possible, len(tested), len(tested) - len(survived), nothing, len(survived) - nothing


def _prepare() -> None:
    """What the processes share: the libraries, and the programs that no fault has changed."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mutants-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()


def modules(rooms: Sequence[str]) -> list[str]:
    """The modules of these folders that have something to mutate, in the order of the folders."""
    paths = [path for room in rooms for pattern in (f"{room}.py", f"{room}/*.py") for path in sorted(PACKAGE.glob(pattern))]
    found = [path.relative_to(PACKAGE).with_suffix("").as_posix() for path in paths]
    return [module for module in found if named(module)]


def drawn(module: str, count: int | None) -> list[str]:
    """The first so many of a module's mutants in its shuffled order; None for all."""
    names = list(named(module))
    random.Random(module).shuffle(names)
    return names[:count]


@functools.cache
def named(module: str) -> dict[str, Mutation]:
    """A module's mutants by text, so that results stay those of the same ones where lines move; equal ones are numbered."""
    lines, found = _source(module).splitlines(), {}
    for mutation in mutations(_source(module)):
        name = again = f"{module}: {lines[mutation.line - 1].strip()} | {mutation.old} -> {mutation.new}"
        count = 1
        while again in found:
            again = f"{name} ({(count := count + 1)})"
        found[again] = mutation
    return found


def _tested(module: str, mutation: Mutation, options: argparse.Namespace) -> dict[str, Any]:
    """How the mutant was noticed, None if it was not, and after how many seconds."""
    chosen = tests_of(module, mutation, _recorded(module), options.seconds)
    began = time.monotonic()
    status = _in_a_fork(lambda: _run(module, mutation, chosen), options.timeout)
    noticed = {0: None, _FAILED: LATER if options.again else "a test fails", None: "does not end"}.get(
        status, f"cannot be tested (status {status})"
    )
    return {"noticed_by": noticed, "seconds": round(time.monotonic() - began, 1)}


def tests_of(module: str, mutation: Mutation, recorded: Sequence[Ran], seconds: float) -> list[list[str]]:
    """The most specific that run the faulty line, or else the module, or else any, for so many seconds; those of a file together.

    Specific is what runs few lines of the package. A line that every step runs is run by most tests, and few are about it.
    """
    faulty = set(range(mutation.line, mutation.line + mutation.old.count("\n") + 1))
    of_module = [ran for ran in recorded if module in ran.lines or not ran.lines]
    of_line = [ran for ran in of_module if faulty.intersection(ran.lines.get(module, ()))]
    files: dict[str, list[str]] = {ran.test.partition("::")[0]: [] for ran in recorded}
    for ran in sorted(of_line or of_module or recorded, key=lambda ran: (sum(map(len, ran.lines.values())), ran.seconds)):
        seconds -= ran.seconds
        if seconds < 0 and any(files.values()):
            break
        files[ran.test.partition("::")[0]].append(ran.test)
    return [tests for tests in files.values() if tests]


def _recorded(module: str) -> list[Ran]:
    """What the tests and the examples of the module run. (`test_defaults.py` looks at what only an import runs.)"""
    files = [path.relative_to(ROOT).as_posix() for path in test_files()] + [f"ember_optax/{module}.py"]
    return [ran for file in files for ran in _recorded_of(file)]


def test_files() -> list[Path]:
    """The files of the tests that mutants are tested by."""
    tests = ROOT / "tests"
    return [path for name in TESTS.split() for path in sorted(tests.glob(name if "." in name else f"{name}/test_*.py"))]


@functools.cache
def _recorded_of(file: str) -> list[Ran]:
    return lines_run(file, ROOT / ".cache" / "lines_run", functools.partial(_in_a_fork, timeout=3600))


def _in_a_fork(work: Callable[[], int], timeout: float) -> int | None:
    """What the work returns; None where it did not end in time."""
    child = os.fork()
    if child == 0:
        os.setsid()  # with the processes that it starts, if any
        os.chdir(ROOT)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os._exit(work())
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run(module: str, mutation: Mutation, files: list[list[str]]) -> int:
    """File by file, so that those after the one that notices need not be imported."""
    sys.meta_path.insert(0, _Faulty(f"ember_optax.{module.replace('/', '.')}", PACKAGE / f"{module}.py", mutation))
    return next((int(status) for tests in files if (status := pytest.main([*PYTEST, "-x", *tests]))), 0)


class _Faulty(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module with a fault in it."""

    def __init__(self, name: str, path: Path, mutation: Mutation):
        self.name, self.path, self.mutation = name, path, mutation

    def find_spec(self, fullname, path, target=None):
        if fullname == self.name:
            return importlib.util.spec_from_file_location(fullname, self.path, loader=self)
        return None

    def is_package(self, fullname):
        return False

    def get_source(self, fullname):
        return self.mutation.of(self.path.read_text(encoding="utf-8"))


def _source(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
