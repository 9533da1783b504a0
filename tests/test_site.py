"""The site: every public name is in its reference, links lead somewhere, shell commands exist, pages are as they should be."""

import doctest
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from public_names import public_names

import ember_optax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(DOCS / page for page in PAGES)]


def _module_of_the_site(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "_site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference_once():
    shown = [name for path in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)", path.read_text(), re.MULTILINE)]
    assert len(shown) == len(set(shown))
    assert set(shown) == {name for name, _ in public_names()}


def test_every_room_of_the_face_was_looked_at():
    rooms = {name for name, value in vars(ember_optax).items() if inspect.ismodule(value) and not name.startswith("_")}
    assert rooms - {"integrations"} == {"geometry", "large_tables", "losses", "regularizers", "row_sparse", "vocab"}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    notebooks = [f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(re.findall(r": (\S+\.(?:md|ipynb))$", navigation, re.MULTILINE)) == sorted([*PAGES, *notebooks])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    """Inside, to files and headings that exist; outside, by https to a host."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        link = "".join(target)
        if link.startswith("http"):
            assert re.fullmatch(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[\w./%#?=&-]*)?", link), link
            continue
        path, _, anchor = link.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("page", ["index.md", "choose.md", "faq.md"])
def test_figures_of_advice_are_those_of_the_evidence(page):
    evidence = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("evidence.md", "evidence_runs.md"))
    figures = re.findall(r"[+-]?\b\d\.\d{4}\b", (DOCS / page).read_text(encoding="utf-8"))
    assert [figure for figure in figures if figure not in evidence] == []
    assert figures or page == "index.md"


def test_promises_name_tests_that_exist():
    named = re.findall(r"`((?:tests|\.ci)/[^`]+)`", (DOCS / "promises.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


COMMANDS = [
    (program, tuple(re.findall(r" (--[a-z-]+)", line)))
    for document in DOCUMENTS
    for block in re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    for program in re.findall(r"python (examples/\w+\.py|-m benchmarks[\w.]*)", line)
]


@pytest.mark.slow  # a process for each
@pytest.mark.parametrize("program, options", sorted(set(COMMANDS)))
def test_shown_commands_have_their_options(program, options):
    shown = subprocess.run(
        [sys.executable, *program.split(), "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [option for option in options if option not in shown] == []


@pytest.mark.parametrize("name", ["pages", "docstrings"])
def test_pages_are_made_as_their_examples_say(name):
    if name == "docstrings":
        pytest.importorskip("griffe")  # of the extra `docs`
    found = doctest.testmod(_module_of_the_site(name))
    assert found.attempted > 0 and found.failed == 0


def test_long_tables_lie_behind_a_summary():
    """Each in a frame of its own, and both as they were."""
    head = "<table><tr><th>shape</th><th></th><th>a &lt; b</th></tr>"
    short, long = (f"{head}{'<tr><td>1</td></tr>' * rows}</table>" for rows in (16, 17))
    made = _module_of_the_site("pages").folded_tables(f"<p>{short}</p>{long}")
    assert made.count("<details") == 1
    assert "<summary>A table of 17 rows: shape, a &lt; b</summary>" in made
    assert made.count('<div class="wide-table"><table>') == 2
    assert '<div class="wide-table prose">' in _module_of_the_site("pages").folded_tables(short.replace("1", "a" * 41))
    assert short in made and long in made
