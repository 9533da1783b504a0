"""Each rival of the evidence against its own definition, written once more with numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.evidence.methods import make_method
from benchmarks.evidence.training import kinds, partitioned

V, D, STEPS = 12, 4, 4


def gradients(seed=0):
    """Gradients of a table, (STEPS, V, D), with rows of very different sizes, and some without a gradient in some steps."""
    generator = np.random.default_rng(seed)
    g = generator.normal(size=(STEPS, V, D)) * np.exp(generator.normal(size=(1, V, 1)))
    g[:, 3] = 0
    g[1:, 5] = 0
    return g


STORED = {"input": ("embed/embedding", False), "head": ("lm_head/weight", False), "head, transposed": ("lm_head/kernel", True)}


def directions(name, g, stored):
    """What the method of a name makes of these gradients at the last step, tokens first."""
    path, transposed = STORED[stored]
    outer, inner = path.split("/")
    params = {outer: {inner: jnp.full((D, V) if transposed else (V, D), 0.5)}}
    tx = make_method(name, tokens_per_step=512)
    state, update = tx.init(params), None
    for step in g:
        leaf = jnp.asarray(step.T if transposed else step, jnp.float32)
        updates, state = tx.update({outer: {inner: leaf}}, state, params)
        update = np.asarray(updates[outer][inner], np.float64)
    return update.T if transposed else update


def rows(x):
    """Rows with a root mean square of one."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0) * np.sqrt(x.shape[1])


def momentum(g, b1):
    m = np.zeros_like(g[0])
    for step in g:
        m = b1 * m + (1 - b1) * step
    return m


def row_norm(g, kind):
    return rows(g[-1])


def rmnp(g, kind):
    return rows(momentum(g, 0.95))


def scale(g, kind):
    return rows(momentum(g, 0.9)) if kind == "head" else rows(g[-1].T).T


def hybrid(g, kind):
    def centred(x):
        return x - x.mean(0) if kind == "head" else x

    r = centred(rows(centred(momentum(g, 0.95))) / np.sqrt(D))
    left, values, right = np.linalg.svd(r, full_matrices=False)
    return centred(left @ right) * values.sum() / np.sqrt(D)


def row_wise_rmsprop(g, kind, b2=0.999):
    nu = np.zeros((V, 1))
    for step in g:
        nu = b2 * nu + (1 - b2) * np.mean(step**2, axis=1, keepdims=True)
    return g[-1] / (np.sqrt(nu / (1 - b2 ** len(g))) + 1e-8)


def factored(g):
    row, column = np.zeros((V, 1)), np.zeros((1, D))
    for count, step in enumerate(g):
        decay = 1 - (count + 1.0) ** -0.8
        square = step**2 + 1e-30
        row = decay * row + (1 - decay) * square.mean(1, keepdims=True)
        column = decay * column + (1 - decay) * square.mean(0, keepdims=True)
    return g[-1] / np.sqrt(row / row.mean() * column)


def adafactor(g, kind):
    u = factored(g)
    return u / max(1.0, np.sqrt(np.mean(u**2))) * 0.5


def adam(b1, decay):
    def oracle(g, kind, b2=0.999):
        m, nu = momentum(g, b1), np.zeros_like(g[0])
        for step in g:
            nu = b2 * nu + (1 - b2) * step**2
        n = len(g)
        return m / (1 - b1**n) / (np.sqrt(nu / (1 - b2**n)) + 1e-8) + decay * 0.5

    return oracle


ORACLES = {
    "row_norm": row_norm,
    "rmnp": rmnp,
    "scale": scale,
    "hybrid": hybrid,
    "token_factor": row_wise_rmsprop,
    "adafactor": adafactor,
    "factored_rms": lambda g, kind: factored(g),
    "adamw": adam(0.9, 1e-4),
    "adamw b1=0.5": adam(0.5, 1e-4),
    "rmsprop": adam(0.0, 0.0),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", sorted(ORACLES))
def test_against_the_definition(name, stored):
    g = gradients()
    np.testing.assert_allclose(directions(name, g, stored), ORACLES[name](g, stored.split(",")[0]), rtol=2e-4, atol=2e-5)


def test_a_deficient_momentum_has_a_direction():
    """A batch of few tokens has fewer rows than features; all-zero tables stay where they are."""
    g = np.zeros((1, V, D))
    g[0, 2] = [1.0, 2.0, 0.0, 0.0]
    u = directions("hybrid", g, "input")
    np.testing.assert_allclose(u[2], np.array([1.0, 2.0, 0, 0]) / np.sqrt(5) / np.sqrt(D), rtol=1e-5)
    assert not np.delete(u, 2, axis=0).any()
    assert not directions("hybrid", np.zeros((2, V, D)), "head").any()


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("row_norm", 0),
        ("rmnp", 2 * V * D),
        ("hybrid", 2 * V * D),
        ("scale", V * D),
        ("token_factor", 2 * V),
        ("adamw", 4 * V * D),
    ],
)
def test_numbers_of_state(name, numbers):
    """Of an input table and a head together, without counters."""
    params = {"embed": {"embedding": jnp.ones((V, D))}, "lm_head": {"kernel": jnp.ones((D, V))}}
    state = make_method(name, 512).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == numbers


def test_two_rates_reach_their_tables():
    """One step from zero state: each table moves by its own rate, whatever its method, and the body by its own."""
    params = {
        "embed": {"embedding": jnp.ones((V, D))},
        "lm_head": {"kernel": jnp.ones((D, V))},
        "dense": {"kernel": jnp.ones((D, D))},
    }
    assert jax.tree.leaves(kinds(params)) == ["body", "input", "head"]

    def second(rate, head_rate):
        tx = partitioned(make_method("ember", 512), rate, 1e-3, 20, head_rate)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
        return [float(leaf.ravel()[0]) for leaf in jax.tree.leaves(updates)]

    # The warm-up takes two steps, so the second is made at half of the peak.
    np.testing.assert_allclose(second(0.25, 0.5)[1:], [-0.125, -0.25], rtol=1e-5)
    assert second(0.25, None) == second(0.25, 0.25)
    assert second(0.25, 0.5)[0] == second(0.5, 0.25)[0]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("variant", "known"),
    [("ember_power power=1", "ember"), ("ember_power power=0", "token_factor"), ("ember_classes classes=1", "ember")],
)
def test_variants_of_ember_contain_known_methods(variant, known, stored):
    np.testing.assert_allclose(
        directions(variant, gradients(), stored), directions(known, gradients(), stored), rtol=1e-3, atol=1e-6
    )


def test_an_average_by_occurrence_is_embers_where_all_tokens_occur():
    g = gradients()[:, [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]]
    found = [directions(name, np.concatenate([g, g[:, :2]], 1), "input") for name in ("ember_by_occurrence", "ember")]
    np.testing.assert_allclose(*found, rtol=1e-3)


def test_a_profile_of_equal_rows_does_not_see_how_large_a_row_is():
    """Each row with its own size and one common profile: the estimate is exact, whatever the sizes."""
    profile = np.array([0.5, 1.0, 2.0, 1.0])
    g = np.sqrt(profile) * np.exp(np.linspace(-3, 3, V))[None, :, None] * np.ones((STEPS, V, D))
    expected = np.ones((V, D))  # all steps are alike, so every element is divided by itself
    np.testing.assert_allclose(directions("ember_equal_rows", g, "input"), expected, rtol=1e-3)
