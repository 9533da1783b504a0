"""On eight devices every metric is what it is on one, and what needs no row of another device gathers no table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.harness.compiled import collectives
from ember_optax import geometry, scale_by_ember

V, D = 96, 40
TABLE = (np.random.default_rng(0).normal(size=(V, D)) + 0.3).astype(np.float32)
COUNTS = np.random.default_rng(1).poisson(3, V)
SPECS = pytest.mark.parametrize("spec", [P("x", None), P(None, "x")], ids=str)


def vectors_only(table):
    """What costs a vector over tokens or over features, however the table is split."""
    state = geometry.table_states(scale_by_ember().init({"wte": table}))["wte"]
    return {
        "mean_cosine_similarity": geometry.mean_cosine_similarity(table, centered=True),
        "row_norms": geometry.row_norms(table),
        "active_rows": geometry.active_rows(table),
        "row_step": geometry.row_step(table, state),
        "mean_row_norm": geometry.mean_row_norm(table, weights=COUNTS),
    }


def spectral(table):
    """What needs the Gram matrix over features: D x D numbers, of a table whose rows are split."""
    return {
        "partition_isotropy": geometry.partition_isotropy(table),
        "iso_score": geometry.iso_score(table),
        "spectrum": geometry.spectrum(table, centered=True),
        "stable_rank": geometry.stable_rank(table, weights=COUNTS),
    }


def everything(table):
    params = {"wte": {"embedding": table}}
    rays, pairs = geometry.ray(), geometry.gradient_autocorrelation()
    ray, pair = rays.init(table), pairs.init(table)
    for step in range(4):
        ray, pair = rays.update(ray, jnp.cos(step * table)), pairs.update(pair, jnp.cos(step * table))
    return {
        **vectors_only(table),
        **spectral(table),
        "report": geometry.report(params, params, scale_by_ember().init(params), COUNTS),
        "by_frequency": geometry.by_frequency(geometry.iso_score, table, COUNTS, 3),
        "under_trained": geometry.under_trained_tokens(table, tied=True, known_unused=[3, 5]),
        "factorization": geometry.factorization_error(jnp.square(table)),
        "ray": rays.value(ray),
        "pairs": pairs.value(pair),
    }


def laid_out(spec, axis_type=AxisType.Auto):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    return NamedSharding(mesh, spec)


@functools.cache
def on_one_device():
    return jax.jit(everything)(TABLE)


@pytest.mark.slow  # compiles all metrics five times
@SPECS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_is_what_it_is_on_one_device(axis_type, spec):
    got = jax.jit(everything)(jax.device_put(TABLE, laid_out(spec, axis_type)))
    for (path, value), expected in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(on_one_device()), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))


@SPECS
def test_numbers_of_tokens_lie_as_the_tokens(spec):
    """With explicit axes; a number of the whole table lies on every device."""
    table = jax.device_put(TABLE, laid_out(spec, AxisType.Explicit))
    assert jax.typeof(geometry.row_norms(table)).sharding.spec == P(spec[0])
    assert jax.typeof(geometry.mean_row_norm(table)).sharding.spec == P()
    rays = geometry.ray()
    found = rays.value(rays.update(rays.init(table), 2 * table))
    assert {jax.typeof(leaf).sharding.spec for leaf in found[:4]} == {P(spec[0])}


@SPECS
def test_no_table_is_gathered(spec):
    """A Gram matrix over features that are split needs every column beside every other: there, XLA gathers the table."""
    table = jax.ShapeDtypeStruct(TABLE.shape, TABLE.dtype, sharding=laid_out(spec))
    functions = [vectors_only, *([spectral] if spec[0] else [])]
    found = [one for function in functions for one in collectives(jax.jit(function).lower(table).compile())]
    assert found
    assert {one.operation for one in found} == {"all-reduce"}
    assert all(one.elements < V * D for one in found), found


def test_the_look_for_gathers_can_fail():
    table = jax.ShapeDtypeStruct(TABLE.shape, TABLE.dtype, sharding=laid_out(P(None, "x")))
    found = collectives(jax.jit(geometry.iso_score).lower(table).compile())
    assert any(one.operation == "all-gather" and one.elements == V * D for one in found)
