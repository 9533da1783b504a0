"""Steps on a table in host memory or in a file equal those with the table on the device; prefetch changes no bit."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from host_table_steps import RATE, D, V, batches, on_device, rows_of, run, stored_bytes

from ember_optax import ScaleByEmberState, large_tables, stochastic_rounding


@pytest.mark.parametrize("row", [(D,), (3, 4)], ids=["(V, D)", "(V, L, P)"])
@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_hundred_steps_equal_those_on_the_device(where, row, tmp_path):
    table = large_tables.HostTable((V, *row), seed=3, path=tmp_path / "table" if where == "file" else None)
    start, _ = rows_of(table)
    assert np.std(start) == pytest.approx(0.02, rel=0.05)
    run(table, batches(row=row))
    expected, state = on_device(jnp.asarray(start), batches(row=row))
    count, nu_token, nu_feature, total_notfinite = (optax.tree.get(state, name) for name in ScaleByEmberState._fields)
    found, found_nu = rows_of(table)
    assert np.abs(expected - start).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected - start).max())
    np.testing.assert_allclose(found_nu, nu_token, rtol=1e-6)
    np.testing.assert_allclose(table.nu_feature, nu_feature, rtol=1e-6)
    assert (table.count, table.total_notfinite) == (count, total_notfinite) == (96, 4)
    assert table.steps_lost == 0
    table.close()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: jnp.dtype(dtype).name)
def test_rows_of_16_bits_are_rounded_as_on_the_device(dtype):
    table = large_tables.HostTable((V, D), dtype, seed=3)
    start, _ = rows_of(table)
    run(table, batches(30))
    expected, _ = on_device(jnp.asarray(start, dtype), batches(30), stochastic_rounding(3))
    found, _ = rows_of(table)
    # The update is rounded to float32 in another order, which moves a number across a threshold in one of 10^5 draws.
    assert np.mean(found != np.asarray(expected, np.float32)) < 1e-3
    assert (found == np.asarray(jnp.asarray(found, dtype), np.float32)).all()


@pytest.mark.parametrize("where", ["memory", "file"])
def test_prefetch_changes_no_bit(where, tmp_path):
    plain, fetched_before = (
        large_tables.HostTable((V, D), jnp.bfloat16, seed=0, path=tmp_path / name if where == "file" else None)
        for name in ("plain", "prefetched")
    )
    run(plain, batches(40))
    run(fetched_before, batches(40), prefetch=True)
    assert stored_bytes(plain) == stored_bytes(fetched_before)
    assert (plain.nu_feature == fetched_before.nu_feature).all()
    plain.close()
    fetched_before.close()


def test_initial_rows_depend_on_seed_and_id_only():
    small, large = (large_tables.HostTable((rows, 4), seed=1) for rows in (100, 10**8))  # zeros that nobody reads
    ids = jnp.array([3, 99])
    assert (small.fetch(ids).rows[:2] == large.fetch(ids).rows[:2]).all()
    at_the_end = large.fetch(jnp.array([10**8 - 1, 10**8]))
    assert at_the_end.places.tolist() == [0, 64]
    assert (at_the_end.rows[0] != large.fetch(ids).rows[1]).all()
    assert (small.fetch(ids).rows[0] != large_tables.HostTable((100, 4), seed=2).fetch(ids).rows[0]).all()
    assert not large_tables.HostTable((100, 4), seed=1, std=0).fetch(ids).rows.any()


def test_initial_rows_are_normal():
    rows = large_tables.HostTable((4096, 64), seed=0, std=1.0).fetch(np.arange(4096)).rows
    assert float(rows.mean()) == pytest.approx(0, abs=0.01)
    assert float((rows**2).mean()) == pytest.approx(1, abs=0.01)
    assert float((rows**4).mean()) == pytest.approx(3, abs=0.1)


def test_a_few_sizes_are_compiled():
    compiled = jax.jit(large_tables.update)
    table = large_tables.HostTable((10_000, 2), seed=0)
    for count in range(0, 1000, 37):
        fetched = table.fetch(np.arange(1000) % max(count, 1))
        assert count <= len(fetched.rows) <= max(64, 1.5 * count)
        assert not np.asarray(fetched.rows)[max(count, 1) :].any()  # numbers are drawn for rows, not for padding
        table.write(compiled(fetched, fetched.rows, 0.1))
    assert compiled._cache_size() <= 9


def test_trees_of_ids_and_bags():
    table = large_tables.HostTable((100, 4), seed=0)
    fetched = table.fetch({"two": np.array([[5, 7], [7, -1]], np.int32), "three": np.array([9, 5], np.uint8)})
    found = large_tables.lookup(fetched.rows, fetched.places)
    row = {i: table.fetch(np.array([i])).rows[0] for i in (5, 7, 9)}
    np.testing.assert_array_equal(found["two"].sum(-2), jnp.stack([row[5] + row[7], row[7]]))
    np.testing.assert_array_equal(found["three"], jnp.stack([row[9], row[5]]))


def test_a_schedule_and_no_decay():
    """`b2=0` is the sign of a row's gradient, to the profile; its log is infinite."""
    table = large_tables.HostTable((100, 4), seed=0, b2=0.0, std=0)
    schedule = optax.constant_schedule(0.5)
    for _ in range(3):
        fetched = table.fetch(np.array([3]))
        table.write(
            large_tables.update(fetched, jnp.ones_like(fetched.rows) * (fetched.ids < 100)[:, None], schedule(fetched.count))
        )
    np.testing.assert_allclose(table.fetch(np.array([3])).rows[0], -1.5, rtol=1e-6)


def test_micro_batches_are_one_batch_of_their_mean():
    """An update every four batches, with rows that several of them have."""
    table, whole = (large_tables.HostTable((V, D), seed=0) for _ in range(2))
    given = [(ids, np.nan_to_num(compact)) for ids, compact in batches(40)]
    for start in range(0, 40, 4):
        part = given[start : start + 4]
        results = []
        for ids, compact in part:
            fetched = table.fetch(ids)
            summed = jax.grad(lambda rows, at=fetched.places, c=compact: jnp.sum(large_tables.lookup(rows, at) * c))
            results.append((fetched, summed(fetched.rows)))
        table.write(large_tables.update(*large_tables.mean_over_micro_batches(table, results), RATE))
        together = np.concatenate([ids for ids, _ in part]), np.concatenate([compact for _, compact in part]) / 4
        run(whole, [together])
    np.testing.assert_allclose(rows_of(table)[0], rows_of(whole)[0], atol=1e-6)
    # A step has nearly the size of the learning rate whatever the gradient's is. The averages have the gradient's.
    np.testing.assert_allclose(rows_of(table)[1], rows_of(whole)[1], rtol=1e-5)
    np.testing.assert_allclose(table.nu_feature, whole.nu_feature, rtol=1e-5)
    assert table.count == 10


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say how memory is read")
def test_the_system_is_told_that_rows_are_read_at_random(tmp_path):
    """Else it reads 128 KB around each row."""
    with large_tables.HostTable((V, D), seed=0, path=tmp_path / "table"):
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    of_rows = smaps[smaps.index(str(tmp_path / "table" / "rows")) :]
    assert " rr " in re.search("VmFlags:.*", of_rows).group() + " "
