"""Uses of a table on the host that once gave wrong rows in silence, and now are right or refused by name."""

import collections
import copy
import gc
import os
import pickle
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ember_optax import large_tables
from ember_optax.large_tables import _records

V, D = 1000, 4


def make(path=None, **options):
    return large_tables.HostTable((V, D), seed=0, path=path, **options)


@jax.jit
def update(fetched):
    return large_tables.update(
        fetched, jnp.where((fetched.ids < np.uint32(fetched.num_rows))[:, None], 1.0, 0.0) + 0 * fetched.rows, 0.1
    )


def step(table, ids):
    table.write(update(table.fetch(np.array(ids))))


def rows_of(table, ids):
    return np.asarray(table.fetch(np.array(ids)).rows[: len(ids)])


@pytest.mark.parametrize("size, dtype", [(1000, np.int8), (65536, np.int16), (70000, np.int16), (128, np.int8), (1000, jnp.int4)])
def test_padding_of_narrow_ids(size, dtype):
    """V is no number of the ids' dtype."""
    table = large_tables.HostTable((size, D), seed=0)
    fetched = table.fetch(np.array([5, -1, 7]).astype(dtype))
    assert fetched.ids[:3].tolist() == [5, 7, size]
    assert not large_tables.lookup(fetched.rows, fetched.places)[1].any()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2**31 + 8, 2**32 - 1])
def test_tables_of_more_rows_than_int32_has(size, tmp_path):
    with large_tables.HostTable((size, 1), jnp.bfloat16, seed=0, path=tmp_path / "t", reserve=False) as table:
        start = np.asarray(table.fetch(np.array([3, size - 1])).rows[:2])
        step(table, [3, -1, size - 1, size])
        assert np.asarray(table.fetch(np.array([3, size - 1])).last[:2]).tolist() == [1, 1]
        assert (rows_of(table, [3, size - 1]) != start).all()


def test_a_tree_in_another_order_is_restored_by_name(tmp_path):
    with make(tmp_path / "t") as table:
        table.save(collections.OrderedDict(b=jnp.ones(2), a=jnp.zeros(2)))
        restored = table.restore({"a": jnp.zeros(2), "b": jnp.zeros(2)})
    assert (restored["a"].tolist(), restored["b"].tolist()) == ([0, 0], [1, 1])


def test_numbers_of_a_saved_tree(tmp_path):
    with make(tmp_path / "t") as table:
        table.save({"step": 3, "rate": 0.1})
        assert table.restore({"step": 0, "rate": 0.0}) == {"step": 3, "rate": np.float32(0.1)}
        with pytest.raises(TypeError, match=r"\['step'\] is int64, which JAX restores as int32: save that"):
            table.save({"step": np.int64(3)})


def test_results_of_a_table_with_the_same_options():
    ours, theirs = make(), make()
    updated = update(theirs.fetch(np.array([1])))
    with pytest.raises(ValueError, match="fetched is of another table with the same options"):
        ours.write(updated)
    fetched = theirs.fetch(np.array([1]))
    with pytest.raises(ValueError, match="results are of another table"):
        large_tables.mean_over_micro_batches(ours, [(fetched, jnp.ones_like(fetched.rows))])


def test_a_result_of_two_updates_beside_a_skipped_batch():
    table = make()
    twice = update(update(table.fetch(np.array([1]))))
    fetched = table.fetch(np.array([1]))
    table.write(large_tables.update(fetched, jnp.full_like(fetched.rows, jnp.nan), 0.1))
    with pytest.raises(ValueError, match="fetched is the result of step 2"):
        table.write(twice)


def test_prefetch_of_other_rows_than_are_written():
    """Hard negatives of the batch before: the next batch has a row of theirs."""
    batches = [np.array([1, 2]), np.array([3, 4]), np.array([5, 6])]
    found = []
    for prefetch in (True, False):
        table = make()
        of_batches = table.prefetch(batches, lambda ids: ids) if prefetch else ((ids, table.fetch(ids)) for ids in batches)
        for ids, fetched in of_batches:
            table.write(update(table.fetch(np.array([1, 2, 3])) if ids[0] == 1 else fetched))
        found.append(rows_of(table, range(1, 7)))
    np.testing.assert_array_equal(*found)


def test_what_prefetch_read_is_trained_before_its_error():
    def batches():
        yield from (np.array([1]), np.array([2]))
        raise OSError("the text is gone")

    table = make()
    with pytest.raises(OSError, match="the text is gone"):
        for _, fetched in table.prefetch(batches(), lambda ids: ids):
            table.write(update(fetched))
    assert table.count == 2


def test_a_loop_ends_while_the_iterator_waits():
    waiting = threading.Event()

    def batches():
        yield from (np.array([1]), np.array([2]))
        waiting.wait()

    for _, fetched in make().prefetch(batches(), lambda ids: ids):
        update(fetched)
        break
    waiting.set()


def test_a_save_that_is_missing(tmp_path):
    with make(tmp_path / "t") as table:
        step(table, [1])
    (tmp_path / "t" / "save").unlink()
    with pytest.raises(ValueError, match="has rows, but its save is missing: restore a copy"):
        make(tmp_path / "t")


def test_a_process_that_died_while_it_made_the_folder(tmp_path):
    (tmp_path / "t").mkdir()
    for name in ("new", "rows"):
        (tmp_path / "t" / name).touch()
    with make(tmp_path / "t") as table:
        step(table, [1])
    assert not (tmp_path / "t" / "new").exists()


def test_files_of_different_times(tmp_path):
    """A row that a step after the save wrote is told when it is read."""
    with make(tmp_path / "t") as table:
        step(table, [1])
        table.save()
        older = tmp_path / "save"
        shutil.copy(tmp_path / "t" / "save", older)
        step(table, [2])
        step(table, [2])
        table.save()
    shutil.copy(older, tmp_path / "t" / "save")
    with make(tmp_path / "t") as table:
        step(table, [1])
        with pytest.raises(ValueError, match=r"does not fit its save: step 3 wrote the row at 2, but the table is at step 2"):
            table.fetch(np.array([2]))


def test_a_relative_path(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with make("t") as table:
        monkeypatch.chdir(tmp_path / "b")
        step(table, [1])
        table.save()
    assert (tmp_path / "a" / "t" / "save").exists() and not (tmp_path / "b" / "t").exists()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies(copied):
    with pytest.raises(TypeError, match="a HostTable cannot be copied or pickled"):
        copied(make())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process(monkeypatch):
    table = make()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ValueError, match=r"is of process \d+, from which this one was forked"):
        table.fetch(np.array([1]))


def test_two_threads_with_results_of_one_step():
    table = make()
    results, raised = [update(table.fetch(np.array([1]))) for _ in range(8)], []

    def write(result):
        try:
            table.write(result)
        except ValueError as error:
            raised.append(error)

    threads = [threading.Thread(target=write, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (table.count, len(raised)) == (1, 7)


def test_a_table_that_nobody_has_gives_its_folder_back(tmp_path):
    table = make(tmp_path / "t")
    del table
    gc.collect()
    make(tmp_path / "t").close()


def test_donated_rows_leave_the_table_as_it_is():
    table = make()
    jax.jit(lambda fetched: fetched.nu_feature + 1, donate_argnums=0)(table.fetch(np.array([1])))
    step(table, [1])
    assert table.count == 1


def test_rows_that_are_written_while_the_next_batch_is_gathered(tmp_path, monkeypatch):
    """A record is read before the write or after it, and never in two pieces, whose checksum would not fit."""
    take, main = _records.take, threading.current_thread()

    def in_pieces(records, ids, *into):
        found = take(records, ids, *into)
        if threading.current_thread() is not main:
            time.sleep(0.3)  # a disk may be this slow
            found["row"] = take(records, ids)["row"]
        return found

    batches = [np.array([number, 7]) for number in range(4)]
    with make(tmp_path / "t") as table:
        step(table, [7])
        monkeypatch.setattr(_records, "take", in_pieces)
        for _, fetched in table.prefetch(batches, lambda ids: ids):
            table.write(update(fetched))
        assert table.count == 5
