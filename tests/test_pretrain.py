"""The main job on real text with real files, as a function and, where it matters, in a process of its own."""

import json
import re
import shutil
import sys
from functools import partial

import jax
import matplotlib.pyplot as plt
import pretrain as program
import pytest
from lm.regularizing import KINDS
from lm.report import save_curves
from programs import call, compiled_once, start

import ember_optax

TINY = ["--vocabulary-size=512", "--width=16", "--heads=2", "--layers=1"]
TINY += ["--sequence-length=32", "--batch-size=4", "--validate-every=10"]


@pytest.fixture(autouse=True, scope="module")
def _compiled_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The corpus with its tokens, for all tests but the one of the cache."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folders(cache, tmp_path):
    return ["--cache-dir", str(cache), "--output-dir", str(tmp_path)]


@pytest.fixture
def pretrain(folders, capsys):
    return partial(call, program.main, capsys, *folders)


@pytest.fixture
def pretrain_in_a_process(folders):
    return partial(start, "pretrain.py", *folders)


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compares_the_optimizers(pretrain, tmp_path, text, tied):
    arguments = [*TINY, "--data", str(text), "--steps", "30", "--name", "run", *(["--tied"] if tied else [])]
    arguments += ["--cache-dir", str(tmp_path / "cache")]
    done = pretrain(*arguments)
    assert done.returncode == 0, done.stderr
    assert "left out 1 of" in done.stdout
    assert "| adamw" in done.stdout
    assert "| ember" in done.stdout
    assert "30/30" not in done.stderr, "a progress bar without a terminal"
    assert re.search(r"\| optimizer +\| +validation loss \| +time of a step \(ms\) \|", done.stdout)
    assert re.search(r"\| ember +\| +\d\.\d{4} \| +[\d,]+\.\d \|", done.stdout)
    assert (tmp_path / "run" / "loss.png").stat().st_size > 10_000
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["versions"]["jax"] == jax.__version__ and results["versions"]["ember_optax"] == ember_optax.__version__
    runs, tables = results["runs"], 1 if tied else 2
    assert runs["adamw"]["table_state_bytes"] == tables * 2 * 4 * 512 * 16 + 8  # and two step counters
    assert runs["ember"]["table_state_bytes"] == tables * (4 * (512 + 16) + 8) + 4  # and the schedule's step
    body = runs["adamw"]["state_bytes"] - runs["adamw"]["table_state_bytes"]
    assert runs["ember"]["state_bytes"] - runs["ember"]["table_state_bytes"] == body
    for run in runs.values():
        assert len(run["training_losses"]) == 30
        assert run["training_losses"][-1] < run["training_losses"][0] - 0.1
    assert runs["adamw"]["training_losses"][0] == runs["ember"]["training_losses"][0]
    assert "training a BPE tokenizer" in done.stdout
    again = pretrain(*arguments, "--optimizers", "ember")
    assert again.returncode == 0, again.stderr
    assert "training a BPE tokenizer" not in again.stdout
    (cache,) = (tmp_path / "cache").glob("*.npz")
    cache.write_bytes(cache.read_bytes()[:1000])
    damaged = pretrain(*arguments, "--optimizers", "ember")
    assert damaged.returncode == 0, damaged.stderr
    assert "the cache is not used, and made anew" in damaged.stdout


def test_shows_its_progress_on_a_terminal(pretrain, text, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    done = pretrain(*TINY, "--data", str(text), "--steps", "4", "--optimizers", "ember")
    assert re.search(r"4/4 .*loss=\d\.\d+, validation=\d\.\d+, tokens/s=", done.stderr)


def test_the_legend_names_what_is_drawn(tmp_path, monkeypatch):
    """A run that was never validated has no dots."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    curves, dots = {"a": [2.0, 1.0], "b": [2.0, 1.5]}, {"a": ([2], [1.1]), "b": ([], [])}
    save_curves(tmp_path / "loss.png", curves, dots, "title", "loss", "validation")
    shown = [text.get_text() for text in plt.gca().get_legend().get_texts()]
    monkeypatch.undo()
    plt.close("all")
    assert shown == ["a, training", "a, validation", "b, training"]


def regularized(*names):
    return [f"--regularizer={name}" for name in names]


@pytest.mark.slow
def test_trains_with_every_regularizer(pretrain, tmp_path, text):
    """All at once, one of them twice; settings say which."""
    chosen = [*KINDS, "anisotropy=-0.1"]
    done = pretrain(*TINY, "--data", str(text), "--steps", "12", "--optimizers", "ember", *regularized(*chosen))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "pretrain" / "results.json").read_text())
    losses = results["runs"]["ember"]["training_losses"]
    assert losses[-1] < losses[0] - 0.1
    assert results["settings"]["regularizer"][0] == "anisotropy=0.3"
    assert results["settings"]["regularizer"][4] == "center"
    assert results["settings"]["regularizer"][-1] == "anisotropy=-0.1"


@pytest.mark.slow  # two more programs
def test_regularizers_of_row_sparse_steps(pretrain, text):
    chosen = regularized("weighted-rows", "weighted-loss", "cap=1")
    done = pretrain(*TINY, "--data", str(text), "--steps", "5", "--optimizers", "ember", "--row-sparse", *chosen)
    assert done.returncode == 0, done.stderr
    difference = float(re.search(r"training losses differ by at most (\S+),", done.stdout)[1])
    assert difference < 1e-5


@pytest.mark.slow
def test_compares_a_fused_head_with_the_dense_one(pretrain, tmp_path, text):
    """Of a tied table in bfloat16, rounded stochastically."""
    arguments = [*TINY, "--data", str(text), "--steps", "10", "--optimizers", "ember", "--tied", "--fused-head"]
    done = pretrain(*arguments, "--table-dtype", "bfloat16", "--name", "run")
    assert done.returncode == 0, done.stderr
    (differences,) = re.findall(r"fused head against dense Ember: training losses differ by at most (\S+), the last", done.stdout)
    assert float(differences) < 5e-3
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["settings"]["table_dtype"] == "bfloat16" and list(results["runs"]) == ["ember", "ember, fused head"]


@pytest.mark.slow
def test_a_fused_head_on_a_mesh(pretrain, tmp_path, text):
    """Split by tokens and by features; its losses are those of one device."""
    arguments = [*TINY, "--data", str(text), "--steps", "10", "--optimizers", "ember", "--tied", "--fused-head"]
    for mesh in ([], ["--mesh", "data=2,fsdp=2,tp=2"]):
        done = pretrain(*arguments, "--name", "mesh" if mesh else "one", *mesh)
        assert done.returncode == 0, done.stderr
    one, mesh = (json.loads((tmp_path / name / "results.json").read_text())["runs"] for name in ("one", "mesh"))
    for name in one:
        assert mesh[name]["training_losses"] == pytest.approx(one[name]["training_losses"], abs=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--fused-head", "--regularizer", "cap"], "--fused-head takes no --regularizer: its gradient and update are no arrays"),
        (
            ["--table-dtype", "bfloat16", "--regularizer", "cap"],
            "--regularizer cap=3 changes updates after the stochastic rounding",
        ),
        (["--fused-head", "--vocabulary-size", "500"], "--fused-head needs a vocabulary without rows of padding"),
        (["--data", "nowhere.txt"], "--data nowhere.txt: no such file or folder"),
        (["--data", "{text}/picture.bin"], "none of its 1 files is UTF-8 text"),
        (["--data", "{text}", "--vocabulary-size", "60000"], "this text makes a vocabulary of"),
        (["--data", "{text}", "--sequence-length", "1000000"], "too few for --sequence-length 1000000: use at most"),
        (["--heads", "3"], "--width 16 must be a multiple of 2 * --heads (6)"),
        (["--data", "{text}", "--vocabulary-size", "100"], "a byte-level vocabulary has at least 257 tokens"),
        (["--steps", "0"], "0 is not a positive whole number"),
        (["--steps", "abc"], "abc is not a positive whole number"),
        (["--seed", "-1"], "-1 is not a whole number from 0"),
        (["--output-dir", "{text}/picture.bin"], "picture.bin"),
        (["--cache-dir", "{text}/picture.bin"], "picture.bin"),
        (["--checkpoint-dir", "{text}/picture.bin"], "picture.bin"),
        (["--learning-rate", "nan"], "nan is not a finite, non-negative number"),
        (["--mesh", "data=2,rows=2"], "data=2,rows=2 is not a list like data=2,fsdp=4 with axes of data, fsdp, tp"),
        (["--mesh", "fsdp=0"], "fsdp=0 is not a list"),
        (["--mesh", "fsdp=16"], "--mesh fsdp=16 needs 16 devices, there are 8; --cpu-devices 16 simulates them"),
        (["--mesh", "data=8"], "--batch-size 4 does not divide by the 8 parts of --mesh data=8"),
        (["--data", "{text}", "--mesh", "tp=3"], "--mesh tp=3: block_0/attention_out/kernel of shape (16, 16)"),
        (["--regularizer", "isotropy"], "'isotropy' is no regularizer: anisotropy, spectral, alignment, spectral-norm, center"),
        (["--regularizer", "anisotropy=much"], "'much' is no finite number: write for example anisotropy=0.3"),
        (["--regularizer", "center=2"], "center takes no coefficient: write center"),
        (["--regularizer", "cap=0"], "cap=0 is no bound: write one above zero, for example cap=3"),
        (["--regularizer", "center", "--tied"], "--regularizer center needs a head of its own"),
        (
            ["--regularizer", "alignment", "--row-sparse"],
            "--regularizer alignment needs every row of a table: leave out --row-sparse",
        ),
        (["--resume"], "--resume needs --checkpoint-dir"),
        (["--stop-after", "3"], "--stop-after needs --checkpoint-dir"),
        (["--coordinator", "localhost:1234"], "--coordinator, --num-processes and --process-id belong together"),
        (["--heartbeat-timeout", "10"], "--heartbeat-timeout needs several processes"),
        (["--coordinator=localhost:1", "--num-processes=2", "--process-id=2"], "--process-id 2 must be below --num-processes 2"),
    ],
)
def test_explains_mistakes(pretrain, text, arguments, message):
    done = pretrain(*TINY, *(a.format(text=text) for a in arguments))
    assert done.returncode == 2
    assert message in done.stderr


def test_explains_that_there_is_no_cluster(pretrain_in_a_process):
    """In a process of its own: JAX looks for others before anything else is done with it."""
    done = pretrain_in_a_process(*TINY, "--distributed")
    assert done.returncode == 2
    assert "--distributed: JAX found no cluster here" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_explains_every_option(pretrain):
    done = pretrain("--help")
    assert done.returncode == 0
    options = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    assert len(options) >= 28


@pytest.mark.slow
def test_goes_on_from_a_checkpoint(pretrain, pretrain_in_a_process, tmp_path, text):
    """The same results as without a stop: to the last bit in a new process, up to rounding on a mesh.

    What cannot be continued is refused.
    """
    arguments = [*TINY, "--data", str(text), "--steps", "12", "--optimizers", "ember"]
    folder = tmp_path / "checkpoints"
    kept = [*arguments, "--checkpoint-dir", str(folder), "--checkpoint-every", "4"]
    whole = pretrain(*arguments, "--name", "whole")
    stopped = pretrain(*kept, "--name", "parts", "--stop-after", "6")
    assert (whole.returncode, stopped.returncode) == (0, 0), whole.stderr + stopped.stderr
    assert "stopped after step 6" in stopped.stdout
    assert not (tmp_path / "parts" / "results.json").exists()
    assert sorted(path.name for path in (folder / "ember").iterdir()) == ["4", "6"]

    refused = {
        "holds checkpoints already; go on with --resume or name another folder": [],
        "was made with vocabulary_size = 512, this run has 520": ["--resume", "--vocabulary-size", "520"],
        "was made with seed = 0, this run has 1": ["--resume", "--seed", "1"],
    }
    for message, options in refused.items():
        done = pretrain(*kept, *options)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr

    shutil.copytree(folder, tmp_path / "copy")
    on_a_mesh = ["--checkpoint-dir", str(tmp_path / "copy"), "--resume", "--mesh", "data=2,fsdp=2,tp=2", "--name", "elsewhere"]
    elsewhere = pretrain(*kept, *on_a_mesh)
    assert elsewhere.returncode == 0, elsewhere.stderr
    goes_on = pretrain_in_a_process(*kept, "--name", "parts", "--resume", devices_of_tests=True)
    assert goes_on.returncode == 0, goes_on.stderr
    assert "ember: going on from step 6" in goes_on.stdout
    runs = [
        json.loads((tmp_path / name / "results.json").read_text())["runs"]["ember"] for name in ("whole", "parts", "elsewhere")
    ]
    assert runs[0]["training_losses"] == runs[1]["training_losses"]
    assert runs[0]["validation"] == runs[1]["validation"]
    assert runs[0]["training_losses"] == pytest.approx(runs[2]["training_losses"], rel=1e-5)
    assert runs[0]["training_losses"] != runs[2]["training_losses"]  # other programs round differently


@pytest.mark.slow  # compiles every metric for both optimizers
def test_geometry_is_measured_and_changes_nothing(pretrain, tmp_path, text):
    """Losses to the last bit, with a report every so many steps, of the state that every report is named after."""
    arguments = [*TINY, "--data", str(text), "--steps", "9"]
    without = pretrain(*arguments, "--name", "without")
    done = pretrain(*arguments, "--name", "with", "--geometry", "--geometry-every", "4")
    assert (without.returncode, done.returncode) == (0, 0), without.stderr + done.stderr
    runs = [json.loads((tmp_path / name / "results.json").read_text())["runs"] for name in ("without", "with")]
    for optimizer in ("adamw", "ember"):
        assert runs[0][optimizer]["training_losses"] == runs[1][optimizer]["training_losses"]
        assert runs[0][optimizer]["validation"] == runs[1][optimizer]["validation"]
        reports = runs[1][optimizer]["geometry"]
        assert [report["step"] for report in reports] == [4, 8, 9]
        assert [report["geometry/embed/embedding/steps"] for report in reports] == [4, 8, 9]
        assert reports[-1]["geometry/lm_head/kernel/cold_row_ratio"] >= 1
    assert "geometry" not in runs[0]["ember"]
    assert re.search(r"adamw: \d+\.\d s for its geometry", done.stdout)
    assert 20_000 < (tmp_path / "with" / "geometry.png").stat().st_size < 300_000


@pytest.mark.slow  # two models of a size at which XLA needs the activations split by batch
def test_a_mesh_changes_nothing(pretrain, tmp_path, text):
    """Batch, vocabulary and features split over eight devices. At this size XLA needs the model's `split_batch` to be right."""
    arguments = [
        *TINY,
        "--vocabulary-size=1536",
        "--width=128",
        "--heads=4",
        "--batch-size=8",
        "--data",
        str(text),
        "--steps",
        "6",
    ]
    meshes = {"one": [], "eight": ["--mesh", "data=2,fsdp=2,tp=2"]}
    runs = []
    for name, options in meshes.items():
        done = pretrain(*arguments, "--name", name, *options)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads((tmp_path / name / "results.json").read_text())["runs"])
    for optimizer in ("adamw", "ember"):
        one, eight = (run[optimizer]["training_losses"] for run in runs)
        assert one == pytest.approx(eight, rel=1e-5)


def test_damaged_checkpoint(pretrain, tmp_path, text):
    """Every array file is replaced by that of another step: it decodes well, and is not what was saved."""
    kept = [*TINY, "--data", str(text), "--steps", "12", "--optimizers", "ember", "--checkpoint-every", "4"]
    kept += ["--checkpoint-dir", str(tmp_path / "checkpoints")]
    assert pretrain(*kept).returncode == 0
    earlier, newest = (tmp_path / "checkpoints" / "ember" / step for step in ("8", "12"))
    shutil.rmtree(newest / "state")
    shutil.copytree(earlier / "state", newest / "state")
    damaged = pretrain(*kept, "--resume")
    assert damaged.returncode == 2
    assert "checkpoint 12 in" in damaged.stderr
    assert "is damaged" in damaged.stderr
    (newest / "progress" / "metadata").write_text("")
    cut_off = pretrain(*kept, "--resume")
    assert cut_off.returncode == 2
    assert f"is damaged: Expecting value: line 1 column 1 (char 0); remove the folder {newest}" in cut_off.stderr
    shutil.rmtree(newest)
    cured = pretrain(*kept, "--resume")
    assert cured.returncode == 0, cured.stderr
    assert "going on from step 8" in cured.stdout


@pytest.mark.slow
def test_row_sparse_steps_train_the_same_model(pretrain, pretrain_in_a_process, tmp_path, text):
    """The program, started as a user does, compares both runs and says so; on two devices, so that the sharded step is used."""
    arguments = [*TINY, "--data", str(text), "--steps", "12", "--optimizers", "ember", "--row-sparse", "--name", "run"]
    done = pretrain_in_a_process(*arguments, "--cpu-devices", "2", "--mesh", "data=2")
    assert done.returncode == 0, done.stderr
    assert "row-sparse against dense Ember: training losses differ by at most" in done.stdout
    runs = json.loads((tmp_path / "run" / "results.json").read_text())["runs"]
    assert list(runs) == ["ember", "ember, row-sparse"]
    losses = [run["training_losses"] for run in runs.values()]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-4
    tied = pretrain(*TINY, "--tied", "--row-sparse")
    assert tied.returncode == 2
    assert "--row-sparse needs an input table of its own" in tied.stderr
