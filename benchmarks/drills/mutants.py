"""Would the tests notice? Every mutant is the library with one small fault (`mutations`); its tests have to fail.

A mutant is tested by the tests of its own room, and with `--everywhere` by those of every room where it survived them. Each runs
in a process of its own that is forked from one which has imported the libraries but not this one, and compiles only what the
fault has changed. A mutant that hangs is killed and counts as noticed. Results are written as they come; runs are repeatable, as
each module's mutants come in one shuffled order.

Those that no test can notice, because they change nothing that is promised, are explained in
benchmarks/results/equivalent_mutants.json.
"""

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.drills.mutations import Mutation, mutations
from benchmarks.harness.results import RESULTS, ROOT, load, parser, save

# Tests by what they look at, quick ones first; a module's own come before those of all rooms.
TESTS = {
    "_math/softmax": "losses",
    "_math/row": "row_sparse math",
    "_math/rows": "row_sparse math",
    "_math/row_step": "row_sparse optimizer",
    "_math/gaussian_rows": "vocab",
    "_math": "math optimizer",
    "_optimizer/apply": "row_sparse optimizer",
    "_optimizer": "optimizer test_bad_inputs.py integrations/test_libraries.py",
    "_state": "state test_bad_inputs.py",
    "_tree": "tree test_bad_inputs.py optimizer state integrations/test_libraries.py",
    "losses": "losses test_bad_inputs.py",
    "geometry": "geometry test_bad_inputs.py",
    "row_sparse": "row_sparse test_bad_inputs.py",
    "vocab": "vocab test_bad_inputs.py",
}
EVERYWHERE = "math optimizer tree state losses row_sparse vocab geometry integrations test_bad_inputs.py test_communication.py"
COMPUTING = ("_math", "_optimizer", "losses", "row_sparse", "geometry", "vocab", "_state")
_IMPORTED = ("jax", "numpy", "optax", "pytest", "hypothesis", "scipy.stats", "flax.nnx", "flax.linen", "equinox", "haiku")
_FAILED = 1  # pytest's exit status where a test failed; 2 where a file could not even be imported


def main() -> None:
    """Tests the mutants that have not been, and says how many were noticed."""
    arguments = parser(__doc__)
    arguments.add_argument("--rooms", nargs="+", default=COMPUTING, help="folders of the package, or modules")
    arguments.add_argument("--per-module", type=int, default=20, help="so many of each module, drawn at random")
    arguments.add_argument("--everywhere", action="store_true", help="try those that survived with the tests of every room")
    arguments.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no mutant after that")
    arguments.add_argument("--timeout", type=float, default=600, help="seconds for the tests of a mutant")
    arguments.add_argument("--output", type=Path, default=RESULTS / "mutants.json", help="where results are kept")
    options = arguments.parse_args()
    _prepare()
    results, end = load(options.output), time.monotonic() + 60 * options.budget_minutes
    every = [(module, mutation) for module in modules(options.rooms) for mutation in drawn(module, options.per_module)]
    left = [(module, mutation) for module, mutation in every if _is_left(results.get(key(module, mutation)), options.everywhere)]
    for module, mutation in (progress := tqdm(left, unit="mutant", smoothing=0.05)):
        if time.monotonic() > end:
            break
        progress.set_postfix_str(f"{module}:{mutation.line}, {sum(r['noticed_by'] is None for r in results.values())} survived")
        tests = EVERYWHERE if options.everywhere else own_tests(module)
        results[key(module, mutation)] = _tested(module, mutation, tests, options.timeout)
        save(options.output, results)
    print(f"{len(results)} mutants, {sum(r['noticed_by'] is not None for r in results.values())} noticed")


def _prepare() -> None:
    """What the processes share: the libraries, and the programs that no fault has changed."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mutants-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()


def _is_left(result: dict[str, Any] | None, everywhere: bool) -> bool:
    """Not tested yet, or survived all but the tests of every room."""
    if everywhere:
        return bool(result) and result["noticed_by"] is None and result["tests"] != EVERYWHERE
    return result is None


def modules(rooms: Sequence[str]) -> list[str]:
    """The modules of these folders that have something to mutate, in the order of the folders."""
    package = ROOT / "ember_optax"
    paths = [path for room in rooms for pattern in (f"{room}.py", f"{room}/*.py") for path in sorted(package.glob(pattern))]
    found = [path.relative_to(package).with_suffix("").as_posix() for path in paths]
    return [module for module in found if mutations(_source(module))]


def drawn(module: str, count: int) -> list[Mutation]:
    """The first so many of a module's mutations in its shuffled order."""
    found = mutations(_source(module))
    random.Random(module).shuffle(found)
    return found[:count]


def key(module: str, mutation: Mutation) -> str:
    """How results name a mutant: by text, so that it stays the same where lines move."""
    line = _source(module).splitlines()[mutation.line - 1].strip()
    return f"{module}: {line} | {mutation.old} -> {mutation.new}"


def own_tests(module: str) -> str:
    """Those of the longest name in `TESTS` that the module's begins with."""
    return TESTS[max((name for name in TESTS if module.startswith(name)), key=len)]


def _tested(module: str, mutation: Mutation, tests: str, timeout: float) -> dict[str, Any]:
    """How the mutant was noticed, None if it was not, by which tests, and after how many seconds."""
    began = time.monotonic()
    paths = [*(f"tests/{name}" for name in tests.split()), f"ember_optax/{module}.py"]
    _check_without_fault(tuple(paths[:-1]), timeout)
    status = _in_a_fork(module, mutation, paths, timeout)
    noticed = {0: None, _FAILED: "a test fails", None: "does not end"}.get(status, f"cannot be tested (status {status})")
    return {"noticed_by": noticed, "tests": tests, "seconds": round(time.monotonic() - began, 1)}


@functools.cache
def _check_without_fault(paths: tuple[str, ...], timeout: float) -> None:
    """Tests that fail anyway notice nothing."""
    if status := _in_a_fork("_math/step", Mutation(1, 0, "", ""), list(paths), timeout):
        raise SystemExit(f"without a fault {' '.join(paths)} end with status {status}")


def _in_a_fork(module: str, mutation: Mutation, tests: list[str], timeout: float) -> int | None:
    """The exit status of the tests with the fault; None where they did not end in time."""
    child = os.fork()
    if child == 0:
        os.setsid()  # with the processes that it starts, if any
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os._exit(_run(module, mutation, tests))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run(module: str, mutation: Mutation, tests: list[str]) -> int:
    import pytest  # noqa: PLC0415  # imported by the parent

    sys.meta_path.insert(0, _Faulty(f"ember_optax.{module.replace('/', '.')}", ROOT / "ember_optax" / f"{module}.py", mutation))
    os.chdir(ROOT)
    imported = "ignore:Module already imported"
    # Plain assertions: pytest would import a file that it is told to look at for doctests itself, past `_Faulty`.
    options = ["-x", "-q", "-m", "not slow", "--assert=plain", "-p", "no:cacheprovider", "-W", imported]
    return int(pytest.main([*options, *tests]))


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
    return (ROOT / "ember_optax" / f"{module}.py").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
