"""Metrics where float32 loses digits or overflows: dominant counts, equal rows, large and small numbers, narrow integers."""

import functools

import geometry_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from x64 import enable_x64

from ember_optax import EmberDimensionNumbers, ember, geometry, regularizers
from ember_optax._math.frequency import halves_by_count, rank_buckets

pytestmark = pytest.mark.usefixtures("strict_promotion")
V, D = 12, 4
RNG = np.random.default_rng(0)
TABLE = (RNG.normal(size=(V, D)) + 0.3).astype(np.float32)
CORNER = np.float32([[1, 0], [0, 1], [1, 1]])
NORMS = ("row_norms", "mean_row_norm")
COSINE = "mean_cosine_similarity"


def measured(name, table, **options):
    return getattr(geometry, name)(jnp.asarray(table), **options)


def expected(name, table, **options):
    return getattr(oracle, name)(table, **options)


@pytest.mark.parametrize("heavy", [[0], [2], [0, 1]], ids=str)
@pytest.mark.parametrize("count", [1e6, 1e8, 1e12, 3e38])
def test_cosine_beside_a_dominant_count(count, heavy):
    """Padding, or "the": 0.375 for 0.354 at 1e6, NaN at 1e8, when the pairs were a difference of sums over all rows."""
    weights = np.ones(3)
    weights[heavy] = count
    got = measured(COSINE, CORNER, weights=weights.astype(np.float32))
    np.testing.assert_allclose(got, expected(COSINE, CORNER, weights=weights), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["mean_row_norm", COSINE, "stable_rank"])
@pytest.mark.parametrize("count", [1e6, 1e12])
def test_centred_beside_a_dominant_count(count, name):
    """The mean row is nearly the heavy row, and what is left of that is the metric."""
    weights = np.where(np.arange(V) == 3, count, 1.0)
    got = measured(name, TABLE, weights=weights.astype(np.float32), centered=True)
    np.testing.assert_allclose(got, expected(name, TABLE, weights=weights, centered=True), rtol=2e-5)


EQUAL = {
    # Of two numbers of rows, since each is compiled.
    "11 rows": np.tile(np.float32([[0.1, 0.7, -0.3, 1.3]]), (11, 1)),
    "1003 rows": np.tile(RNG.normal(size=(1, D)).astype(np.float32), (1003, 1)),
    "of 5e20": np.tile(np.float32([[5e20, -3e20, 1e20, 0.1]]), (11, 1)),
    "of 1e-25": np.tile(np.float32([[1e-25, 7e-26, -3e-25, 0]]), (11, 1)),
    "constant": np.full((1003, D), 1234.567, np.float32),
}


@pytest.mark.parametrize("table", EQUAL.values(), ids=EQUAL)
def test_equal_rows_have_what_the_documentation_says(table):
    """Nothing is left after centring, no rounding noise with a direction of its own."""
    for name, value in {
        "mean_row_norm": 0, "effective_rank": 0, "stable_rank": 0, "partition_isotropy": 1, "iso_score": np.nan, COSINE: np.nan,
    }.items():  # fmt: skip
        np.testing.assert_array_equal(measured(name, table, centered=True), value, err_msg=name)
    assert 1 - 2e-6 <= measured(COSINE, table) <= 1
    found = geometry.under_trained_tokens(table, tied=True)
    np.testing.assert_array_equal(found.distance_centered, 1)


def test_the_mean_of_many_rows_keeps_its_digits():
    """A product with a vector adds up one by one: 5e-3 off for these rows."""
    many = jnp.tile(RNG.normal(size=(1, 8)).astype(np.float32), (1 << 18, 1))
    np.testing.assert_allclose(geometry.mean_cosine_similarity(many), 1, atol=5e-5)


SCALED = {
    "5e20": TABLE * np.float32(5e20),
    "1e-25": TABLE * np.float32(1e-25),
    "both": TABLE * np.float32(np.where(np.arange(V) % 2, 5e20, 1e-25))[:, None],
}


@pytest.mark.parametrize("table", SCALED.values(), ids=SCALED)
def test_squares_that_leave_float32(table):
    for name in NORMS:
        np.testing.assert_allclose(measured(name, table), expected(name, table), rtol=2e-6)
    np.testing.assert_allclose(measured(COSINE, table), expected(COSINE, table), rtol=1e-5, atol=1e-6)
    report = geometry.report({"t": table}, {"t": table}, tables=EmberDimensionNumbers(0), spectral=False)
    np.testing.assert_allclose(report["geometry/t/mean_row_norm"], expected("mean_row_norm", table), rtol=2e-6)
    np.testing.assert_allclose(report["geometry/t/gradient_norm"], np.linalg.norm(table.astype(np.float64)), rtol=2e-6)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("name", ["mean_row_norm", "partition_isotropy", "iso_score", "spectrum", "effective_rank"])
def test_counts_near_the_largest_float(name, centered):
    weights = np.where(np.arange(V) < 3, 3e38, 1.0).astype(np.float32)
    got = measured(name, TABLE, weights=weights, centered=centered)
    wanted = expected(name, TABLE, weights=weights, centered=centered)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6 * np.max(wanted))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "uint32", "float16", "bfloat16"])
def test_counts_of_every_dtype(dtype):
    counts = jnp.asarray(np.arange(V) * 10).astype(dtype)
    for name in ("mean_row_norm", COSINE):
        got, wanted = (measured(name, TABLE, weights=of) for of in (counts, counts.astype(jnp.float32)))
        np.testing.assert_array_equal(got, wanted)
    buckets = geometry.by_frequency(geometry.mean_row_norm, TABLE, counts, (0, 50, 300))
    np.testing.assert_array_equal(buckets.num_tokens, [V, 0, 0] if dtype == "bool" else [5, V - 5, 0])


@pytest.mark.parametrize("dtype, edges", [("int8", (0, 100, 1000)), ("uint8", (-5, 3, 256)), ("int16", (0, 200, 40000))])
def test_no_count_reaches_a_bucket_beyond_its_dtype(dtype, edges):
    largest = np.iinfo(dtype).max
    found = geometry.by_frequency(geometry.row_norms, TABLE[:3], np.asarray([1, 2, largest], dtype), edges)
    assert found.num_tokens.tolist() == [2, 1, 0]
    assert found.upper.tolist() == [2, largest, 0]


def test_ranks_of_a_large_vocabulary_in_many_buckets():
    """The product of rank and number of buckets leaves int32."""
    size, buckets = 300_000, 10_007
    found = np.asarray(rank_buckets(jnp.arange(size), buckets))
    np.testing.assert_array_equal(found, np.arange(size, dtype=np.int64) * buckets // size)


@pytest.mark.parametrize(
    "counts",
    [[0, 0, 5, 7, 9, 11, 13], [13, 0, 11, 9, 7, 5, 0], [3, 3, 3, 3, 3, 3, 3], [0, 0, 4, 0, 0, 0, 0], [8, 0, 1, 3, 3, 0, 3]],
    ids=str,
)
def test_the_rarer_half_is_one_definition(counts):
    """The report, the sample of the alignment and two buckets by frequency: of an odd number, the middle token is rare."""
    counts = np.asarray(counts)
    order = [token for token in np.argsort(counts, kind="stable") if counts[token] > 0]
    rare, frequent = order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
    table = RNG.normal(size=(counts.size, 3)).astype(np.float32)
    norms = np.linalg.norm(table.astype(np.float64), axis=1)
    masks = halves_by_count(jnp.asarray(counts))
    sample = regularizers.sampled_tokens(counts, jax.random.key(0), counts.size)
    metrics = geometry.report({"t": table}, token_counts=counts, tables=EmberDimensionNumbers(0), spectral=False)
    for name, half, mask, drawn in zip(("rare", "frequent"), (rare, frequent), masks, sample, strict=True):
        assert sorted(half) == np.flatnonzero(mask).tolist()
        assert sorted(half) == sorted(token for token in drawn.tolist() if token >= 0)
        mean = norms[half].mean() if half else np.nan
        np.testing.assert_allclose(metrics[f"geometry/t/{name}/mean_row_norm"], mean, rtol=1e-5)
    if len(order) == counts.size > 1:
        buckets = geometry.by_frequency(geometry.mean_row_norm, table, counts, 2)
        assert buckets.num_tokens.tolist() == [len(rare), len(frequent)]


AGAIN = {
    "by_frequency": lambda: geometry.by_frequency(geometry.mean_row_norm, jnp.asarray(TABLE), jnp.arange(V), 4),
    "by_frequency of a partial function": lambda: geometry.by_frequency(
        functools.partial(geometry.mean_row_norm, centered=True), jnp.asarray(TABLE), jnp.arange(V), (0, 3, 9)
    ),
    "by_frequency of a new function": lambda: geometry.by_frequency(
        lambda table, **options: 2 * geometry.row_norms(table, **options), jnp.asarray(TABLE), jnp.arange(V), 3
    ),
    "random_walk": lambda: geometry.random_walk(4, num_features=3, key=jax.random.key(0), num_walks=2),
    "a report": lambda: geometry.report({"wte": jnp.asarray(TABLE)}, token_counts=jnp.arange(V), spectral=False),
}


@pytest.fixture(scope="module")
def compilations():
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


@pytest.mark.parametrize("name", AGAIN)
def test_a_second_call_compiles_nothing(name, compilations):
    """Outside of `jax.jit`: each program stays in memory."""
    AGAIN[name]()
    AGAIN[name]()
    compilations.clear()
    AGAIN[name]()
    assert not compilations


def test_the_look_for_compilations_can_fail(compilations):
    compilations.clear()
    jax.jit(lambda x: x + 1)(jnp.ones(7))
    assert compilations


@pytest.mark.parametrize("scale", [5e20, 1e-25, [5e20, 1e-25, 1.0]], ids=str)
def test_trajectories_in_units_of_each_row(scale):
    """The share of a token, and whether its gradients agree, do not depend on how large its numbers are."""
    walk = np.cumsum(RNG.normal(size=(4, 3, 5)), 0).astype(np.float32)
    scaled = walk * np.broadcast_to(np.float32(scale), 3)[:, None]
    rays, correlations = [], []
    for snapshots in (walk, scaled):
        for found, streaming in ((rays, geometry.ray()), (correlations, geometry.gradient_autocorrelation())):
            state = streaming.init(snapshots[0])
            for table in snapshots:
                state = streaming.update(state, table)
            found.append(streaming.value(state))
    for field in ("share", "share_at_most", "straightness"):
        np.testing.assert_allclose(getattr(rays[1], field), getattr(rays[0], field), rtol=2e-5)
    np.testing.assert_allclose(correlations[1].rows, correlations[0].rows, rtol=2e-5)
    if np.ndim(scale) == 0:
        np.testing.assert_allclose(correlations[1].table, correlations[0].table, rtol=2e-5)
    else:  # the row of 5e20 is the table
        np.testing.assert_allclose(correlations[1].table, correlations[0].rows[0], rtol=2e-5)


def test_units_grow_and_stay():
    """A row that starts small, a long way, and back; and one that does not move before the end."""
    way = np.float32([0, 1e-25, 5e20, 1.0])[:, None, None] * np.float32([[1, 2], [3, -1]])
    way[:3, 1] = 0
    init, update, value = geometry.ray()
    state = init(way[0])
    for table in way[1:]:
        state = update(state, table)
    np.testing.assert_allclose(value(state).share, 1, rtol=1e-6)
    np.testing.assert_array_equal(np.isfinite(value(state).straightness), True)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7e-30, 3e38])
def test_the_logarithms_of_a_constant_moment_have_no_variance(value):
    found = geometry.factorization_error(np.full((7, 3), value, np.float32))
    assert np.isnan(found.explained_log_variance)
    np.testing.assert_allclose(found.relative_error, 0, atol=1e-6)


def test_a_product_is_explained_over_the_whole_range_of_float32():
    """The product of two means underflows where its logarithm does not."""
    moment = np.outer([1.0, 1e-12, 1e-18], [1.0, 1e-12, 1e-19]).astype(np.float32)
    np.testing.assert_allclose(geometry.factorization_error(moment).explained_log_variance, 1, atol=1e-5)


@pytest.mark.parametrize("outside", [[-1], [V, 1000], [-7, V]], ids=str)
def test_traced_ids_out_of_range_do_not_count(outside):
    """-1 would be the last row, for JAX as for NumPy."""
    found = [
        jax.jit(lambda ids: geometry.under_trained_tokens(TABLE, known_unused=ids, tied=False).distance)(jnp.asarray(ids))
        for ids in ([2, *outside], [2] * (1 + len(outside)))
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("ids", [np.int64([2**32 + 1]), np.uint64([2**63 + 2]), np.int64([-(2**32) + 3])], ids=str)
def test_ids_of_64_bits_do_not_wrap(ids):
    with pytest.raises(ValueError, match="known_unused names"):
        geometry.under_trained_tokens(TABLE, known_unused=ids, tied=False)
    counted = regularizers.updated_counts(jnp.zeros(V), ids)
    np.testing.assert_array_equal(counted, 0)


def test_x64_changes_no_dtype():
    """What is float32 without x64 is float32 with it."""
    with enable_x64(True):
        table, counts = {"wte": jnp.asarray(TABLE)}, jnp.arange(V)
        state = ember(1e-2, optax.sgd(0.1), tables=EmberDimensionNumbers(0)).init(table)
        report = geometry.report(table, table, state, counts, tables=EmberDimensionNumbers(0), spectral=False)
        walks = geometry.random_walk(3, num_features=2, key=jax.random.key(0), num_walks=2)
        vector = regularizers.singular_vector(table["wte"], iterations=0)
        found = {str(leaf.dtype) for leaf in jax.tree.leaves((report, walks, vector))}
    assert found == {"float32", "int32"}
    np.testing.assert_array_equal(vector, regularizers.singular_vector(TABLE, iterations=0))
