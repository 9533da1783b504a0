"""Rows split by id over processes and devices: steps equal those of one process, and all processes have the same save."""

import functools
import os
import re
import shutil
import signal
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_processes
from host_table_steps import RATE, D, V, batches, on_device, over, rows_of, run, step, stored_bytes
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ember_optax import ScaleByEmberState, large_tables
from ember_optax.large_tables import _folder, _save_file

EACH_TYPE = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)


def mesh_of_all(axis_type=AxisType.Auto):
    return jax.make_mesh((len(jax.devices()) // 2, 2), ("data", "model"), axis_types=(axis_type,) * 2)


def given_over(mesh, given):
    for ids, compact in given:
        yield over(mesh, ids), over(mesh, compact)


def compare(mesh, steps, path=None, *, prefetch=False, row=(D,)):
    """Steps over the mesh, and the row-sparse steps on one device."""
    table = large_tables.HostTable((V, *row), seed=3, path=path, mesh=mesh)
    start, _ = rows_of(table, mesh)
    run(table, given_over(mesh, batches(steps, row=row)), prefetch)
    expected, state = on_device(jnp.asarray(start), batches(steps, row=row))
    count, nu_token, nu_feature, total_notfinite = (optax.tree.get(state, name) for name in ScaleByEmberState._fields)
    found, found_nu = rows_of(table, mesh)
    moved = np.abs(expected - start).max()
    assert moved > RATE
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * moved)
    np.testing.assert_allclose(found_nu, nu_token, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(table.nu_feature), nu_feature, rtol=1e-6)
    assert (table.count, table.total_notfinite) == (count, total_notfinite)
    return table


def test_steps_over_eight_devices():
    compare(mesh_of_all(), 8, prefetch=True)


@pytest.mark.slow  # other programs for each layout
@EACH_TYPE
@pytest.mark.parametrize("spec", [("data",), (None, "model"), ("model", "data"), ()], ids=str)
def test_ids_in_other_layouts(spec, axis_type):
    """The ids of a batch split over some of the axes, others having copies; a tree of ids; the same rows as one process reads."""
    mesh, one = mesh_of_all(axis_type), large_tables.HostTable((V, D), seed=3)
    table = large_tables.HostTable((V, D), seed=3, mesh=mesh)
    sharding, rng = NamedSharding(mesh, PartitionSpec(*spec)), np.random.default_rng(0)

    @jax.jit
    def value_and_grads(fetched, weights):
        def loss_fn(rows):
            found = large_tables.lookup(rows, fetched.places)
            return sum(jnp.sum(found[name] * weights[name]) for name in found), found

        (_, found), row_grads = jax.value_and_grad(loss_fn, has_aux=True)(fetched.rows)
        return found, large_tables.update(fetched, row_grads, RATE)

    for _ in range(2):
        ids = {"two": rng.integers(-3, V + 3, (8, 4)).astype(np.int32), "three": rng.integers(0, 9, (8, 8, 2)).astype(np.int32)}
        weights = {name: rng.normal(size=(*of.shape, D)).astype(np.float32) for name, of in ids.items()}
        found, fetched = value_and_grads(table.fetch(jax.device_put(ids, sharding)), jax.device_put(weights, sharding))
        expected, of_one = value_and_grads(one.fetch(ids), weights)
        # Another program rounds initial rows in another order.
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-7), found, expected)
        table.write(fetched)
        one.write(of_one)
    np.testing.assert_allclose(table._records["row"], one._records["row"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(table._records["nu_token"], one._records["nu_token"], rtol=1e-6)


@pytest.mark.slow  # two more processes
def test_steps_in_two_processes(tmp_path):
    for printed in two_processes.outputs(__file__, "steps", str(tmp_path / "t")):
        assert printed.splitlines()[-1] == "all equal", printed


def in_two_processes(path):
    """100 steps in memory and in a file, equal to the device, and with prefetch bit for bit as without; micro-batches."""
    mesh = mesh_of_all()
    plain = compare(mesh, 100)
    with compare(mesh, 100, path, prefetch=True) as table:
        assert stored_bytes(table) == stored_bytes(plain)
        assert np.asarray(table.nu_feature).tobytes() == np.asarray(plain.nu_feature).tobytes()
        assert len(table._records) == V // 2
    narrow = [large_tables.HostTable((V, D), jnp.bfloat16, seed=3, mesh=mesh) for _ in range(2)]
    for table, prefetch in zip(narrow, (False, True), strict=True):
        run(table, given_over(mesh, batches(8)), prefetch)
    assert (narrow[0]._records == narrow[1]._records).all()
    one = large_tables.HostTable((V, D), jnp.bfloat16, seed=3)
    run(one, batches(8))
    # The statistics are added up in another order, which moves a number across a threshold in few draws.
    assert np.mean(one._records[jax.process_index() :: 2]["row"] != narrow[0]._records["row"]) < 1e-3
    micro_batches(mesh)


def micro_batches(mesh):
    """An update every two batches is one of their mean."""
    over_mesh, one = (large_tables.HostTable((V, D), seed=3, mesh=of) for of in (mesh, None))
    row_grads_of = jax.jit(
        lambda fetched, compact: jax.grad(lambda rows: jnp.sum(large_tables.lookup(rows, fetched.places) * compact))(fetched.rows)
    )
    plain = [(ids, np.nan_to_num(compact)) for ids, compact in batches(4)]
    for table, given in ((over_mesh, given_over(mesh, plain)), (one, plain)):
        results = []
        for ids, compact in given:
            results.append((fetched := table.fetch(ids), row_grads_of(fetched, compact)))
            if len(results) == 2:
                table.write(jax.jit(large_tables.update)(*large_tables.mean_over_micro_batches(table, results), RATE))
                results = []
    np.testing.assert_allclose(over_mesh._records["row"], one._records[jax.process_index() :: 2]["row"], atol=1e-7)
    np.testing.assert_allclose(np.asarray(over_mesh.nu_feature), one.nu_feature, rtol=1e-5)
    assert over_mesh.count == 2


# Where one of two processes dies in a save: which process, around which call, after it or before; and whether the save may be
# the last one of both. If a process has written its file, it depends on the other, which is not known here.
DEATHS = [
    (0, (_save_file, "write_beside"), False, {False}),
    (1, (_save_file, "write_beside"), True, {False, True}),
    (0, (_save_file, "replace"), False, {True}),
    (1, (_save_file, "replace"), True, {True}),
    (0, (_folder.Folder, "_remove_logs"), True, {True}),
]


@pytest.mark.slow  # twelve processes
def test_one_of_two_processes_dies_in_a_save(tmp_path):
    """Both have the same save afterwards. Each pair of processes looks at what the pair before left, and then dies itself."""
    at_step, may_be_saved = 0, {True}
    for number in [*range(len(DEATHS)), -1]:
        end = two_processes.until_one_dies if number >= 0 else two_processes.outputs
        printed = end(__file__, "save", str(tmp_path / "t"), str(number))
        opened = [re.search(r"at step (\d+), (\d+) lost, as in memory", output) for output in printed]
        assert all(opened), printed
        assert len({found.groups() for found in opened}) == 1, printed
        saved = int(opened[0][1]) == at_step
        assert saved in may_be_saved, printed
        assert int(opened[0][2]) == (0 if saved else 2), printed
        at_step, may_be_saved = int(opened[0][1]) + 2, DEATHS[number][-1]


def take_step(table, mesh):
    """A step whose batch and gradient follow from the step's number."""
    rng = np.random.default_rng(table.count)
    ids, compact = rng.integers(0, V, 16), rng.normal(size=(16, D)).astype(np.float32)
    table.write(step(table.fetch(over(mesh, ids)), over(mesh, compact)))


def contents(table):
    return zlib.crc32(stored_bytes(table)), np.asarray(table.nu_feature).tobytes(), table.count


def open_and_die(path, number):
    """Compares the folders with a table in memory after as many steps. Takes two more steps, and dies in a save."""
    mesh, in_memory = mesh_of_all(), large_tables.HostTable((V, D), seed=0, mesh=mesh_of_all())
    table = large_tables.HostTable((V, D), seed=0, mesh=mesh, path=path)
    for _ in range(table.count):
        take_step(in_memory, mesh)
    assert contents(table) == contents(in_memory)
    if table.count:
        tree = table.restore({"step": over(mesh, np.zeros(8, np.int32))})
        assert tree["step"].sharding == NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        assert all((shard.data == table.count).all() for shard in tree["step"].addressable_shards)
    print(f"opened at step {table.count}, {table.steps_lost} lost, as in memory", flush=True)
    for _ in range(2):
        take_step(table, mesh)
    if number >= 0:
        process, (owner, name), after, _ = DEATHS[number]
        real = getattr(owner, name)

        def dies(*args):
            if after:
                real(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        if process == jax.process_index():
            setattr(owner, name, dies)
    table.save({"step": np.full(8, table.count, np.int32)})


@pytest.mark.slow  # two more processes
def test_two_processes_refuse_by_name(tmp_path):
    for printed in two_processes.outputs(__file__, "refuse", str(tmp_path)):
        assert printed.splitlines()[-1] == "all refused", printed


def by_process(*messages):
    """A context that expects the error of this process."""
    kind, message = messages[jax.process_index() % len(messages)]
    return pytest.raises(kind, match=message)


def alone(action):
    """Process 0 does it, between two meetings of both."""
    sync_global_devices("before")
    if jax.process_index() == 0:
        action()
    sync_global_devices("after")


def refuse(folder):
    mesh, here = mesh_of_all(), jax.process_index()

    def make(path=None, **options):
        return large_tables.HostTable((V, D), path=path, **{"seed": 0, "mesh": mesh, **options})

    with by_process((ValueError, "process 1 makes a table with other options"), (ValueError, "process 0 makes a table")):
        make(seed=here)
    table = make()
    given = [over(mesh, np.zeros(8, np.int64))] * (3 - here)
    with by_process((ValueError, "batches end in process 1, and others have more: give every process as many")):
        for _, fetched in table.prefetch(given, lambda ids: ids):
            table.write(step(fetched, over(mesh, np.ones((8, D), np.float32))))
    assert table.count == 1
    table.count += here
    with by_process((ValueError, r"processes are at different steps, \[1, 2\]")):
        table.fetch(given[0])
    with pytest.raises(ValueError, match=r"ids must be arrays over the table's mesh, got .*jax\.make_array_from"):
        table.fetch(np.array([3]))
    refuse_folders(folder, make, mesh)


def refuse_folders(folder, make, mesh):
    path, here = folder / "t", jax.process_index()
    part = [path / f"part_{process}_of_2" for process in range(2)]
    with make(path) as table:
        take_step(table, mesh)
        with by_process((ValueError, "leaf \\['w'\\] is split over processes.*process_allgather")):
            table.save({"w": over(mesh, np.zeros(8))})
        fsync, os.fsync = os.fsync, full_disk if here else os.fsync
        with by_process((RuntimeError, "process 1 failed to save, so no process did"), (OSError, "nothing was saved")):
            table.save()
        os.fsync = fsync
        take_step(table, mesh)
        assert not (part[here] / "save.new").exists()
        alone(lambda: shutil.copytree(path, folder / "old"))
        table.save()
    with make(path) as table:
        assert (table.count, table.steps_lost) == (2, 0)
        with by_process((ValueError, "is open in another HostTable: two writers")):
            make(path)
    alone(lambda: (part[0].rename(path / "x"), part[1].rename(part[0]), (path / "x").rename(part[1])))
    with by_process((ValueError, rf"part is \[{here}, 2\], but .* made with \[{1 - here}, 2\]")):
        make(path)
    alone(lambda: (shutil.rmtree(part[1]), part[0].rename(part[1])))
    with by_process(
        (ValueError, r"has the parts of the processes \[1\], but not that of this process, 0"),
        (RuntimeError, "process 0 failed to open its part of the table"),
    ):
        make(path)
    alone(lambda: (folder / "old" / "part_0_of_2").rename(part[0]))
    with by_process((ValueError, r"no save in common: their last saves have the numbers \[1, 2\]")):
        make(path)
    alone(lambda: large_tables.HostTable((V, D), seed=0, path=folder / "one").close())
    with by_process((ValueError, "is split over 1 process, but this one over 2: start as many as before")):
        make(folder / "one")


def full_disk(*_):
    raise OSError(28, "No space left on device")


def _main(what, path, *number):
    """What one of two processes does."""
    if what == "steps":
        in_two_processes(Path(path))
        print("all equal", flush=True)
    elif what == "save":
        open_and_die(Path(path), int(*number))
    else:
        refuse(Path(path))
        print("all refused", flush=True)


if __name__ == "__main__":
    _main(*two_processes.join())
