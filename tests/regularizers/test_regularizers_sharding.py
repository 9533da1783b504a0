"""On eight devices: what it is on one, and no table gathered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layouts import make_mesh, table_spec

from benchmarks.harness.compiled import collectives
from ember_optax import TokenTables, ember, regularizers, state_shardings

V, D = 96, 40
COUNTS = np.random.default_rng(1).poisson(3, V).astype(np.float32)
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(V, D)) + 0.3, jnp.float32)
slow = pytest.mark.slow  # compiling is what these tests cost
SPECS = pytest.mark.parametrize(
    "spec",
    [("fsdp", "tp"), *(pytest.param(spec, marks=slow) for spec in (("fsdp", None), (("tp", "fsdp"), None), (None, "tp")))],
    ids=str,
)
PARAMS = {"wte": TABLE, "lm_head": {"kernel": TABLE.T}}
SAMPLES = 4


def loss(params, key):
    """Every term, and no table alone."""
    sample = regularizers.sampled_tokens(COUNTS, key, SAMPLES)

    def terms(table, token_axis):
        return (
            regularizers.anisotropy(table, token_axis=token_axis)
            + regularizers.spectral_penalty(table, token_axis=token_axis)
            + regularizers.frequency_alignment(table, sample, token_axis=token_axis)
        )

    return regularizers.over_tables(terms, params)


TX = optax.chain(
    ember(1e-2, optax.adamw(1e-2)),
    regularizers.scale_by_frequency(decay=0.9),
    regularizers.cap_row_steps(5e-3),
    regularizers.center_rows("table", tables=TokenTables(exclude=["wte"])),
    regularizers.normalize_spectral_norm(10.0),
)


def step(params, opt_state, key):
    value, grads = jax.value_and_grad(loss)(params, key)
    updates, opt_state = TX.update(grads, opt_state, params, token_counts=COUNTS)
    return value, updates, opt_state


def test_tokens_are_sampled_from_explicit_counts():
    counts = jax.device_put(COUNTS, NamedSharding(make_mesh(AxisType.Explicit), PartitionSpec("fsdp")))
    found, wanted = (regularizers.sampled_tokens(one, jax.random.key(0), SAMPLES) for one in (counts, COUNTS))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def laid_out(spec, axis_type):
    mesh = make_mesh(axis_type)
    specs = {"wte": table_spec(spec, 0), "lm_head": {"kernel": table_spec(spec, 1)}}
    return jax.tree.map(functools.partial(NamedSharding, mesh), specs)


@functools.cache
def on_one_device():
    return jax.jit(step)(PARAMS, TX.init(PARAMS), jax.random.key(0))


@functools.cache
def compiled(spec, axis_type):
    shardings = laid_out(spec, axis_type)
    of_state = state_shardings(TX, PARAMS, shardings)
    params = jax.device_put(PARAMS, shardings)
    state = jax.jit(TX.init, out_shardings=of_state)(params)
    return jax.jit(step).lower(params, state, jax.random.key(0)).compile(), params, state


@SPECS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=slow)], ids=lambda t: t.name)
def test_is_what_it_is_on_one_device(spec, axis_type):
    program, params, state = compiled(spec, axis_type)
    got = program(params, state, jax.random.key(0))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(on_one_device()), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_explicit_axes_quickly():
    """One transformation that keeps nothing; the whole chain on explicit axes takes its time to compile."""
    tx, table = regularizers.center_rows(), jax.device_put(TABLE, laid_out(("fsdp", "tp"), AxisType.Explicit)["wte"])
    updates, _ = jax.jit(tx.update)({"wte": table}, tx.init({"wte": table}), {"wte": table})
    np.testing.assert_allclose(updates["wte"], TABLE - TABLE.mean(0), atol=1e-6)
    assert jax.typeof(updates["wte"]).sharding.spec == jax.typeof(table).sharding.spec


@SPECS
def test_no_table_is_gathered(spec):
    """Vectors over tokens or features and the sampled rows go between devices, and nothing of the size of a device's part."""
    found = collectives(compiled(spec, AxisType.Auto)[0])
    assert found
    assert max(one.elements for one in found) < V * D // 8, found


def test_the_look_for_gathers_can_fail():
    sharded = jax.device_put(TABLE, laid_out(("fsdp", None), AxisType.Auto)["wte"])
    found = collectives(jax.jit(lambda x: jnp.linalg.svd(x)[1]).lower(sharded).compile())
    assert max(one.elements for one in found) >= V * D


@pytest.mark.parametrize(
    "tx",
    [regularizers.center_rows(), regularizers.normalize_spectral_norm(1.0), regularizers.cap_row_steps(1.0)],
    ids=["center", "normalize", "cap"],
)
def test_a_part_of_a_table_is_refused(tx):
    """Inside `jax.shard_map`, where each device's rows would be taken for the table."""
    mesh = make_mesh(AxisType.Auto)
    spec = jax.sharding.PartitionSpec("fsdp")

    def update(table):
        return tx.update({"wte": table}, tx.init({"wte": table}), {"wte": table})[0]["wte"]

    with pytest.raises(ValueError, match=r"'wte' differs along the mesh axes \['fsdp'\]: inside jax.shard_map .*jax.jit"):
        jax.shard_map(update, mesh=mesh, in_specs=spec, out_specs=spec)(TABLE)
