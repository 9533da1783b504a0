"""Each metric of a table against its definition in float64, known answers, and what must not change it."""

from pathlib import Path

import geometry_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from x64 import enable_x64

from ember_optax import geometry

pytestmark = pytest.mark.usefixtures("strict_promotion")
V, D, MANY = 40, 12, 4000
NAMES = (
    "spectrum",
    "effective_rank",
    "stable_rank",
    "mean_cosine_similarity",
    "partition_isotropy",
    "iso_score",
    "mean_row_norm",
)
EACH = pytest.mark.parametrize("name", NAMES)
RNG = np.random.default_rng(0)
# With a mean, uneven directions, a row of zeros and rows of very different lengths.
TABLE = (RNG.normal(size=(V, D)) * np.geomspace(1, 0.05, D) + 0.3) * RNG.uniform(0.1, 2.0, (V, 1))
TABLE[7] = 0
TABLE = TABLE.astype(np.float32)
WEIGHTS = RNG.poisson(2.0, V)


def check(got, expected, tolerance=2e-6):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.max(np.abs(expected)))


def weighted(name, table, weights=WEIGHTS):
    """The other form of each metric: centred and weighted."""
    return getattr(geometry, name)(table, centered=True, weights=weights)


@EACH
def test_is_its_definition(name):
    got = getattr(geometry, name)(TABLE, centered=False)
    assert got.dtype == jnp.float32
    check(got, getattr(oracle, name)(TABLE, centered=False))
    check(weighted(name, TABLE), getattr(oracle, name)(TABLE, weights=WEIGHTS, centered=True), 4e-6)


@EACH
def test_a_weight_of_zero_is_a_row_that_is_not_there(name):
    """Whatever the row holds."""
    ones = (WEIGHTS > 0).astype(WEIGHTS.dtype)
    got = weighted(name, np.where(ones[:, None] == 0, np.float32(np.nan), TABLE), ones)
    check(got, getattr(oracle, name)(TABLE[WEIGHTS > 0], centered=True), 4e-6)


@pytest.mark.parametrize("unit", [1e-30, 1e37])
def test_weights_have_no_unit(unit):
    for name in ("mean_cosine_similarity", "mean_row_norm"):
        check(weighted(name, TABLE, np.float32(unit) * WEIGHTS), weighted(name, TABLE), 4e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mean_cosine_similarity"])
def test_counts_are_repeated_rows(name):
    """But for pairs: a token makes none with itself."""
    check(weighted(name, TABLE), getattr(oracle, name)(np.repeat(TABLE, WEIGHTS, axis=0), centered=True), 1e-5)


@pytest.mark.parametrize("name", ["spectrum", "mean_cosine_similarity", "partition_isotropy", "iso_score"])
def test_other_layouts(name):
    """A (D, V) head and a (V, L, P) table are the (V, D) table of their rows."""
    metric = getattr(geometry, name)
    check(metric(TABLE.T, token_axis=1), metric(TABLE, centered=name == "iso_score"), 1e-6)
    check(weighted(name, TABLE.reshape(V, 3, 4)), weighted(name, TABLE), 4e-6)


def test_compiled_by_the_caller():
    """All in one program, with weights that are not known."""
    compiled = jax.jit(lambda table, weights: {name: weighted(name, table, weights) for name in NAMES})(TABLE, WEIGHTS)
    for name in NAMES:
        check(compiled[name], weighted(name, TABLE), 4e-6)


def test_iso_score_of_few_features():
    """Two features suffice; one has no other direction to compare with."""
    check(geometry.iso_score(TABLE[:, :2]), oracle.iso_score(TABLE[:, :2]))
    assert np.isnan(geometry.iso_score(TABLE[:, :1]))


@EACH
def test_order_of_tokens_does_not_matter(name):
    order = RNG.permutation(V)
    check(weighted(name, TABLE[order], WEIGHTS[order]), weighted(name, TABLE), 4e-6)


@EACH
def test_rotations_of_the_features_do_not_matter(name):
    """Eigenvectors turn with the table, so that this holds for the partition function too."""
    rotation = np.linalg.qr(RNG.normal(size=(D, D)))[0]
    check(weighted(name, (TABLE @ rotation).astype(np.float32)), weighted(name, TABLE), 1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
@pytest.mark.parametrize("name", ["effective_rank", "stable_rank", "mean_cosine_similarity", "iso_score"])
def test_scale_does_not_matter(name, factor):
    """Gradients are small: their squares vanish in float32."""
    check(getattr(geometry, name)(TABLE * np.float32(factor)), getattr(geometry, name)(TABLE))


@pytest.mark.parametrize("shape", [(V, D), (D, V)], ids=["tall", "wide"])
@pytest.mark.parametrize("condition", [1e2, 1e5, 1e9])
def test_singular_values_of_ill_conditioned_tables(condition, shape):
    """Roots of the Gram matrix's eigenvalues in float32 are off by 3e-4 of the largest."""
    u, v = (np.linalg.qr(RNG.normal(size=(side, D)))[0] for side in shape)
    table = (u * np.geomspace(1, 1 / condition, D) @ v.T).astype(np.float32)
    np.testing.assert_allclose(geometry.spectrum(table), oracle.spectrum(table), atol=2e-6)


def test_narrow_tables_are_measured_in_float32():
    table = jnp.asarray(TABLE, jnp.bfloat16)
    check(geometry.mean_cosine_similarity(table), oracle.mean_cosine_similarity(table.astype(jnp.float32)))
    assert geometry.row_norms(table).dtype == jnp.float32


def test_float64_tables_are_measured_in_float64():
    with enable_x64(True):
        table = RNG.normal(size=(V, D))
        for name in ("spectrum", "mean_cosine_similarity"):
            got = getattr(geometry, name)(jnp.asarray(table))
            assert got.dtype == jnp.float64
            check(got, getattr(oracle, name)(table), 1e-12)


def test_row_norms():
    np.testing.assert_allclose(geometry.row_norms(TABLE), oracle.row_norms(TABLE), rtol=1e-6)
    np.testing.assert_allclose(
        geometry.row_norms(TABLE.T, token_axis=-1, centered=True), oracle.row_norms(TABLE, True), rtol=1e-5
    )
    np.testing.assert_array_equal(geometry.row_norms(TABLE, weights=WEIGHTS)[WEIGHTS == 0], 0)


def test_iso_score_is_that_of_the_package():
    recorded = np.load(Path(__file__).parents[1] / "data" / "isoscore" / "tables.npz")
    names = [name for name in recorded.files if not name.endswith("_score")]
    assert len(names) == 6
    for name in names:
        np.testing.assert_allclose(geometry.iso_score(recorded[name]), recorded[f"{name}_score"], atol=1e-6)


def test_an_isotropic_gaussian():
    """V >> D: every direction alike, and no mean."""
    table = np.random.default_rng(1).normal(size=(MANY, D)).astype(np.float32)
    assert abs(geometry.mean_cosine_similarity(table)) < 1e-3
    assert D - 0.1 < geometry.effective_rank(table) <= D * 1.00001
    assert D - 2 < geometry.stable_rank(table) <= D
    assert geometry.iso_score(table) > 0.98
    assert geometry.partition_isotropy(table) > 0.8


def test_rank_one():
    table = np.outer(np.arange(1.0, V + 1), np.arange(1.0, D + 1)).astype(np.float32)
    np.testing.assert_allclose(geometry.effective_rank(table), 1, atol=1e-4)
    np.testing.assert_allclose(geometry.stable_rank(table), 1, atol=1e-6)
    np.testing.assert_allclose(geometry.mean_cosine_similarity(table), 1, rtol=1e-6)
    np.testing.assert_allclose(geometry.iso_score(table), 0, atol=1e-6)


def test_one_dominant_direction():
    """A common mean: nearly all cosines one, few effective directions; centring takes it away."""
    noise = np.random.default_rng(2).normal(size=(MANY, D)).astype(np.float32)
    table = noise * np.float32(0.1) + np.eye(D, dtype=np.float32)[0] * 5
    assert geometry.mean_cosine_similarity(table) > 0.99
    assert abs(geometry.mean_cosine_similarity(table, centered=True)) < 1e-2
    assert geometry.stable_rank(table) < 1.01
    assert geometry.stable_rank(table, centered=True) > 10
    assert geometry.partition_isotropy(table) < 1e-3
    assert geometry.partition_isotropy(table, centered=True) > 0.9
    assert geometry.iso_score(table) > 0.9


def test_the_partition_function_does_not_overflow():
    assert geometry.partition_isotropy(TABLE * 1000) == 0


def test_a_table_of_zeros():
    zeros = np.zeros((V, D), np.float32)
    assert geometry.effective_rank(zeros) == 0
    assert geometry.stable_rank(zeros) == 0
    assert geometry.partition_isotropy(zeros) == 1
    assert not np.any(geometry.spectrum(zeros))
    assert np.isnan(geometry.mean_cosine_similarity(zeros))
    assert np.isnan(geometry.iso_score(zeros))


def test_one_row():
    row = TABLE[:1]
    np.testing.assert_allclose(geometry.spectrum(row), [np.linalg.norm(row)], rtol=1e-6)
    assert np.isnan(geometry.mean_cosine_similarity(row))
    assert np.isnan(geometry.iso_score(row))
    # Its own direction and the other way.
    norm = np.linalg.norm(row)
    np.testing.assert_allclose(geometry.partition_isotropy(row), np.exp(-2 * norm), rtol=1e-5)


def test_one_feature():
    column = TABLE[:, :1]
    check(geometry.spectrum(column), oracle.spectrum(column))
    np.testing.assert_allclose(geometry.mean_cosine_similarity(column), oracle.mean_cosine_similarity(column), atol=1e-6)
    assert np.isnan(geometry.iso_score(column))


@EACH
def test_a_nan_is_seen(name):
    table = TABLE.copy()
    table[3, 2] = np.nan
    assert np.all(np.isnan(getattr(geometry, name)(table)))


def test_no_token_takes_part():
    nobody = np.zeros_like(WEIGHTS)
    assert weighted("effective_rank", TABLE, nobody) == 0
    assert weighted("stable_rank", TABLE, nobody) == 0
    for name in ("mean_cosine_similarity", "mean_row_norm", "iso_score", "partition_isotropy"):
        assert np.isnan(weighted(name, TABLE, nobody)), name


@pytest.mark.parametrize("token_axis", [0, 1])
@pytest.mark.parametrize("buckets", [4, (0, 1, 3, 50)])
def test_by_frequency_is_the_metric_of_each_bucket(buckets, token_axis):
    found = geometry.by_frequency(
        geometry.mean_cosine_similarity, TABLE.T if token_axis else TABLE, WEIGHTS, buckets, token_axis=token_axis
    )
    if buckets == 4:
        parts = np.split(np.argsort(WEIGHTS, kind="stable"), 4)
    else:
        parts = [
            np.flatnonzero((low <= WEIGHTS) & (high > WEIGHTS)) for low, high in zip(buckets, (*buckets[1:], 1e9), strict=True)
        ]
    np.testing.assert_array_equal(found.num_tokens, list(map(len, parts)))
    for k, part in enumerate(parts):
        if len(part):
            assert (found.lower[k], found.upper[k]) == (WEIGHTS[part].min(), WEIGHTS[part].max())
            check(found.values[k], oracle.mean_cosine_similarity(TABLE[part]))
        else:
            assert (found.lower[k], found.upper[k]) == (0, 0)
            assert np.isnan(found.values[k])


def test_by_frequency_of_vectors():
    norms = geometry.by_frequency(geometry.row_norms, TABLE, WEIGHTS, 2).values
    assert norms.shape == (2, V)
    np.testing.assert_allclose(norms.sum(0), oracle.row_norms(TABLE), rtol=1e-6)
    compiled = jax.jit(lambda counts: geometry.by_frequency(geometry.mean_row_norm, TABLE, counts, [0, 2]).values)(WEIGHTS)
    check(compiled[0], oracle.mean_row_norm(TABLE, weights=WEIGHTS < 2))


def test_by_frequency_tells_large_counts_apart():
    """In float32 these counts are one number."""
    counts = jnp.asarray(2**24 + np.arange(V) % 3, jnp.int32)
    found = geometry.by_frequency(geometry.mean_row_norm, TABLE, counts, [2**24, 2**24 + 1, 2**24 + 2])
    assert found.num_tokens.tolist() == [int((counts == 2**24 + i).sum()) for i in range(3)]
