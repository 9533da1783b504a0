"""A table in a file is that of its last save, wherever the process died, and damage is refused by name."""

import errno
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from saved_tables import PARAMS, V, contents, open_table, take_step, tree_at

from ember_optax import large_tables
from ember_optax.large_tables import _folder, _records, _save_file, _undo_log


@pytest.fixture(scope="module")
def expected():
    """The contents after each step of a run that nothing interrupts."""
    table, found = open_table(None), []
    for _ in range(13):
        found.append(contents(table))
        take_step(table)
    return found


def test_a_save_keeps_rows_state_and_tree(tmp_path, expected):
    with open_table(tmp_path / "t") as table:
        for _ in range(5):
            take_step(table)
        table.save(tree_at(5))
        assert contents(table) == expected[5]
    with open_table(tmp_path / "t") as table:
        assert (contents(table), table.steps_lost) == (expected[5], 0)
        tree = table.restore(PARAMS)
        assert tree["step"] == 5
        assert tree["narrow"].dtype == jnp.bfloat16
        take_step(table)
        assert contents(table) == expected[6]


def test_closing_without_a_save_returns_to_the_save(tmp_path, expected):
    with open_table(tmp_path / "t") as table:
        for step in range(6):
            take_step(table)
            if step == 2:
                table.save(tree_at(3))
    with open_table(tmp_path / "t") as table:
        assert (contents(table), table.steps_lost) == (expected[3], 3)
        assert table.restore(PARAMS)["step"] == 3


# Where a process may die: before and after each of these calls, of which `dies` makes one raise.
PLACES = {
    "before the log is appended to": (_undo_log.UndoLog, "append", False),
    "after the log was appended to": (_undo_log.UndoLog, "append", True),
    "after the rows were written": (_records, "put", True),
    "before the save's file is written": (_save_file, "write_beside", False),
    "before the save's file is renamed": (os, "replace", False),
    "after the save's file was renamed": (os, "replace", True),
    "after the logs were removed": (_folder.Folder, "_remove_logs", True),
}


class Died(BaseException):
    """As a kill: no handler of errors catches it."""


@pytest.mark.parametrize("place", PLACES)
def test_a_process_dies(place, tmp_path, expected, monkeypatch):
    owner, name, after = PLACES[place]
    table, copy, real = open_table(tmp_path / "t"), tmp_path / "copy", getattr(owner, name)
    for _ in range(3):
        take_step(table)
    table.save(tree_at(3))
    for _ in range(2):
        take_step(table)

    def dies(*args):
        if after:
            real(*args)
        shutil.copytree(tmp_path / "t", copy)
        raise Died

    monkeypatch.setattr(owner, name, dies)
    try:
        take_step(table)
        table.save(tree_at(6))
    except Died:
        pass
    monkeypatch.undo()
    table.close()
    with open_table(copy) as table:
        is_saved = place in ("after the save's file was renamed", "after the logs were removed")
        saved = 6 if is_saved else 3
        assert contents(table) == expected[saved]
        assert table.restore(PARAMS)["step"] == saved
        assert table.steps_lost <= 3
        assert sorted(p.name for p in copy.iterdir()) in (["lock", "rows", "save"], ["lock", "rows", "save", "save.new"])


def test_half_of_the_rows_were_written(tmp_path, expected, monkeypatch):
    table, real = open_table(tmp_path / "t"), _records.put
    for _ in range(2):
        take_step(table)
    table.save()

    def half(records, ids, new):
        real(records, ids[::2], new[::2])
        raise Died

    monkeypatch.setattr(_records, "put", half)
    with pytest.raises(Died):
        take_step(table)
    monkeypatch.undo()
    table.close()
    with open_table(tmp_path / "t") as table:
        assert (contents(table), table.steps_lost) == (expected[2], 1)


@pytest.mark.parametrize("left", [1, 19, 500])
def test_an_entry_of_the_log_was_written_in_part(left, tmp_path, expected):
    table = open_table(tmp_path / "t")
    take_step(table)
    before = contents(table)
    with open(tmp_path / "t" / "undo.1", "rb") as log:
        whole = log.read()
    table.close()
    with open_table(tmp_path / "t") as table:
        assert contents(table) == expected[0] != before
    (tmp_path / "t" / "undo.1").write_bytes(whole[:left])  # its rows were not touched
    with open_table(tmp_path / "t") as table:
        assert contents(table) == expected[0]


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_changes_nothing(tmp_path, expected, monkeypatch):
    table = open_table(tmp_path / "t")
    take_step(table)
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(OSError, match=r"step was not written.*free space") as raised:
        take_step(table)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="nothing was saved"):
        table.save(tree_at(1))
    monkeypatch.undo()
    assert contents(table) == expected[1]
    take_step(table)
    table.save(tree_at(2))
    table.close()
    with open_table(tmp_path / "t") as table:
        assert contents(table) == expected[2]


def test_too_little_space_for_the_file(tmp_path):
    with pytest.raises(OSError, match=r"needs [\d,]+ bytes.*are free: choose another path, or pass reserve=False"):
        large_tables.HostTable((4_000_000_000, 4096), seed=0, path=tmp_path / "t")


DAMAGE = {
    "rows": (lambda path: os.truncate(path / "rows", 100), r"rows.* has 100 bytes, but a table of 5,000 rows needs 180,000"),
    "no rows": (lambda path: os.remove(path / "rows"), "rows.* is missing, but a table of"),
    "save": (lambda path: flip(path / "save", 200), "save.* is damaged: its checksum"),
    "short save": (lambda path: os.truncate(path / "save", 100), "save.* is damaged"),
    "another file": (lambda path: (path / "save").write_bytes(b"text"), "is no save of a large table"),
    "log": (lambda path: flip(path / "undo.1", 30), "undo.1 is damaged at byte 0"),
    "foreign": (lambda path: (path / "notes.txt").write_text("x"), r"holds other files, \['notes.txt'\]"),
}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_by_name(what, tmp_path):
    with open_table(tmp_path / "t") as table:
        take_step(table)
    damage, message = DAMAGE[what]
    damage(tmp_path / "t")
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / "t")


def test_a_damaged_row_is_refused(tmp_path):
    with open_table(tmp_path / "t") as table:
        take_step(table)
        table.save()
        size, touched = table._records.itemsize, np.flatnonzero(table._records["last"])
    flip(tmp_path / "t" / "rows", int(touched[1]) * size + size - 1)
    with open_table(tmp_path / "t") as table:
        with pytest.raises(ValueError, match=f"rows is damaged: .* of 1 of the 2 rows .* is at {touched[1]:,} in the file"):
            table.fetch(touched[:2])
        table.fetch(touched[:1])
        table.fetch(touched[:0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda dtype: jnp.dtype(dtype).name)
def test_every_bit_and_the_place_of_a_record_are_checked(dtype, tmp_path):
    with large_tables.HostTable((V, 5), dtype, seed=0, path=tmp_path / "t") as table:
        take_step(table)
        records, places = table._records, np.flatnonzero(table._records["last"])[:2]
        found = _records.take_checked(records, places, 1)
        _records.put(records, places, found[::-1])
        with pytest.raises(ValueError, match="of 2 of the 2 rows"):
            _records.take_checked(records, places, 1)
        _records.put(records, places, found)
        unwritten = np.flatnonzero(records["last"] == 0)[0]
        for place in (places[0], unwritten):
            before = records[place].tobytes()
            for bit in range(8 * records.itemsize):
                word = np.frombuffer(before, np.uint8).copy()
                word[bit // 8] ^= 1 << bit % 8
                _records.put(records, np.array([place]), word.view(records.dtype))
                with pytest.raises(ValueError, match="is damaged"):
                    _records.take_checked(records, np.array([place]), 1)
            _records.put(records, np.array([place]), np.frombuffer(before, records.dtype))
        _records.take_checked(records, np.arange(V), 1)


def test_one_writer(tmp_path):
    with open_table(tmp_path / "t"), pytest.raises(ValueError, match="is open in another HostTable: two writers"):
        open_table(tmp_path / "t")
    open_table(tmp_path / "t").close()
