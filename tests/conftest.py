"""Eight CPU devices, and the helpers that tests of several folders import; warnings are errors by pyproject.toml."""

import gc
import os
from contextlib import ExitStack, nullcontext
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import jax
import pytest
from quickly import forget_programs_if_many, fully_compiled, quickly_compiled

# The files of the default suite above 10 s of CPU, longest first (`time pytest FILE -m "not slow"`: user + sys).
LONGEST = [
    "test_documents.py",
    "test_pretrain.py",
    "optimizer/test_contract.py",
    "row_sparse/test_fused_head_split.py",
    "row_sparse/test_fused_head_scan.py",
    "test_bad_inputs.py",
    "row_sparse/test_fused_head_calls.py",
    "math/test_moments.py",
    "row_sparse/test_row_repeats.py",
    "row_sparse/test_row_steps.py",
    "row_sparse/test_fused_head_alone.py",
    "regularizers/test_terms.py",
    "geometry/test_hard_numbers.py",
    "regularizers/test_transformations.py",
    "state/test_convert.py",
]


def pytest_configure(config):
    """Compiles quickly from the first import: most of the suite's cost is compiling, and some files do it as they are collected.

    Files are handed out to workers as they were collected; by the number of tests, the longest would be among the last.
    """
    config.option.loadscopereorder = False
    stack = ExitStack()
    stack.enter_context(quickly_compiled())
    config.add_cleanup(stack.close)
    gc.disable()


def pytest_collection_finish():
    """What was imported stays, and need not be looked at in each collection of garbage."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # tracing makes many objects, few of them in cycles
    gc.enable()


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker ends alone with one of them."""
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    if missing := [str(path) for path in rank if not path.exists()]:
        raise pytest.UsageError(f"LONGEST in tests/conftest.py names files that are not there: {missing}")
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture
def strict_promotion():
    """No implicit promotion of dtypes or ranks. Not for tests with optax.adam, whose bias correction promotes."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _full_compilation(request):
    """As users compile: for the files of tests that look at compiled programs, `pytestmark = pytest.mark.fully_compiled`."""
    with fully_compiled() if request.node.get_closest_marker("fully_compiled") else nullcontext():
        yield
    if request.path.is_relative_to(Path(__file__).parent):  # examples of docstrings are small, and much alike
        forget_programs_if_many()


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Real English, some 150 kB: this repository's licence and documentation strings of the standard library."""
    folder = tmp_path_factory.mktemp("text")
    source = Path(os.__file__).parent
    for name in ("argparse.py", "os.py", "typing.py", "zipfile.py"):
        path = source / name
        if path.exists():
            (folder / name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "picture.bin").write_bytes(b"\xff\xfe\x00\x80")
    return folder
