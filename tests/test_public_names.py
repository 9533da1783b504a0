"""Every public name and its signature, so that a change of either is seen; and what is asked of all of them."""

import ast
import enum
import inspect
import re
from pathlib import Path

import pytest
from public_names import public_names

import ember_optax

ROOT = Path(__file__).parents[1]
LISTED = Path(__file__).parent / "data" / "public_names.txt"


def signature(value):
    """Names, kinds and defaults of the parameters; annotations, and layers of Flax, change with their library's version."""
    if value.__module__ in {f"ember_optax.integrations.{library}" for library in ("haliax", "linen", "nnx")}:
        return ""
    parameters = inspect.signature(value).parameters.values()
    return str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters]))


def test_names_and_signatures_are_those_listed():
    """Update tests/data/public_names.txt for a change that is meant, and say in CHANGELOG.md what it was and what it is."""
    found = [f"{name}{signature(value)}" for name, value in public_names() if not isinstance(value, enum.EnumMeta)]
    assert found == LISTED.read_text(encoding="utf-8").splitlines()


def test_one_name_for_the_declaration():
    """`dimension_numbers` is Optax's word, of the transformation alone; everything else says `tables`."""
    for name, value in public_names():
        has_word = callable(value) and "dimension_numbers" in inspect.signature(value).parameters
        assert has_word == (name == "ember_optax.scale_by_ember"), name


def calls_of_ember(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and "ember" in (getattr(node.func, "id", ""), getattr(node.func, "attr", "")):
            yield node


# The `ember` of the contribution to Optax has no body.
FILES = [
    path
    for folder in (".ci", "benchmarks", "docs", "ember_optax", "examples", "notebooks", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".md", ".ipynb") and "results" not in path.parts and path.stem != "test_optax_contribution"
] + [ROOT / "README.md"]


@pytest.mark.parametrize("suffix", [".py", ".md", ".ipynb"])
def test_no_call_of_ember_is_without_a_body(suffix):
    """`ember(1e-2)` alone trained the body with AdamW at 1e-2, and pages taught it."""
    for path in (path for path in FILES if path.suffix == suffix and path != Path(__file__)):
        if suffix == ".py":
            for call in calls_of_ember(path):
                keywords = {keyword.arg for keyword in call.keywords}
                assert len(call.args) > 1 or keywords & {"body", None}, f"{path}:{call.lineno}"
        # In prose, docstrings and notebooks a call with one argument.
        alone = re.findall(r"(?<![\w.])ember\([^,()=]+\)", path.read_text(encoding="utf-8"))
        assert not alone, f"{path}: {alone}"


@pytest.mark.parametrize("call", [lambda: ember_optax.ember(1e-2), lambda: ember_optax.ember(learning_rate=1e-2)])
def test_a_missing_body_is_told_with_the_line_to_write(call):
    with pytest.raises(TypeError, match=r"needs a body.*ember\(1e-2, optax.adamw\(1e-3\)\)"):
        call()
