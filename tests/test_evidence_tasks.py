"""What fine-tuning and reinforcement learning begin with and are judged by, pinned in the repository."""

import argparse
import hashlib
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks.evidence import finetuning, reinforcement, reinforcement_base
from benchmarks.evidence.training import kinds, tree_hash
from examples.lm import finetuning as lessons
from examples.lm.arithmetic import LENGTH, draw_problems, encode, solutions, worked_rewards
from examples.lm.config import ModelConfig, TrainingConfig
from examples.lm.training import init_params


def test_the_manual_is_the_pinned_one():
    training, held_out = finetuning.manual()
    assert (len(training), len(held_out)) == (19, 5)
    documents = list(training)
    for place, text in enumerate(held_out):
        documents.insert(5 * place, text)
    digest = hashlib.sha256("\f".join(documents).encode()).hexdigest()
    folder = finetuning._MANUAL.parent
    assert digest in (folder / "README.md").read_text()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in (folder / "LICENSE-PYTHON.txt").read_text()
    assert sum(path.stat().st_size for path in folder.glob("*.xz")) < 500_000
    assert max(path.stat().st_size for path in folder.iterdir()) < 500_000


def test_fine_tuning_needs_nothing_that_is_installed(monkeypatch, tmp_path):
    """The lesson of the pinned text does not ask for the packages' descriptions, and is made of the pinned text."""

    def unwanted():
        raise AssertionError("the installed packages were read")

    model = ModelConfig(512, 8, 1, 1, tied=False)
    monkeypatch.setattr(lessons, "read_descriptions", unwanted)
    monkeypatch.setattr(lessons, "read_documents", lambda _: [Path(argparse.__file__).read_text()[:30_000]])
    monkeypatch.setattr(lessons, "train", lambda *_, **__: SimpleNamespace(parameters=None))
    config = TrainingConfig(1, 8, 16, 0, 1)
    parts = (["One part. " * 40], ["Another part. " * 40])
    lesson = lessons.description_lesson(model, config, None, tmp_path, parts)
    tokenizer = lessons.load_tokenizer(lessons.read_documents(None), 512, tmp_path)
    assert "One part." in tokenizer.decode(lesson.training.tokens[0])
    assert "Another part." in tokenizer.decode(lesson.held_out.tokens[0])
    with pytest.raises(AssertionError, match="packages were read"):
        lessons.description_lesson(model, config, None, tmp_path)


@pytest.mark.parametrize("name", sorted(finetuning.SETTINGS))
def test_which_settings_are_pinned(monkeypatch, name):
    given = []
    monkeypatch.setattr(finetuning, "description_lesson", lambda *arguments: given.append(arguments[-1]))
    setting = finetuning.SETTINGS[name]
    if setting.pretraining_steps is None:
        assert not setting.pinned
    else:
        finetuning._lesson.__wrapped__(setting)
        assert given == [finetuning.manual() if name != "small" else None]


def test_the_base_of_reinforcement_learning_is_the_committed_file():
    params = reinforcement_base.read()
    shapes = jax.eval_shape(lambda: init_params(reinforcement_base.model(), 0))
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(lambda p: (p.shape, p.dtype), shapes)
    assert tree_hash(params) == "099921d81122108c"
    assert tree_hash(jax.tree.map(lambda p: p + 1e-6, params)) != tree_hash(params)
    assert reinforcement_base._FILE.stat().st_size < 500_000


@pytest.mark.slow  # compiles a step
def test_the_base_can_be_made_again(tmp_path, monkeypatch):
    reinforcement_base.make(tmp_path / "base.npz", steps=2)
    monkeypatch.setattr(reinforcement_base, "_FILE", tmp_path / "base.npz")
    assert jax.tree.structure(reinforcement_base.read()) == jax.tree.structure(
        jax.eval_shape(lambda: init_params(reinforcement_base.model(), 0))
    )


@pytest.mark.parametrize(
    ("answer", "reward"),
    [(":16,22.", 1), ("22.", 0), (":22.", 0), (":16,22", 0), (":16,23.", 0), (":15,22.", 0), (":16,22,22.", 0), (":,.", 0)],
)
def test_a_reward_asks_for_every_partial_sum(answer, reward):
    problems = draw_problems(1, (3,), (0,))._replace(answers=np.array([22]))

    def row(text):
        ids = encode(text)
        return np.array([[*ids, *[0] * (LENGTH - len(ids))]])

    problems = problems._replace(tokens=row("7+9+6="), lengths=np.array([6]))
    assert worked_rewards(problems, row("7+9+6=" + answer)).tolist() == [reward]
    worked = worked_rewards(draw_problems(64, (2, 3, 4), (1,)), solutions(draw_problems(64, (2, 3, 4), (1,)), (2,)))
    assert 0.3 < worked.mean() < 0.7


@pytest.mark.slow  # compiles a policy
def test_a_run_of_reinforcement_learning(monkeypatch):
    """Tables alone: the body is what it was; the reward is the strict one; text and base are in the line."""
    learnt = []
    of_step = reinforcement.reinforce

    def watched(policy, carry, step, config):
        for state, reward in of_step(policy, carry, step, config):
            learnt.append(state[0])
            yield state, reward

    monkeypatch.setattr(reinforcement, "reinforce", watched)
    setting = reinforcement.SETTINGS["tables alone, 64 completions"]._replace(steps=3, prompts=1)
    loss, details = reinforcement.prepare(setting, "ember")(1e-2, 1, 2e-2)
    base = reinforcement_base.read()
    for before, after, kind in zip(*map(jax.tree.leaves, (base, learnt[-1], kinds(base))), strict=True):
        assert bool((before == after).all()) == (kind == "body")
    assert details["base"] == tree_hash(base)
    assert details["reward"] == "right and worked out"
    assert 0.5 < details["loss_before"] < 0.58
    assert loss != details["loss_before"]
    reinforcement._policy.cache_clear()
