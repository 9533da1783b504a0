"""The notebooks run to their last cell in smoke mode, each in a process of its own, and what is kept in them can be shown."""

import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
# What each one must print in smoke mode; the groups are numbers that must be below 1e-5.
PRINTED = {
    "fine_tuning": r"This is a tiny random model.*\nnew rows only .* 100\.0% of the old ones are bit-identical",
    "huge_vocabulary": r"row-sparse parameters: (\S+)\n.*fused head, row-sparse input .* losses within (\S+) of Ember's",
    "large_tables": r"5 steps were lost; validation loss as saved: True\n.*on the host and on the device: (\S+)",
    "quickstart": r"AdamW.*\nEmber",
    "sharding": r"8 devices: simulated.*\('fsdp', 'tp'\) .*all-reduce f32.*on 4 devices.*of the losses: (\S+)\n.*Pad it",
    "split_head": r"loss in chunks [^\n]* nothing\n.*fused head +largest [^\n]*: (\S+)\n.*in 4 [^\n]*: (\S+)\n",
    "token_geometry": r"embedding/effective_rank .*a random table.*iso_score ",
}
_LARGEST_BYTES = 300_000
_OF_A_MACHINE = re.compile(r"(?<![\w.])(/(home|root|tmp|usr|opt|var|work|content|private|Users)/|[A-Z]:\\)")


@pytest.mark.filterwarnings("default")  # Jupyter's own packages warn about themselves
@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_in_smoke_mode(name, tmp_path, tmp_path_factory, monkeypatch):
    settings = {
        "EMBER_SMOKE": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of the time is compiling
        # The notebooks run in an empty folder here, so the package and `lm` are not beside them.
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]),
        "XDG_CACHE_HOME": str(tmp_path_factory.getbasetemp() / "cache"),
    }
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the devices of the tests: a notebook makes its own
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found = re.search(PRINTED[name], _printed(notebook), re.DOTALL)
    assert found
    assert all(float(number) < 1e-5 for number in found.groups())


def test_all_begin_with_one_line_of_installation():
    first = {name: _installation(name) for name in NOTEBOOKS}
    assert set(PRINTED) == set(first)
    assert len(set(first.values())) == 1
    assert re.findall("pip.*", first["quickstart"]) == ['pip install --quiet "..[examples]"']


@pytest.mark.parametrize("in_a_checkout", [False, True])
def test_a_notebook_alone_installs_nothing(tmp_path, monkeypatch, in_a_checkout):
    """The name is free in the package index: whoever took it could run code in every notebook that is opened alone."""
    commands = []
    monkeypatch.setitem(sys.modules, "ember_optax.losses", None)  # as where it is not installed
    (tmp_path / "notebooks").mkdir()
    if in_a_checkout:
        (tmp_path / "ember_optax" / "losses").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    shell = SimpleNamespace(run_line_magic=lambda *command: commands.append(command))
    program = TransformerManager().transform_cell(_installation("quickstart"))
    with nullcontext() if in_a_checkout else pytest.raises(AssertionError, match="is not in the package index yet"):
        exec(program, {"get_ipython": lambda: shell})
    assert commands == ([("pip", 'install --quiet "..[examples]"')] if in_a_checkout else [])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_kept_can_be_shown(name):
    text, notebook = NOTEBOOKS[name].read_text(encoding="utf-8"), _read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert len(text) < _LARGEST_BYTES
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not run from top to bottom"
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or "Traceback" in output.get("text", "")]
    plain = [output.data.get("text/plain", "") for output in outputs if "data" in output]
    assert not _OF_A_MACHINE.search("\n".join([*(cell.source for cell in notebook.cells), _printed(notebook), *plain]))
    assert not re.search(r"\r|\x1b\[", _printed(notebook)), "progress bars keep their last line only"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_ready_for_colab(name):
    notebook = _read(name)
    assert notebook.metadata["accelerator"] == "TPU"
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert any('SMOKE = os.environ.get("EMBER_SMOKE") == "1"' in cell.source for cell in notebook.cells)
    assert any("from tqdm import tqdm" in cell.source or "from lm.training import" in cell.source for cell in notebook.cells)


def _installation(name):
    return next(cell.source for cell in _read(name).cells if cell.cell_type == "code")


def _read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def _printed(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
