"""What each platform is given: the same numbers, in the form that moves least there. Lowered for platforms that are not here."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import make_mesh
from x64 import enable_x64

from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember
from ember_optax._math import row_writes
from ember_optax._math.axes import TableAxes
from ember_optax._math.moments import decay_rate
from ember_optax._math.platform_forms import _means_at_once, _means_one_by_one, times_one
from ember_optax._math.rounding import bits_at, places_of
from ember_optax._math.row_writes import add_once, scatter_add
from ember_optax._math.state import init_moments
from ember_optax._math.step import Hyperparameters, ember_step
from ember_optax.losses import linear_softmax_cross_entropy

AXES = TableAxes(token=(0,), feature=(1,), batch=())


def lowered_for(platform, function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform, barriers", [("cpu", 3), ("tpu", 1), ("cuda", 1), ("rocm", 1)])
def test_only_a_cpu_reads_the_gradient_behind_barriers(platform, barriers):
    """One barrier is that of the roots; another would cost a TPU a fifth of the step, a missing one a CPU three times of it."""
    g = jnp.ones((64, 32))
    text = lowered_for(
        platform, lambda g: ember_step(g, init_moments(g, AXES), Hyperparameters(decay_rate(0.999), 1e-8, 0.0), axes=AXES), g
    )
    assert text.count("stablehlo.optimization_barrier") == barriers


def test_rows_are_read_behind_a_barrier():
    """Beside that of the roots; without it XLA writes their squares to memory."""
    table, rows, ids = jnp.ones((64, 32)), jnp.ones((4, 32)), jnp.arange(4)
    tx = scale_by_ember()
    text = lowered_for("cpu", lambda rows: tx.update(rows, tx.init(table), table, token_ids=ids), rows)
    assert text.count("stablehlo.optimization_barrier") == 2


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_on_several_devices_the_gradient_is_made_first(platform):
    """Otherwise the whole gradient that was summed over devices stays until the last of its readers has read it."""
    sharding = NamedSharding(make_mesh(AxisType.Auto), P("fsdp"))
    g = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=sharding)
    text = lowered_for(
        platform, lambda g: ember_step(g, init_moments(g, AXES), Hyperparameters(decay_rate(0.999), 1e-8, 0.0), axes=AXES), g
    )
    assert text.count("stablehlo.optimization_barrier") == 2


def test_a_mesh_of_one_device_is_none():
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Auto,))
    g = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, P("fsdp")))
    text = lowered_for(
        "tpu", lambda g: ember_step(g, init_moments(g, AXES), Hyperparameters(decay_rate(0.999), 1e-8, 0.0), axes=AXES), g
    )
    assert text.count("stablehlo.optimization_barrier") == 1


def test_places_along_columns_are_hashed_once():
    """Into an array of their own, by a reduction: otherwise a CPU hashes each of them again for every row."""
    text = lowered_for("cpu", lambda key: bits_at(key, places_of((64, 32))), jnp.uint32(3))
    assert len(re.findall(r"stablehlo.reduce\(.*tensor<1x32xui32>", text)) == 1
    assert "stablehlo.reduce" not in lowered_for("cpu", lambda key: bits_at(key, places_of((64,))), jnp.uint32(3))


def test_both_forms_of_the_statistics_agree():
    g = jnp.asarray(np.random.default_rng(0).normal(size=(3001, 700)), jnp.float32)
    for one, other in zip(
        *(jax.jit(form, static_argnums=1)(g, AXES) for form in (_means_at_once, _means_one_by_one)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_narrow_table_is_scattered_into_as_it_is(platform, dtype):
    """Where its bits are integers, or it is float32 for a while, these compilers copy all of it."""
    table, ids = jnp.zeros((64, 8), dtype), jnp.array([5, 1, 5, -1])
    tx = ember(1e-3, optax.adamw(1e-3), tables=EmberDimensionNumbers())

    def step(table, grads, ids):
        updates, _ = tx.update(grads, tx.init(table), table, token_ids=ids)
        return row_sparse.apply_updates(table, updates, ids)

    for updates in (jnp.ones((4, 8), dtype), jnp.ones((4, 8), jnp.float32)):
        text = lowered_for(platform, step, table, updates, ids)
        assert "bitcast_convert" not in text
        assert "64x8xf32" not in text
        assert f"64x8x{'bf16' if dtype == 'bfloat16' else 'f16'}" in text


def test_ids_that_are_told_to_be_unique_are(monkeypatch):
    """Padding too: what a scatter makes of the same index twice, beyond the array or not, JAX leaves open."""
    table, rows, ids = jnp.zeros((8, 2)), jnp.ones((5, 2)), jnp.array([3, 8, 8, 0, 8], jnp.int32)
    assert "unique_indices = true" in lowered_for("tpu", lambda *arrays: row_writes.set_rows(*arrays, 0), table, rows, ids)
    given = []
    monkeypatch.setattr(row_writes, "_at", lambda ids_N, _: given.append(ids_N) or (ids_N,))
    row_writes.set_rows(table, rows, ids, 0)
    row_writes.add_once(table, rows, ids, 0)
    assert len(given) == 2
    for ids_N in given:
        assert len(set(ids_N.tolist())) == 5
        assert {token for token in ids_N.tolist() if token < 8} == {0, 3}


@pytest.mark.parametrize("token_axis", [0, 1])
def test_all_forms_of_adding_rows_agree(token_axis, monkeypatch):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(50, 6) if token_axis == 0 else (6, 50)), jnp.bfloat16)
    ids = jnp.array([7, 50, 3, 49, 7, 50, 0], jnp.int32)  # 50 is padding
    rows = jnp.asarray(rng.normal(size=(7, 6)), jnp.bfloat16).at[4].set(0)  # as updates come: zeros where a row stands again
    wide = jnp.asarray(rng.normal(size=(7, 6)), jnp.float32)
    added, bits, wide_bits = (
        form(table, new, ids, token_axis) for form, new in ((scatter_add, rows), (add_once, rows), (add_once, wide))
    )
    monkeypatch.setattr(row_writes, "write_in_place", lambda write, table: write(table))  # as on an accelerator
    once, wide_once = (add_once(table, new, ids, token_axis) for new in (rows, wide))
    expected = np.moveaxis(np.array(table), token_axis, 0)
    for row, token in zip(rows, ids, strict=True):
        if token < 50:
            expected[token] += row
    for found in (once, bits, added):
        np.testing.assert_array_equal(np.moveaxis(np.asarray(found), token_axis, 0), expected)
    np.testing.assert_array_equal(wide_once, wide_bits)


def test_float64_rows_are_added_to_a_float32_table():
    with enable_x64(True):
        table, ids = jnp.ones((8, 2), jnp.float32), jnp.array([3, 0, 3], jnp.int32)
        found = row_sparse.apply_updates(table, jnp.full((3, 2), 0.25, jnp.float64), ids)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, table.at[ids].add(0.25))


@pytest.mark.parametrize("platform, factors", [("tpu", 2), ("cpu", 0), ("cuda", 0)])
def test_chunks_of_a_float32_head_are_multiplied_by_one_on_a_tpu(platform, factors):
    """In both passes; without it the compiler keeps a copy of the table in bfloat16."""
    hidden, labels = jnp.ones((6, 5)), jnp.zeros(6, jnp.int32)

    def gradient(table):
        return jax.grad(lambda table: linear_softmax_cross_entropy(hidden.astype(table.dtype), table, labels, chunk=16).sum())(
            table
        )

    def found(dtype):
        text = lowered_for(platform, gradient, jnp.ones((32, 5), dtype))
        return len(re.findall(r"stablehlo.multiply .* : tensor<16x5x", text))

    assert found(jnp.float32) == factors
    assert found(jnp.bfloat16) == 0


@pytest.mark.parametrize("start", [0, 1, 16, 2**30])
def test_the_factor_is_one(start):
    chunk = jnp.asarray([[1.5, -0.0, jnp.inf, jnp.nan]])
    for labels in ([0], [0, 7], [2**24, 3]):
        found = jax.jit(times_one)(chunk, start, jnp.asarray(min(labels), jnp.int32))
        np.testing.assert_array_equal(found.view(jnp.uint32), chunk.view(jnp.uint32))
