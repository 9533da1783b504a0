"""The drill that puts small faults into the library: its faults, and what the tests made of them."""

import json
from pathlib import Path

import pytest

from benchmarks.drills import mutants
from benchmarks.drills.lines_run import Ran
from benchmarks.drills.mutations import Mutation, mutations

FAULTS = {
    "x + 1": {"x - 1", "x + 2"},
    "x // y": {"x * y"},
    "x & y": {"x | y"},
    "x and y": {"x or y"},
    "x < y": {"x <= y", "x >= y"},
    "x is not None": {"x is None"},
    "x not in y": {"x in y"},
    "not x": {"(x)"},
    "-x": {"(x)"},
    "True": {"False"},
    "0.5": {"1.0"},
    "0.0": {"1.0"},
    "f(x) if g(x) else y": {"y if g(x) else f(x)"},
    "jnp.maximum(x, y)": {"jnp.minimum(x, y)"},
    "any(x)": {"all(x)"},
    "jnp.where(x, y, z)": {"jnp.where(x, z, y)"},
    "lax.optimization_barrier(x)": {"x"},
    "f('text', x)": set(),
    "zip(x, y, strict=True)": set(),
    "x < y < z": set(),
}


@pytest.mark.parametrize("expression", FAULTS)
def test_faults_of(expression):
    source = f"def f(x: int = None):\n    é = 'é', ({expression})  # two bytes\n    return é\n"
    assert {mutation.of(source) for mutation in mutations(source)} == {
        source.replace(f"({expression})", f"({fault})") for fault in FAULTS[expression]
    }


def test_statements_are_left_out():
    (mutation,) = mutations("check(x)\n")
    assert mutation == Mutation(1, 0, "check(x)", "pass")


def test_what_only_a_reader_sees_is_left_alone():
    source = (
        '"""1 + 1."""\nfrom x import y\n\ndef f(x: Array[1]) -> Array[2]:\n    assert x > y\n    raise ValueError(f"{x + 1}")\n'
    )
    assert mutations(source) == []


def test_a_fault_is_named_by_its_text_not_by_its_place(monkeypatch):
    source = "def f(x):\n    return x + y + y\n\ndef g(x):\n    return x + y + y\n"
    names = "_math/new: return x + y + y | "
    names = [f"{names}{fault}" for fault in ("x + y -> x - y", "x + y + y -> x + y - y")]
    for text in (source, f"import y\n\n{source}"):
        monkeypatch.setattr(mutants, "_source", {"_math/new": text}.get)
        mutants.named.cache_clear()
        assert list(mutants.named("_math/new")) == [*names, *(f"{name} (2)" for name in names)]
        assert {mutation.of(text) for mutation in mutants.named("_math/new").values()} == {
            text[:at] + "-" + text[at + 1 :] for at, character in enumerate(text) if character == "+"
        }
        assert sorted(mutants.drawn("_math/new", 10)) == sorted(mutants.named("_math/new"))
        assert mutants.drawn("_math/new", 2) == mutants.drawn("_math/new", 10)[:2]


def test_specific_tests_of_the_faulty_line():
    recorded = [
        Ran("a.py::step", 0.2, {"m": [1, 2], "n": list(range(9))}),
        Ran("b.py::quick", 0.5, {"m": [2]}),
        Ran("a.py::quick", 1.0, {"m": [2]}),
        Ran("b.py::next", 2.0, {"m": [2, 3]}),
        Ran("a.py::elsewhere", 0.2, {"m": [1], "n": [2]}),
        Ran("b.py::imported", 0.1, {}),
        Ran("b.py::other", 0.1, {"n": [2]}),
    ]

    def chosen(line, seconds, old="x"):
        return mutants.tests_of("m", Mutation(line, 0, old, "y"), recorded, seconds)

    assert chosen(2, 20) == [["a.py::quick", "a.py::step"], ["b.py::quick", "b.py::next"]]
    assert chosen(2, 3.6) == [["a.py::quick"], ["b.py::quick", "b.py::next"]]
    assert chosen(2, 0) == [["b.py::quick"]]
    assert chosen(1, 0.3) == [["a.py::elsewhere"]]
    assert chosen(1, 1.9, "x\n+ x") == [["a.py::quick", "a.py::elsewhere"], ["b.py::quick"]]
    assert chosen(7, 0.7) == [["b.py::imported", "b.py::quick"]], "run by the import alone: a constant, a default"


def test_every_room_is_tested():
    rooms = {path.parent.name for path in mutants.test_files()}
    assert {"tests", *(path.parent.name for path in Path(__file__).parent.glob("*/test_*.py"))} == rooms


def test_faults_are_noticed_or_explained():
    """Of those that were drawn and change something at least 95 %; what was not noticed is listed with the reason."""
    results, equivalent = (
        json.loads((mutants.RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("mutants", "equivalent_mutants")
    )
    survived = mutants.survivors(results)
    noticed = len(results["mutants"]) - len(survived)
    assert noticed / (noticed + sum(name not in equivalent for name in survived)) >= 0.95
    assert set(survived) == set(equivalent), "each survivor has its explanation, and each explanation its survivor"
    document = (Path(__file__).parents[1] / "docs" / "promises.md").read_text(encoding="utf-8")
    assert mutants.sentence(results, equivalent) in document
    assert mutants.table(results, equivalent) in document
