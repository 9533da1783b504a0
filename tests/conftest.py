"""Eight CPU devices, and the helpers that tests of several folders import; warnings are errors by pyproject.toml."""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

import jax
import pytest
from quickly import quickly_compiled


@pytest.fixture
def strict_promotion():
    """No implicit promotion of dtypes or ranks. Not for tests with optax.adam, whose bias correction promotes."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """For files whose cost is compiling, and whose tests look at what a program computes and not at how it is compiled."""
    with quickly_compiled():
        yield


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
