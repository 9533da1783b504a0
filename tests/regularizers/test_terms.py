"""Loss terms against float64: values, gradients, layouts, dtypes, rows of zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regularizer_oracle as oracle

from ember_optax import EmberDimensionNumbers, geometry, regularizers, row_sparse

LAYOUTS = pytest.mark.parametrize("token_axis", [0, 1])
V, D = 12, 5
X = np.random.default_rng(0).normal(size=(V, D)) + 0.4
COUNTS = np.random.default_rng(1).permutation(V) - 1  # distinct, two without an occurrence
COUNTS = np.maximum(COUNTS, 0)
TABLE = jnp.asarray(X, jnp.float32)


def laid_out(table, token_axis):
    return table if token_axis == 0 else table.T


@LAYOUTS
@pytest.mark.parametrize("coefficient", [1.0, -0.3])
@pytest.mark.parametrize("weights", [None, COUNTS], ids=["alike", "by counts"])
def test_anisotropy_is_the_mean_cosine(token_axis, coefficient, weights):
    term = functools.partial(regularizers.anisotropy, coefficient=coefficient, token_axis=token_axis, weights=weights)
    value, gradient = jax.jit(jax.value_and_grad(term))(laid_out(TABLE, token_axis))
    np.testing.assert_allclose(value, coefficient * oracle.mean_cosine(X, weights), rtol=1e-5)
    expected = coefficient * oracle.anisotropy_gradient(X, weights)
    np.testing.assert_allclose(laid_out(gradient, token_axis), expected, rtol=1e-4, atol=1e-6)


def test_anisotropy_is_that_of_geometry():
    np.testing.assert_allclose(regularizers.anisotropy(TABLE), geometry.mean_cosine_similarity(TABLE), rtol=1e-6)


def test_anisotropy_of_rows_of_zeros():
    """They have no direction: no part in the value, and a gradient of zero, where JAX's own would be NaN."""
    with_zeros = jnp.concatenate([jnp.zeros((2, D)), TABLE, jnp.zeros((1, D))])
    value, gradient = jax.value_and_grad(regularizers.anisotropy)(with_zeros)
    expected, of_rest = jax.value_and_grad(regularizers.anisotropy)(TABLE)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[2:-1], of_rest, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[jnp.array([0, 1, -1])], 0)


def test_anisotropy_of_unit_rows():
    """A norm of one is none of zero."""
    rows = np.concatenate([np.eye(D), X])
    gradient = jax.grad(regularizers.anisotropy)(jnp.asarray(rows, jnp.float32))
    np.testing.assert_allclose(gradient, oracle.anisotropy_gradient(rows, None), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_anisotropy_needs_two_rows(rows):
    alone = TABLE.at[rows:].set(0)
    value, gradient = jax.value_and_grad(regularizers.anisotropy)(alone)
    assert value == 0 and not gradient.any()
    assert np.isnan(geometry.mean_cosine_similarity(alone))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_anisotropy_does_not_depend_on_the_scale(scale):
    value, gradient = jax.value_and_grad(regularizers.anisotropy)(TABLE * scale)
    np.testing.assert_allclose(value, oracle.mean_cosine(X), rtol=1e-5)
    np.testing.assert_allclose(gradient * scale, oracle.anisotropy_gradient(X), rtol=1e-4, atol=1e-6)


TERMS = {
    "anisotropy": regularizers.anisotropy,
    "spectral_penalty": regularizers.spectral_penalty,
    "frequency_alignment": functools.partial(
        regularizers.frequency_alignment, sample=regularizers.sampled_tokens(COUNTS, jax.random.key(0), 5)
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_bfloat16_is_computed_in_float32(name):
    narrow = TABLE.astype(jnp.bfloat16)
    value, gradient = jax.value_and_grad(TERMS[name])(narrow)
    expected, wide = jax.value_and_grad(TERMS[name])(narrow.astype(jnp.float32))
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient.astype(jnp.float32), wide, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("table", [jnp.zeros((V, D)), jnp.ones((V, D))], ids=["zeros", "equal rows"])
def test_gradients_are_finite_where_nothing_is_defined(name, table):
    assert np.isfinite(jax.grad(TERMS[name])(table)).all()


@pytest.mark.parametrize("name", ["anisotropy", *(pytest.param(name, marks=pytest.mark.slow) for name in list(TERMS)[1:])])
def test_over_the_tables_of_a_model(name, strict_promotion):
    """Both layouts, a stack of tables each by itself, and nothing else."""
    stack = jnp.stack([TABLE, 2 * TABLE[::-1]])
    params = {"wte": TABLE, "lm_head": {"kernel": TABLE.T}, "stack": stack, "dense": TABLE}
    tables = {
        "wte": EmberDimensionNumbers(),
        "lm_head": EmberDimensionNumbers(1),
        "stack": EmberDimensionNumbers(1, (0,)),
        "dense": None,
    }
    value, gradient = jax.value_and_grad(lambda p: regularizers.over_tables(TERMS[name], p, tables=tables))(params)
    np.testing.assert_allclose(value, sum(TERMS[name](t) for t in (TABLE, TABLE, *stack)), rtol=1e-5)
    np.testing.assert_allclose(gradient["lm_head"]["kernel"].T, gradient["wte"], rtol=1e-5, atol=1e-6)
    assert not gradient["dense"].any()


def test_over_a_stack_of_stacks():
    tables = jnp.stack([jnp.stack([factor * TABLE, TABLE**2]) for factor in (1.0, 2.0, -1.0)])
    found = regularizers.over_tables(regularizers.anisotropy, {"w": tables}, tables={"w": EmberDimensionNumbers(2, (0, 1))})
    np.testing.assert_allclose(found, sum(regularizers.anisotropy(t) for t in tables.reshape(6, V, D)), rtol=1e-5)


@LAYOUTS
def test_the_singular_vector_is_that_of_the_svd(token_axis):
    """One iteration a step from the last vector arrives where many do."""
    u, sigma, vt = np.linalg.svd(X)
    v = None
    for _ in range(40):
        v = regularizers.singular_vector(laid_out(TABLE, token_axis), v, token_axis=token_axis)
    np.testing.assert_allclose(np.abs(v), np.abs(vt[0]), atol=1e-5)
    value, gradient = jax.value_and_grad(regularizers.spectral_penalty)(
        laid_out(TABLE, token_axis), 2.0, v, token_axis=token_axis
    )
    np.testing.assert_allclose(value, sigma[0] ** 2, rtol=1e-5)
    expected = 2 * sigma[0] * np.outer(u[:, 0], vt[0])
    np.testing.assert_allclose(laid_out(gradient, token_axis), expected, atol=1e-4)


def test_the_spectral_norm_without_a_carried_vector():
    """Twenty iterations: never too large, and close where the gap is small, as in a table of noise."""
    noise = np.random.default_rng(2).normal(size=(400, 30))
    found = np.sqrt(2 * regularizers.spectral_penalty(jnp.asarray(noise, jnp.float32)))
    largest = np.linalg.norm(noise, 2)
    assert 0.97 * largest < found <= largest * (1 + 1e-6)


def test_iterations_by_default():
    """Twenty without a carried vector, none with one."""
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(40, 30)), jnp.float32)
    penalties = [float(regularizers.spectral_penalty(noise, iterations=count)) for count in (None, 19, 20, 21)]
    assert penalties[0] == penalties[2] and len(set(penalties)) == 3
    v = regularizers.singular_vector(noise)
    penalties = [float(regularizers.spectral_penalty(noise, 1.0, v, iterations=count)) for count in (None, 0, 1)]
    assert penalties[0] == penalties[1] < penalties[2]


def test_features_of_several_axes():
    """(V, L, P), as in Gemma 3n: all but the tokens are features."""
    folded = jnp.asarray(X[:, :4].reshape(V, 2, 2), jnp.float32)
    for term in list(TERMS.values())[1:]:
        np.testing.assert_allclose(term(folded), term(folded.reshape(V, 4)), rtol=1e-5)
    assert regularizers.singular_vector(folded).shape == (2, 2)


@LAYOUTS
def test_alignment_is_the_energy_coefficient(token_axis):
    sample = regularizers.sampled_tokens(COUNTS, jax.random.key(3), 5)
    term = functools.partial(regularizers.frequency_alignment, sample=sample, coefficient=-2.0, token_axis=token_axis)

    def exact(x):
        return -2.0 * oracle.energy_coefficient(x[np.asarray(sample.rare)], x[np.asarray(sample.frequent)])

    value, gradient = jax.value_and_grad(term)(laid_out(TABLE, token_axis))
    np.testing.assert_allclose(value, exact(X), rtol=1e-5)
    np.testing.assert_allclose(laid_out(gradient, token_axis), oracle.differences(exact, X), rtol=1e-3, atol=1e-5)


def test_alignment_counts_token_zero():
    first, second = jnp.array([3, 0, 5, -1]), jnp.array([1, 2, 7, 8])
    expected = oracle.energy_coefficient(X[[3, 0, 5]], X[[1, 2, 7, 8]])
    for sample in (regularizers.RareAndFrequent(first, second), regularizers.RareAndFrequent(second, first)):
        np.testing.assert_allclose(regularizers.frequency_alignment(TABLE, sample), expected, rtol=1e-5)


def test_alignment_of_equal_rows():
    """Their distance is zero, and so is its gradient."""
    sample = regularizers.RareAndFrequent(jnp.array([3, 0, 5]), jnp.array([1, 2, 7, 8]))
    value, gradient = jax.value_and_grad(regularizers.frequency_alignment)(TABLE.at[jnp.array([0, 2])].set(TABLE[3]), sample)
    rows = X[[3, 0, 5, 1, 2, 7, 8]]
    rows[[1, 4]] = rows[0]
    np.testing.assert_allclose(value, oracle.energy_coefficient(rows[:3], rows[3:]), rtol=1e-5)
    assert np.isfinite(gradient).all() and gradient.any()


@pytest.mark.parametrize("scale, shift", [(1e-22, 0), (1e22, 0), (1.0, 1e3)])
def test_alignment_does_not_depend_on_scale_and_shift(scale, shift):
    sample = regularizers.sampled_tokens(COUNTS, jax.random.key(3), 5)
    found = regularizers.frequency_alignment(scale * TABLE + shift, sample)
    np.testing.assert_allclose(found, regularizers.frequency_alignment(TABLE, sample), rtol=2e-3)


def test_samples_are_of_the_two_halves():
    """Ten tokens occur: the five rarest and the five most frequent, each at most once; what is missing is -1."""
    order = np.argsort(COUNTS)
    rare, frequent = set(order[2:7]), set(order[7:])
    seen = np.zeros(V)
    for step in range(30):
        sample = regularizers.sampled_tokens(COUNTS, jax.random.key(step), 3)
        assert set(map(int, sample.rare)) <= rare and len(set(map(int, sample.rare))) == 3
        assert set(map(int, sample.frequent)) <= frequent and len(set(map(int, sample.frequent))) == 3
        seen[np.concatenate(sample)] += 1
    assert (seen[COUNTS > 0] > 5).all()
    few = regularizers.sampled_tokens(np.where(COUNTS > 7, COUNTS, 0), jax.random.key(0), 3)  # three tokens
    assert set(map(int, few.rare)) == {-1, *np.flatnonzero((COUNTS == 8) | (COUNTS == 9)).tolist()}
    assert sorted(map(int, few.frequent)) == [-1, -1, int(np.argmax(COUNTS))]
    assert regularizers.frequency_alignment(TABLE, few) == 0  # one frequent token makes no distribution
    assert (np.concatenate(regularizers.sampled_tokens(np.zeros(V), jax.random.key(0), 3)) == -1).all()


def test_alignment_in_row_sparse_steps():
    """The sampled ids are declared, and the compact gradient is the dense one."""
    sample = regularizers.sampled_tokens(COUNTS, jax.random.key(3), 4)
    ids = jnp.concatenate(sample)

    def loss(params):
        return regularizers.over_tables(lambda t, token_axis: regularizers.frequency_alignment(t, sample), params)

    params = {"wte": TABLE}
    value, grads = row_sparse.value_and_grad(loss)(params, {"wte": ids})
    expected, dense = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    found = optax.apply_updates({"wte": jnp.zeros((V, D))}, grads)
    np.testing.assert_allclose(found["wte"], dense["wte"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("power", [0.5, 1.0, 0.0, -0.7])
def test_frequency_weights(power):
    np.testing.assert_allclose(regularizers.frequency_weights(COUNTS, power), oracle.frequency_weights(COUNTS, power), rtol=1e-5)
    np.testing.assert_array_equal(regularizers.frequency_weights(np.zeros(3), power), 1)


def test_frequency_weights_do_not_overflow():
    weights = regularizers.frequency_weights(np.array([0.0, 1e30]), 4.0, smoothing=1e-9)
    assert np.isfinite(weights[1]) and weights[1] == 1


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30, 3e37])
def test_frequency_weights_do_not_depend_on_the_unit_of_counts(scale):
    found = regularizers.frequency_weights(scale * COUNTS, 0.5, smoothing=scale)
    np.testing.assert_allclose(found, regularizers.frequency_weights(COUNTS, 0.5), rtol=1e-4)


def test_counts_are_streamed():
    ids, counts = np.random.default_rng(4).integers(-2, V + 3, (6, 7)), np.zeros(V)
    streamed = jnp.zeros(V)
    for batch in ids:
        streamed = jax.jit(regularizers.updated_counts)(streamed, jnp.asarray(batch), 0.5)
        counts = 0.5 * counts + np.bincount(batch[(batch >= 0) & (batch < V)], minlength=V)
    np.testing.assert_allclose(streamed, counts, rtol=1e-6)


def gradient_of_cosine(x, weights):
    """In float64, with the terms of each pair and no difference of sums."""
    w = np.asarray(weights, np.float64)
    norm = np.linalg.norm(x, axis=1)
    u = x / norm[:, None]
    pairs = np.outer(w, w)
    np.fill_diagonal(pairs, 0)
    seen = pairs @ u
    return 2 * (seen - np.sum(seen * u, 1, keepdims=True) * u) / norm[:, None] / pairs.sum()


@pytest.mark.parametrize("heavy", [[0], [4], [3, 7]], ids=str)
@pytest.mark.parametrize("count", [1e2, 1e6, 1e8, 3e38])
def test_anisotropy_beside_a_dominant_count(count, heavy):
    """The heavy row moves by what the others say, not by rounding."""
    weights = np.ones(V)
    weights[heavy] = count
    value, gradient = jax.value_and_grad(regularizers.anisotropy)(TABLE, weights=jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(value, oracle.mean_cosine(X, weights), rtol=5e-6, atol=1e-6)
    wanted = gradient_of_cosine(X, weights)
    for row in range(V):  # each within its own size: those of the light rows are as small as their share
        np.testing.assert_allclose(gradient[row], wanted[row], rtol=1e-4, atol=1e-5 * np.abs(wanted[row]).max() + 1e-38)


@pytest.mark.parametrize("scale", [5e20, 1e-25])
def test_anisotropy_where_squares_leave_float32(scale):
    value, gradient = jax.value_and_grad(regularizers.anisotropy)(TABLE * jnp.float32(scale))
    np.testing.assert_allclose(value, oracle.mean_cosine(X), rtol=1e-5)
    np.testing.assert_allclose(gradient * jnp.float32(scale), gradient_of_cosine(X, np.ones(V)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [1e-3, 1e-5, 1e-7])
def test_alignment_of_narrow_samples_far_apart(width):
    """The distances within a sample were differences of squares as large as the distance between both."""
    rng = np.random.default_rng(5)
    rows = (np.float32(width) * rng.normal(size=(16, D))).astype(np.float32)
    table = np.where(np.arange(16)[:, None] < 8, rows, 0).astype(np.float32)
    table[8:] = np.float32(1) + (np.float32(1e-3) * rng.normal(size=(8, D))).astype(np.float32)
    sample = regularizers.RareAndFrequent(jnp.arange(8), jnp.arange(8, 16))
    value, gradient = jax.value_and_grad(regularizers.frequency_alignment)(jnp.asarray(table), sample)
    exact = table.astype(np.float64)
    np.testing.assert_allclose(1 - value, 1 - oracle.energy_coefficient(exact[:8], exact[8:]), rtol=1e-3)
    steps = oracle.differences(lambda x: oracle.energy_coefficient(x[:8], x[8:]), exact, step=width * 1e-3)
    np.testing.assert_allclose(gradient, steps, rtol=1e-2, atol=1e-3 * np.abs(steps).max())


@pytest.mark.parametrize("counts", [[3e38, 3e38, 3e38], [3e38, 1e30, 0], [3.4e38, 3e37, 1]], ids=str)
@pytest.mark.parametrize("power", [-1.0, 0.5])
@pytest.mark.parametrize("smoothing", [1.0, 3e38])
def test_frequency_weights_of_the_largest_counts(counts, power, smoothing):
    """A sum of two of them, or of a count and the smoothing, is no float32."""
    counts = np.float32(counts)
    found = regularizers.frequency_weights(counts, power, smoothing=smoothing)
    wanted = oracle.frequency_weights(counts, power, float(np.float32(smoothing)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("dtype, repeats", [("bfloat16", 1000), ("bfloat16", 4096), ("float16", 2500)])
def test_a_batch_is_counted_in_float32(dtype, repeats):
    """In bfloat16, 256 + 1 is 256."""
    found = regularizers.updated_counts(jnp.zeros(3, dtype), jnp.full(repeats, 1))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, jnp.asarray([0, repeats, 0]).astype(dtype))


def test_a_declared_bias_has_no_term():
    """The declaration that `vocab` asks for goes to everything."""
    declared = {"head": EmberDimensionNumbers(1), "bias": EmberDimensionNumbers(0)}
    params = {"head": TABLE.T, "bias": jnp.ones(V)}
    found = regularizers.over_tables(regularizers.anisotropy, params, tables=declared)
    np.testing.assert_allclose(found, regularizers.anisotropy(TABLE), rtol=1e-6)
    with pytest.raises(ValueError, match=r"only \['bias'\], which have no features"):
        regularizers.over_tables(regularizers.anisotropy, {"bias": jnp.ones(V)}, tables=EmberDimensionNumbers(0))
