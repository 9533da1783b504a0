"""The rooms of the library: which may import which, and how large a module or a function may be."""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

from ember_optax import ScaleByEmberState
from ember_optax._math.state import Moments

PACKAGE = Path(__file__).parents[1] / "ember_optax"
ROOT = PACKAGE.parent
# A room imports from its own level only within itself, and else from lower levels.
LEVELS = [
    {"_math"},
    {"_tree"},
    {"_fused_heads"},
    {"_optimizer", "geometry"},
    {"_state", "row_sparse", "large_tables"},
    {"vocab", "losses", "regularizers", "integrations"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
# What each room may import besides the standard library and its own package. Libraries with boxes: only their adapters.
EVERYWHERE = {"jax", "numpy", "optax"}
ADAPTERS = {"_tree/linen_boxes.py": {"flax"}, "_tree/nnx_boxes.py": {"flax"}}
ADAPTERS |= {"integrations/linen.py": {"flax"}, "integrations/nnx.py": {"flax"}}
ADAPTERS |= {"integrations/haliax.py": {"haliax"}, "integrations/keras.py": {"keras"}, "integrations/plots.py": {"matplotlib"}}


def imports_of(module):
    """Absolute names of everything a module imports, at any depth of its code."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    package = ["ember_optax", *module.parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_arrow_points_up(module):
    room = module.parts[0]
    for name in imports_of(module):
        top, *inside = name.split(".")
        if top == "ember_optax" and room in LEVEL:
            assert inside[0] in LEVEL, f"{module} imports {name}, the package's face"
            target = inside[0]
            assert target == room or LEVEL[target] < LEVEL[room], f"{module} imports {name}, which is not below {room}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_libraries_stay_in_their_adapters(module):
    allowed = EVERYWHERE | ADAPTERS.get(module.as_posix(), set()) | {"ember_optax"}
    found = {name.split(".")[0] for name in imports_of(module)} - set(sys.stdlib_module_names)
    assert found <= allowed


def test_what_one_module_uses_lives_with_it():
    """`_math` has what several rooms use, and what its own modules use."""
    users = {module: set() for module in MODULES if module.parts[0] == "_math" and module.name != "__init__.py"}
    for user in MODULES:
        for name in imports_of(user):
            for module, of in users.items():
                if module != user and name.startswith(f"ember_optax._math.{module.stem}."):
                    of.add(user)
    lonely = {str(module): str(*of) for module, of in users.items() if len(of) == 1 and next(iter(of)).parts[0] != "_math"}
    assert not lonely


def test_the_rule_sees_an_arrow():
    """That the reader of imports reads them: the transformation's are known."""
    found = set(imports_of(Path("_optimizer/scale_by_ember.py")))
    assert {"jax", "ember_optax._math.step.ember_step", "ember_optax._tree.tables.every_table"} <= found
    assert {path.parts[0] for path in MODULES if len(path.parts) > 1} == set(LEVEL)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_and_functions_are_small(module):
    source = (PACKAGE / module).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
            assert node.end_lineno - node.lineno + 1 - docstring <= 40, node.name


def test_one_prologue():
    """Only these read the leaves of a tree by name; every other function of trees goes through `_tree/tables.py`."""
    readers = {module.as_posix() for module in MODULES if "flatten_named" in (PACKAGE / module).read_text(encoding="utf-8")}
    assert readers == {
        "_optimizer/ember.py",
        "_state/convert.py",
        "_state/origins.py",
        "_tree/declared.py",
        "_tree/finder.py",
        "_tree/paths.py",
        "_tree/find_states.py",
        "_tree/tables.py",
        "_tree/token_ids.py",
    }


def test_the_fields_of_the_state_are_said_once():
    assert Moments is ScaleByEmberState


# Wordings that are hard to read. Each has a plain form, such as "instead of", "n", "for example" or "is".
RIDDLE = re.compile(
    r"\b(in the place of|so many|as everywhere|nobody told|nothing tells|takes there|by a clock|as ever|brought out|likewise"
    r"|stands?|lies)\b|, say\b".replace(" ", r"\s+"),
    re.IGNORECASE,
)


def riddles_in(source):
    """The line and the wording of each riddle in the strings and comments of a module."""
    prose = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        for found in RIDDLE.finditer(token.string if token.type in prose else ""):
            yield token.start[0] + token.string[: found.start()].count("\n"), " ".join(found.group().split())


# Programs speak of tokens that stand out and of names that stand for something.
IDIOMS = {"stand", "stands", ", say"}


@pytest.mark.parametrize("folder", ["ember_optax", "benchmarks", "examples"])
def test_prose_is_plain(folder):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {words!r}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, words in riddles_in(path.read_text(encoding="utf-8"))
        if folder == "ember_optax" or words not in IDIOMS
    ]
    assert not found, "write it with subject, verb and object:\n" + "\n".join(found)


def test_the_rule_sees_riddles():
    source = '"""Rows that stand\n  in the\n  place of others."""\nlies = 1  # a cast, say\nprint(f"so many: {n}")\n'
    assert list(riddles_in(source)) == [(1, "stand"), (2, "in the place of"), (4, ", say"), (5, "so many")]
