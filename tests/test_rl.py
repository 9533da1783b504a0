"""Learning sums from rewards: the policy gradient, and the program at a tiny size."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rl as program
from lm import reinforcement
from lm.arithmetic import END, LENGTH, PAD, VOCABULARY_SIZE, decode, draw_problems, encode, rewards, solutions
from lm.grpo import Batch, complete, completion_mask, policy_loss, token_log_probs
from programs import call

TINY = ["--width=8", "--layers=1", "--warm-up-steps=4", "--warm-up-batch-size=4"]
TINY += ["--steps=3", "--prompts=2", "--group=2", "--updates=2", "--evaluate-every=2"]


def table_logits(params, ids):
    """A model that looks at the last token alone."""
    return params[ids]


def test_rewards_are_for_right_answers_only():
    problems = draw_problems(4, (3,), (0,))
    right = solutions(problems, (0,))
    assert rewards(problems, right).tolist() == [1, 1, 1, 1]
    _, answer = decode(right[0]).split("=")
    (last,) = encode(answer.replace(":", "").rstrip(".").split(",")[-1])
    wrong = np.where(right == last, last + 1, right)
    assert rewards(problems, wrong)[0] == 0
    unfinished = np.where(right == END, PAD, right)
    assert rewards(problems, unfinished).tolist() == [0, 0, 0, 0]


def test_completions_keep_the_prompt_and_stop_at_the_end():
    problems = draw_problems(3, (2, 3, 4), (0,))
    always = jnp.zeros((VOCABULARY_SIZE, VOCABULARY_SIZE)).at[:, 7].set(50.0).at[7].set(0.0).at[7, END].set(50.0)
    tokens = np.asarray(complete(table_logits, always, problems.tokens, problems.lengths, jax.random.key(0)))
    for row, prompt, length in zip(tokens, problems.tokens, problems.lengths, strict=True):
        assert row[:length].tolist() == prompt[:length].tolist()
        assert row[length:].tolist() == [7, END, *[PAD] * (LENGTH - length - 2)]
    mask = np.asarray(completion_mask(tokens, problems.lengths))
    assert mask.sum(1).tolist() == [2, 2, 2]
    assert mask[np.arange(3), problems.lengths].tolist() == [1, 1, 1]


def batch_of(params, reference, advantage, shift=0.0):
    tokens = jnp.array([[1, 2, 3, 4, 0]])
    old = token_log_probs(table_logits, params, tokens) + shift
    return Batch(
        tokens, jnp.array([[0, 0, 1, 1, 0]]), jnp.array([advantage]), old, token_log_probs(table_logits, reference, tokens)
    )


def test_the_policy_gradient():
    """On policy it is that of the completion's mean log-probability times the advantage; beyond the clip there is none."""
    params = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)))
    batch = batch_of(params, params, 2.0)
    expected = jax.grad(lambda p: -2.0 * jnp.mean(token_log_probs(table_logits, p, batch.tokens)[0, 1:3]))(params)
    found = jax.grad(lambda p: policy_loss(table_logits, p, batch, 0.2, 0.0))(params)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for advantage, shift, moves in ((1.0, -0.3, False), (1.0, 0.3, True), (-1.0, -0.3, True), (-1.0, 0.3, False)):
        off = batch_of(params, params, advantage, shift)
        gradient = jax.grad(lambda p, off=off: policy_loss(table_logits, p, off, 0.2, 0.0))(params)
        assert bool(jnp.any(gradient != 0)) == moves


def test_the_penalty_pulls_to_the_reference():
    generator = np.random.default_rng(0)
    params, reference = (jnp.asarray(generator.normal(size=(5, 5))) for _ in range(2))
    batch = batch_of(params, reference, 0.0)
    difference = (batch.reference_log_probs - batch.old_log_probs)[0, 1:3]
    expected = jnp.mean(jnp.exp(difference) - difference - 1)
    assert float(policy_loss(table_logits, params, batch, 0.2, 1.0)) == pytest.approx(float(expected), rel=1e-5)
    assert float(policy_loss(table_logits, params, batch, 0.2, 0.0)) == 0.0


@pytest.mark.slow  # the whole program
def test_learns_and_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reinforcement, "HELD_OUT", draw_problems(16, (2,), (9,)))
    done = call(program.main, capsys, *TINY, "--output-dir", str(tmp_path), "--optimizers=ember")
    assert done.returncode == 0, done.stderr
    assert "| ember" in done.stdout
    assert (tmp_path / "rl" / "rewards.png").stat().st_size > 10_000
    results = json.loads((tmp_path / "rl" / "results.json").read_text())
    runs = results["runs"]
    assert runs["ember"]["table_state_bytes"] == 2 * (4 * (1024 + 8) + 8) + 4
    assert len(runs["ember"]["rewards"]) == 3
    assert list(runs["ember"]["held_out"]) == ["0", "2", "3"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--group", "1"], "--group 1: a completion is compared with the others"),
        (["--steps", "0"], "0 is not a positive whole number"),
        (["--width", "6"], "--width 6 must be a multiple of 2 * --heads (4)"),
        (["--kl-weight", "-1"], "-1 is not a finite, non-negative number"),
        (["--output-dir", "{file}"], "file"),
    ],
)
def test_explains_mistakes(tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    done = partial(call, program.main, capsys)(*(a.format(file=tmp_path / "file") for a in arguments))
    assert done.returncode == 2
    assert message in done.stderr
