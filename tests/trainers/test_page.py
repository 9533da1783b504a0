"""The blocks of docs/trainers.md that need a trainer, each trainer in an environment of its own: `.ci/trainers` makes them."""

import importlib
import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "trainers.md").read_text(encoding="utf-8")
ENVIRONMENTS = json.loads((HERE / "environments.json").read_text(encoding="utf-8"))


def blocks_of(title):
    return re.findall(rf'```python title="{title}[^"]*"\n(.*?)```', PAGE, re.DOTALL)


def test_every_block_has_an_environment_or_says_that_it_was_read():
    titles = set(re.findall(r'```python title="([^"]+)"', PAGE))
    assert {title for title in titles if not title.startswith("read, not run: ")} <= set(ENVIRONMENTS)


def test_the_page_names_the_versions_that_run():
    for packages in (environment["packages"] for environment in ENVIRONMENTS.values()):
        for name, version in (package.split("==") for package in packages if "==" in package):
            assert f"{name} {version}" in PAGE, f"docs/trainers.md does not name {name} {version}"


def test_the_workflow_runs_every_environment():
    workflow = (HERE.parents[1] / ".github" / "workflows" / "trainers.yml").read_text(encoding="utf-8")
    assert re.findall(r"trainer: \[(.*)\]", workflow) == [", ".join(ENVIRONMENTS)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize("trainer", [name for name in ENVIRONMENTS if blocks_of(name)])
def test_blocks_run_in_order(trainer, monkeypatch, tmp_path):
    try:
        importlib.import_module(ENVIRONMENTS[trainer]["import"])
    except ImportError as error:
        pytest.skip(f"needs {trainer}, in an environment of its own: {error}")
    monkeypatch.chdir(tmp_path)  # trainers write logs
    monkeypatch.setattr("sys.argv", ["train"])  # absl reads it
    namespace = {"__name__": "__main__"}
    for block in blocks_of(trainer):
        exec(compile(block, f"docs/trainers.md ({trainer})", "exec"), namespace)
