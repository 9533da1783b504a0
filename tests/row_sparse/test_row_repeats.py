"""A token that a batch repeats thousands of times, in 16 bits: sums are made in float32 and rounded once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from products import in_turn

from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember, stochastic_rounding
from ember_optax.losses import linear_softmax_cross_entropy

HALF = [jnp.bfloat16, jnp.float16]
N, V, D = 8192, 50, 4
RNG = np.random.default_rng(0)
# One token 4,096 times, one 1,024 times, the others some dozens of times, and padding.
IDS = jnp.asarray(RNG.permutation(np.repeat([7, 3, -1, *range(10, 40)], [4096, 1024, 102, *([99] * 30)]))[:N], jnp.int32)
UPSTREAM = 1e-3 * (1 + RNG.standard_normal((IDS.size, D)))


def exact(upstream, dtype, ids=IDS):
    """The gradient in float64, of what gets to the lookup in this dtype."""
    rounded = np.asarray(jnp.asarray(upstream, dtype).astype(jnp.float32), np.float64)
    dense = np.zeros((V, D))
    np.add.at(dense, np.asarray(ids)[np.asarray(ids) >= 0], rounded[np.asarray(ids) >= 0])
    return dense


def error(found, wanted, dtype):
    """In units of the last place of each number."""
    found = np.asarray(found.astype(jnp.float32), np.float64)
    spacing = float(jnp.finfo(dtype).eps) * np.maximum(np.abs(wanted), 1e-3)
    return np.max(np.abs(found - wanted) / spacing)


def table_of(dtype, token_axis=0):
    table = jnp.asarray(np.random.default_rng(1).standard_normal((V, D)), dtype)
    return table if token_axis == 0 else table.T


def dense_of(leaf):
    return jnp.zeros(leaf.shape, leaf.dtype) + leaf


def in_scan(table, **options):
    parts = IDS.reshape(64, -1), UPSTREAM.reshape(64, -1, D)
    return jax.lax.scan(lambda sum_, part: (sum_ + total(table, *part, **options), None), jnp.float32(0), parts)[0]


def in_many_lookups(table, **options):
    return sum(total(table, *part, **options) for part in zip(IDS.reshape(64, -1), UPSTREAM.reshape(64, -1, D), strict=True))


def total(table, ids=IDS, upstream=UPSTREAM, token_axis=0):
    rows = row_sparse.lookup(table, ids, token_axis=token_axis)
    return jnp.sum(rows.astype(jnp.float32) * jnp.asarray(upstream, rows.dtype).astype(jnp.float32))


def in_vmap(table, **options):
    parts = IDS.reshape(2, -1), UPSTREAM.reshape(2, -1, D)
    return jax.vmap(lambda ids, upstream: total(table, ids, upstream, **options))(*parts).sum()


def in_checkpoint(table, **options):
    return jax.checkpoint(lambda table: total(table, **options))(table)


def under_jit(table, **options):
    return jax.jit(lambda table: total(table, **options))(table)


@pytest.mark.parametrize("loss, dtype, token_axis", in_turn([total, in_vmap, in_checkpoint, under_jit], HALF, [0, 1]))
def test_the_gradient_of_a_lookup(loss, dtype, token_axis):
    """Of a whole table and of a slice. vmap adds up over its axis in the table's dtype only after each sum."""
    wanted = exact(UPSTREAM, dtype)
    table = table_of(dtype, token_axis)
    gradient = jax.jit(jax.grad(lambda table: loss(table, token_axis=token_axis)))(table)
    assert gradient.dtype == dtype
    assert error(gradient if token_axis == 0 else gradient.T, wanted, dtype) < 0.51
    told = {"tables": EmberDimensionNumbers(token_axis)}
    leaf = row_sparse.value_and_grad(lambda table: loss(table, token_axis=token_axis), **told)(table, IDS)[1]
    assert leaf.dtype == dtype
    compact = dense_of(leaf)
    assert error(compact if token_axis == 0 else compact.T, wanted, dtype) < 0.51


@pytest.mark.parametrize("loss, dtype", in_turn([in_scan, in_many_lookups], HALF))
def test_the_gradient_of_many_lookups(loss, dtype):
    """JAX adds the gradients of the turns of a loop up in the dtype of the rows, which are therefore kept in float32."""
    leaf = row_sparse.value_and_grad(loss)(table_of(dtype), IDS)[1]
    assert leaf.dtype == dtype
    assert error(dense_of(leaf), exact(UPSTREAM, dtype), dtype) < 0.51


def cast_leaves(table, dtype):
    """As mixed precision does with a whole tree."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, table)


def cast_table(table, dtype):
    return table.astype(dtype)


@pytest.mark.parametrize("first, stored, cast", in_turn([*HALF, jnp.float32], [*HALF, jnp.float32], [cast_leaves, cast_table]))
def test_lookups_have_the_dtype_of_the_last_cast(first, cast, stored):
    """And its values, as those of an array."""
    table = table_of(stored)
    wanted = row_sparse.lookup(table.astype(first).astype(jnp.float32), IDS)
    found = {}

    def loss(table):
        assert table.dtype == stored
        for name, looked_up in {"once": cast(table, first), "twice": cast(cast(table, first), jnp.float32)}.items():
            found[name] = row_sparse.lookup(looked_up, IDS)
        return jnp.sum(found["twice"])

    assert row_sparse.value_and_grad(lambda table: (loss(table), found), has_aux=True)(table, IDS)[1].dtype == stored
    _, aux = row_sparse.value_and_grad(lambda table: (loss(table), found), has_aux=True)(table, IDS)[0]
    assert [aux["once"].dtype, aux["twice"].dtype] == [first, jnp.float32]
    np.testing.assert_array_equal(aux["once"].astype(jnp.float32), wanted)
    np.testing.assert_array_equal(aux["twice"], wanted)


@pytest.mark.parametrize("dtype", HALF)
def test_after_a_cast_of_a_float32_table(dtype):
    """As in mixed precision."""
    wanted = exact(UPSTREAM, dtype)
    leaf = row_sparse.value_and_grad(lambda table: total(table.astype(dtype)))(table_of(jnp.float32), IDS)[1]
    assert leaf.dtype == jnp.float32
    assert error(dense_of(leaf), wanted, dtype) < 0.51


@pytest.mark.parametrize("dtype", HALF)
def test_rows_fewer_than_ids(dtype):
    """All rows are sliced where there are as many ids as rows; here there are fewer."""
    ids = jnp.where(IDS == 7, 7, -1)[:4096]
    big = jnp.zeros((5000, D), dtype)
    leaf = row_sparse.value_and_grad(lambda table: total(table, ids, UPSTREAM[:4096]))(big, ids)[1]
    assert leaf.rows.shape == (4096, D)
    assert error(dense_of(leaf)[:V], exact(UPSTREAM[:4096], dtype, ids), dtype) < 0.51


def test_the_lookup_can_be_differentiated_again():
    """Forward mode, and a second derivative, as before."""
    table, tangent = table_of(jnp.bfloat16), table_of(jnp.bfloat16)[::-1]
    rows, of_rows = jax.jvp(lambda table: row_sparse.lookup(table, IDS), (table,), (tangent,))
    np.testing.assert_array_equal(rows, row_sparse.lookup(table, IDS))
    np.testing.assert_array_equal(of_rows, row_sparse.lookup(tangent, IDS))

    def squared(table):
        return jnp.sum(row_sparse.lookup(table, IDS[:16]).astype(jnp.float32) ** 2)

    _, second = jax.jvp(jax.grad(squared), (table,), (tangent,))
    ids = IDS[:16]
    wanted = np.zeros((V, D))
    np.add.at(wanted, ids, 2 * np.asarray(row_sparse.lookup(tangent, ids), np.float64))
    assert error(second, wanted, jnp.bfloat16) < 0.51


@pytest.mark.parametrize("dtype", HALF)
def test_a_tied_fused_head(dtype):
    """Its statistics, against those of float32."""

    def loss(table, labels):
        rows = row_sparse.lookup(table, IDS).astype(jnp.float32)
        looked_up = jnp.sum(rows * jnp.asarray(UPSTREAM, dtype).astype(jnp.float32))
        hidden = jax.lax.stop_gradient(rows[:8])
        return looked_up + 1e-6 * linear_softmax_cross_entropy(hidden, table, labels).sum()

    gradient = row_sparse.value_and_grad(loss, heads="", tables=EmberDimensionNumbers())
    tap = gradient(table_of(dtype), IDS, jnp.arange(8))[1].tap
    wanted = exact(UPSTREAM, dtype) ** 2
    large = wanted.sum(1) > 1e-3
    np.testing.assert_allclose(tap.token_squares[large], wanted.sum(1)[large], rtol=2 * float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(tap.feature_squares, wanted.sum(0), rtol=2 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("token_axis", [0, 1])
def test_updates_of_ids_of_ones_own(token_axis, dtype):
    """Those of equal ids are added up before they meet the table."""
    updates = jnp.asarray(UPSTREAM, dtype)
    updates = updates if token_axis == 0 else updates.T
    table = jnp.zeros((V, D) if token_axis == 0 else (D, V), dtype)
    found = row_sparse.apply_updates(table, updates, IDS, tables=EmberDimensionNumbers(token_axis))
    assert error(found if token_axis == 0 else found.T, exact(UPSTREAM, dtype), dtype) < 0.51


@pytest.mark.parametrize("platform", ["accelerator", "cpu"])
def test_updates_on_every_platform(platform, monkeypatch):
    """A CPU writes the bits of a table, an accelerator its numbers."""
    from ember_optax._math import row_writes  # noqa: PLC0415

    if platform == "accelerator":
        monkeypatch.setattr(row_writes, "write_in_place", lambda write, table: write(table))
    ids = jnp.where(IDS < 0, V, IDS)
    found = row_writes.add_once(jnp.zeros((V, D), jnp.bfloat16), jnp.asarray(UPSTREAM, jnp.bfloat16), ids, 0)
    assert error(found, exact(UPSTREAM, jnp.bfloat16), jnp.bfloat16) < 0.51


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
@pytest.mark.parametrize("dtype", HALF)
def test_no_platform_adds_one_by_one_in_16_bits(platform, dtype):
    """In the program for each platform: scatters of 16 bits replace rows, and those that add are float32."""
    arguments = jnp.zeros((V, D), dtype), jnp.zeros((16, D), dtype), IDS[:16]
    text = jax.jit(row_sparse.apply_updates).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    narrow = "bf16" if dtype == jnp.bfloat16 else "f16"
    added = r"\(%arg\d+: tensor<{}>, %arg\d+: tensor<{}>\):\s*%\S+ = stablehlo.add"
    assert "stablehlo.scatter" in text and re.search(added.format("f32", "f32"), text)
    assert not re.search(added.format(narrow, narrow), text)


@pytest.mark.parametrize("dtype", HALF)
def test_statistics_of_ids_of_ones_own(dtype):
    tx = scale_by_ember(b2=0.0)
    table = table_of(dtype)
    _, state = tx.update(jnp.asarray(UPSTREAM, dtype), tx.init(table), table, token_ids=IDS)
    np.testing.assert_allclose(state.nu_token, (exact(UPSTREAM, dtype) ** 2).mean(1), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", HALF)
def test_sums_over_duplicates(dtype):
    summed = row_sparse.sum_over_duplicates(jnp.asarray(UPSTREAM, dtype), IDS, table_of(dtype))
    dense = np.zeros((V, D))
    np.add.at(dense, IDS[IDS >= 0], np.asarray(summed.astype(jnp.float32), np.float64)[IDS >= 0])
    assert error(jnp.asarray(dense), exact(UPSTREAM, dtype), dtype) < 0.51


@pytest.mark.parametrize("dtype", HALF)
def test_means_of_many_micro_batches(dtype):
    """Compact ones are added up where they are squared; dense ones in float32."""
    parts = 64
    stacked = jnp.asarray(UPSTREAM, dtype).reshape(parts, -1, D)
    grads, token_ids = row_sparse.mean_over_micro_batches(stacked, IDS.reshape(parts, -1), table_of(dtype))
    tx = scale_by_ember(b2=0.0)
    _, state = tx.update(grads, tx.init(table_of(dtype)), table_of(dtype), token_ids=token_ids)
    np.testing.assert_allclose(state.nu_token, ((exact(UPSTREAM, dtype) / parts) ** 2).mean(1), rtol=1e-3, atol=1e-12)
    ones = jnp.ones((4096, 3), dtype)
    np.testing.assert_array_equal(row_sparse.mean_over_micro_batches(ones, None)[0], 1.0)


def test_stochastic_rounding_of_equal_ids():
    """The sum is rounded, once."""
    table, updates = jnp.zeros((V, D), jnp.bfloat16), jnp.asarray(UPSTREAM, jnp.float32)
    tx = stochastic_rounding(0)
    rounded, _ = tx.update(updates, tx.init(table), table, token_ids=IDS)
    found = row_sparse.apply_updates(table, rounded, IDS)
    assert error(found, exact(UPSTREAM, jnp.float32), jnp.bfloat16) < 1.01


@pytest.mark.parametrize("dtype", HALF)
def test_a_step_of_ember(dtype):
    """nu_token after a row-sparse step of a 16-bit table is that of float32."""
    tx = ember(1e-2, optax.sgd(0.1), tables=EmberDimensionNumbers())

    def nu(dtype):
        _, leaf = row_sparse.value_and_grad(total)(table_of(dtype), IDS)
        return optax.tree.get(tx.update(leaf, tx.init(table_of(dtype)), table_of(dtype))[1], "nu_token")

    np.testing.assert_allclose(nu(dtype), nu(jnp.float32), rtol=3e-2, atol=1e-9)
