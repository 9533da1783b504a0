"""The package as a stranger gets it: names, documentation, typing marker, few dependencies."""

import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ember_optax
from ember_optax import geometry, losses, regularizers, row_sparse, vocab

ROOT = Path(__file__).parents[1]
PUBLIC = [name for name, value in vars(ember_optax).items() if not name.startswith("_") and not inspect.ismodule(value)]


@pytest.mark.parametrize("name", [*PUBLIC, "row_sparse", "geometry", "vocab", "regularizers"])
def test_public_names_are_documented_with_an_example(name):
    documentation = inspect.getdoc(getattr(ember_optax, name))
    assert documentation
    assert ">>>" in documentation
    assert "References:" in documentation


ROOMS = [
    (room, name)
    for room in (geometry, losses, regularizers, row_sparse, vocab)
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


def test_importing_starts_no_backend_and_loads_nothing_else():
    """A user's `jax.distributed.initialize` or device settings must still work after it, and it costs its own modules alone."""
    program = (
        "import sys, jax, optax\n"
        "before = set(sys.modules)\n"
        "import ember_optax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "others = {name for name in set(sys.modules) - before if name.split('.')[0] not in ('ember_optax', 'jax')}\n"
        "assert not others, others\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_and_may_only_read(workflow):
    text = workflow.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action) for action in used)
    assert "\npermissions:\n  contents: read\n" in text
    assert re.findall(r"([\w-]+): write", text) == (["id-token"] if workflow.name == "release.yml" else [])


def test_the_oldest_versions_are_the_lower_bounds_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(r.split(">=") for r in [*project["dependencies"], *project["optional-dependencies"]["flax"]])
    for document in (ROOT / "CONTRIBUTING.md", ROOT / ".github" / "workflows" / "tests.yml"):
        pins = dict(re.findall(r"\b(jax|jaxlib|flax|optax)==([\d.]+)", document.read_text(encoding="utf-8")))
        assert pins == bounds | {"jaxlib": bounds["jax"]}
