"""The package as a stranger gets it: names, documentation, typing marker, few dependencies."""

import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ember_optax
from ember_optax import geometry, losses, row_sparse, vocab

PUBLIC = [name for name, value in vars(ember_optax).items() if not name.startswith("_") and not inspect.ismodule(value)]


@pytest.mark.parametrize("name", [*PUBLIC, "row_sparse", "geometry", "vocab"])
def test_public_names_are_documented_with_an_example(name):
    documentation = inspect.getdoc(getattr(ember_optax, name))
    assert documentation
    assert ">>>" in documentation
    assert "2607.01455" in documentation


ROOMS = [
    (room, name)
    for room in (geometry, losses, row_sparse, vocab)
    for name in room.__all__
    if room is row_sparse or inspect.isfunction(getattr(room, name))
]


@pytest.mark.parametrize("room, name", ROOMS)
def test_public_names_of_rooms_are_documented_with_an_example(room, name):
    documentation = inspect.getdoc(getattr(room, name))
    assert documentation
    assert all(part in documentation for part in (">>>", "Args:", "References:"))


def test_version_is_the_package_metadata():
    assert importlib.metadata.version("ember_optax") == ember_optax.__version__


def test_ships_the_typing_marker():
    assert (Path(ember_optax.__file__).parent / "py.typed").exists()


def test_needs_jax_and_optax_only():
    required = [r for r in importlib.metadata.requires("ember_optax") or [] if "extra ==" not in r]
    assert sorted(r.split(">")[0] for r in required) == ["jax", "optax"]


def test_importing_starts_no_backend_and_loads_no_model_library():
    """A user's `jax.distributed.initialize` or device settings must still work after the import."""
    program = (
        "import sys, ember_optax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "assert not {'flax', 'equinox', 'haiku', 'keras', 'orbax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
