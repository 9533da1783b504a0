"""The example with a row-sparse head: its loss estimates the full one, its step has no table-sized gradient."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sampled_softmax as program
from lm.sampled_softmax import draw_negatives, sampled_softmax_loss, smoothed_unigram
from programs import call

from ember_optax import row_sparse

V, D = 5, 3
RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.standard_normal((4, D), np.float32), RNG.standard_normal((V, D), np.float32)
LABELS = np.array([0, 3, 3, 4])
COUNTS = np.array([7, 1, 2, 4, 1])  # q is in proportion


def sampled_loss(hidden, head, negatives, log_expected_counts, labels=LABELS):
    return sampled_softmax_loss(hidden, head, labels, negatives, jnp.asarray(log_expected_counts, jnp.float32))


def full_loss(hidden, head):
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ head.T, LABELS)


@pytest.mark.slow
def test_the_estimated_partition_function_is_unbiased():
    """Its expectation over all pairs of negatives, by enumeration: no noise."""
    q = COUNTS / COUNTS.sum()

    def estimated(hidden, head):
        sums = []
        for pair in itertools.product(range(V), repeat=2):
            negatives = np.array(pair)
            own = jnp.sum(hidden * head[LABELS], 1)
            z = jnp.exp(sampled_loss(hidden, head, negatives, np.log(2 * q[negatives])) + own)
            sums.append(np.prod(q[negatives]) * z)
        return sum(sums)

    def exact(hidden, head):
        return jnp.sum(jnp.exp(hidden @ head.T), 1)

    np.testing.assert_allclose(estimated(HIDDEN, HEAD), exact(HIDDEN, HEAD), rtol=1e-5)
    of_estimate, of_exact = (jax.jacobian(f, argnums=(0, 1))(HIDDEN, HEAD) for f in (estimated, exact))
    for ours, theirs in zip(of_estimate, of_exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_token_as_often_as_expected_gives_the_full_softmax():
    """What many draws tend to: the loss and its gradients are the full softmax's, also where they are compact."""
    negatives = RNG.permutation(np.repeat(np.arange(V), COUNTS))
    params, ids = {"head": HEAD, "hidden": HIDDEN}, {"head": np.concatenate([LABELS, negatives])}

    def mean_loss(params):
        return sampled_loss(params["hidden"], params["head"], negatives, np.log(COUNTS[negatives])).mean()

    loss, grads = row_sparse.value_and_grad(mean_loss)(params, ids)
    expected, expected_grads = jax.value_and_grad(lambda p: full_loss(p["hidden"], p["head"]).mean())(params)
    assert grads["head"].ids.tolist() == list(range(V))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grads["hidden"], expected_grads["hidden"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads["head"].rows, expected_grads["head"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_many_drawn_negatives_give_the_full_softmax():
    proposal = smoothed_unigram(np.repeat(np.arange(V - 1), 100 * COUNTS[:-1]), V)  # the last token never occurs
    q = np.exp(proposal.log_probabilities)
    expected_q = np.array([701, 101, 201, 401, 1]) ** 0.75
    np.testing.assert_allclose(q, expected_q / expected_q.sum(), rtol=1e-12)
    errors = []
    for count in (100, 1_000_000):
        negatives, log_expected_counts = draw_negatives(proposal, count, (0, 1))
        np.testing.assert_allclose(np.exp(log_expected_counts), count * q[negatives], rtol=1e-5)
        sampled = jax.value_and_grad(lambda *args: sampled_loss(*args).mean(), (0, 1))
        found = sampled(HIDDEN, HEAD, negatives, log_expected_counts)
        full = jax.value_and_grad(lambda *args: full_loss(*args).mean(), (0, 1))(HIDDEN, HEAD)
        differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), found, full)
        errors.append(max(jax.tree.leaves(differences)))
    np.testing.assert_allclose(np.bincount(negatives, minlength=V) / count, q, atol=2e-3)
    assert errors[1] < 0.01 < errors[0]
    again, _ = draw_negatives(proposal, 50, (0, 1))
    np.testing.assert_array_equal(again, draw_negatives(proposal, 50, (0, 1))[0])
    assert not np.array_equal(again, draw_negatives(proposal, 50, (0, 2))[0])


def test_negatives_that_are_the_label_do_not_matter():
    """Whatever they are corrected with; for the other examples they are negatives like any other."""
    hit, other = np.array([3, 1, 3, 2]), np.array([1, 2])
    in_3 = LABELS == 3

    def loss_and_grads(negatives, log_expected_counts, labels, hidden):
        def total(hidden, head):
            losses = sampled_loss(hidden, head, negatives, log_expected_counts, labels)
            return losses.sum(), losses

        (_, losses), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, HEAD)
        return losses, *grads

    labels, hidden = LABELS[in_3], HIDDEN[in_3]
    without = loss_and_grads(other, np.zeros(2), labels, hidden)
    for of_hits in (0.0, -5.0, 5.0):
        for ours, theirs in zip(loss_and_grads(hit, [of_hits, 0, of_hits, 0], labels, hidden), without, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    with_hits, without_hits = (sampled_loss(HIDDEN, HEAD, n, np.zeros(len(n))) for n in (hit, other))
    np.testing.assert_allclose(with_hits[in_3], without_hits[in_3], rtol=1e-6)
    assert np.all(with_hits[~in_3] > without_hits[~in_3] + 1e-3)
    for nothing in loss_and_grads(np.array([3, 3]), np.zeros(2), labels, hidden):
        np.testing.assert_array_equal(nothing, np.zeros_like(nothing))


def test_the_compiled_step_has_no_gradient_of_a_tables_size():
    config = program.read_command_line(["--vocabulary-size", "1000000"])
    model, training = config.model, config.training
    tx = program.make_optimizer(training)
    params = jax.eval_shape(lambda: program.init_params(model, training.seed))
    state = params, jax.eval_shape(tx.init, params)
    tokens = jax.ShapeDtypeStruct((training.batch_size, model.window + 1), jnp.int32)
    negatives = jax.ShapeDtypeStruct((training.negatives,), jnp.int32)
    counts = jax.ShapeDtypeStruct((training.negatives,), jnp.float32)
    table_bytes = 4 * 1_000_000 * model.width

    def memory(name):
        compiled = jax.jit(program.make_step(name, tx), donate_argnums=0).lower(state, tokens, negatives, counts).compile()
        return compiled.memory_analysis()

    sampled, full = memory("sampled"), memory("full")
    assert sampled.alias_size_in_bytes >= 2 * table_bytes  # both tables are updated in place
    assert sampled.temp_size_in_bytes < 0.1 * table_bytes
    assert full.temp_size_in_bytes > table_bytes  # such a comparison sees a gradient


@pytest.mark.slow
def test_the_program_compares_the_two(capsys, tmp_path, text):
    tiny = ["--vocabulary-size=512", "--width=16", "--hidden=32", "--batch-size=64", "--negatives=64"]
    tiny += ["--steps=200", "--ember-learning-rate=0.03"]
    done = call(program.main, capsys, *tiny, "--data", str(text), "--cache-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # the bar is for terminals
    found = re.findall(r"\| (sampled|full) +\|(.*)\|(.*)\|", done.stdout)
    rows = {name: [float(cell) for cell in cells] for name, *cells in found}
    assert rows.keys() == {"sampled", "full"}
    for before, after in rows.values():
        assert before == rows["full"][0] == pytest.approx(np.log(512), abs=0.05)
        assert after < before - 0.5
    assert rows["sampled"][1] == pytest.approx(rows["full"][1], abs=0.3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere.txt"], "--data nowhere.txt: no such file or folder"),
        (["--negatives", "0"], "0 is not a positive whole number"),
        (["--seed", "-1"], "argument --seed: -1 is not a whole number from 0"),
    ],
)
def test_the_program_explains_mistakes(capsys, arguments, message):
    done = call(program.main, capsys, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
