"""Tables on the host: their options, ids, results of steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from ember_optax import large_tables

GRADS = jnp.ones((64, 4))


def table(shape=(100, 4), dtype=jnp.float32, **options):
    return lambda: large_tables.HostTable(shape, dtype, **{"seed": 0, **options})


def fetched(ids=(3, 7), **options):
    return table(**options)().fetch(np.array(ids))


def fetch(ids):
    return lambda: table()().fetch(ids)


def update(rows=None, row_grads=GRADS, learning_rate=0.1):
    return lambda: large_tables.update(fetched() if rows is None else rows, row_grads, learning_rate)


def lookup(rows, places):
    return lambda: large_tables.lookup(rows, places)


def fetch_traced(ids):
    return table()().fetch(ids).rows


def write_traced():
    one = table()()
    jax.jit(lambda fetched: one.write(large_tables.update(fetched, GRADS, 0.1)))(one.fetch(np.array([3])))


def write(change, **options):
    """Writes what `change` makes of the result of a step, and of a table of these options."""

    def provoke():
        ours = table()()
        theirs = table(**options)() if options else ours
        ours.write(change(large_tables.update(theirs.fetch(np.array([3, 7])), GRADS, 0.1)))

    return provoke


def write_untouched():
    one = table()()
    one.write(one.fetch(np.array([3])))


def write_twice():
    one = table()()
    rows = large_tables.update(one.fetch(np.array([3])), GRADS, 0.1)
    one.write(rows)
    one.write(rows)


def two_fetches():
    one = table()()
    first, second = one.fetch(np.array([3])), one.fetch(np.array([4]))
    for rows in (second, first):
        one.write(large_tables.update(rows, GRADS, 0.1))


def no_write():
    for _ in table()().prefetch([np.array([3])] * 2, lambda batch: batch):
        pass


def wrong_prefetch():
    next(table()().prefetch([np.array([0.5])], lambda batch: batch))


def closed(use):
    def provoke():
        one = table()()
        one.close()
        use(one)

    return provoke


def micro(results, **options):
    return lambda: large_tables.mean_over_micro_batches(options.get("table") or table()(), results)


def micro_batch_before_a_write():
    one = table()()
    large_tables.mean_over_micro_batches(one, [(dataclasses.replace(one.fetch(np.array([3])), count=jnp.int32(4)), GRADS)])


def mesh_of(axis):
    return jax.make_mesh((len(jax.devices()),), (axis,))


def over_mesh(use):
    """`use` of a table over a mesh, and of ids over it."""

    def provoke():
        mesh = mesh_of("data")
        use(table(mesh=mesh)(), jax.device_put(np.arange(mesh.size), NamedSharding(mesh, PartitionSpec("data"))))

    return provoke


def inside_shard_map(one, ids):
    fetched = one.fetch(ids)
    step = functools.partial(large_tables.update, fetched, fetched.rows, 0.1)
    jax.shard_map(step, mesh=fetched.mesh, in_specs=(), out_specs=PartitionSpec(), check_vma=False)()


BAD = {
    "shape of one axis": (table((100,)), ValueError, r"^shape must have at least two axes .*got \(100,\); pass \(rows"),
    "shape of no rows": (table((0, 4)), ValueError, r"^shape must have .*at least one element, got \(0, 4\)"),
    "shape is negative": (table((100, -4)), ValueError, r"^shape must have .*got \(100, -4\)"),
    "shape is a number": (table(100), TypeError, r"^shape must be a tuple of integers, got 100 of type int; pass"),
    "shape is text": (table("100"), TypeError, r"^shape must be a tuple of integers, got '100'"),
    "shape of floats": (table((1e6, 4)), TypeError, r"^shape must be a tuple of integers, got \(1000000.0, 4\)"),
    "shape of too many rows": (table((1 << 32, 4)), ValueError, r"^shape has 4294967296 rows, but at most 4294967295"),
    "dtype of integers": (table(dtype=jnp.int32), ValueError, r"^dtype must be one of float32, .*got int32"),
    "dtype of 8 bits": (table(dtype=jnp.float8_e4m3fn), ValueError, r"^dtype must be one of .*got float8_e4m3fn"),
    "dtype of 64 bits": (table(dtype="float64"), ValueError, r"^dtype must be one of .*got float64"),
    "dtype is no dtype": (table(dtype="bf"), TypeError, r"^dtype must be a floating dtype, got 'bf'"),
    "seed is negative": (table(seed=-1), ValueError, r"^seed must be in 0 to 2\^32 - 1, got -1; pass seed=0"),
    "seed is too large": (table(seed=1 << 32), ValueError, r"^seed must be in 0 to 2\^32 - 1, got 4294967296"),
    "seed is a key": (table(seed=jax.random.key(0)), TypeError, r"^seed must be an integer, got "),
    "seed is a float": (table(seed=0.5), TypeError, r"^seed must be an integer, got 0.5"),
    "std is negative": (table(std=-0.1), ValueError, r"^std must be finite and not negative, got -0.1; pass std=0.02"),
    "std is NaN": (table(std=float("nan")), ValueError, r"^std must be finite and not negative, got nan"),
    "std is None": (table(std=None), TypeError, r"^std must be .*None"),
    "b2 is one": (table(b2=1.0), ValueError, r"^b2 must be in \[0, 1\), got 1.0"),
    "b2 is text": (table(b2="0.9"), TypeError, r"^b2 must be "),
    "eps is negative": (table(eps=-1e-8), ValueError, r"^eps must be finite and not negative"),
    "reserve is a number": (table(reserve=1), TypeError, r"^reserve must be True or False, got 1"),
    "sync_log is text": (table(sync_log="no"), TypeError, r"^sync_log must be True or False, got 'no'"),
    "ids are floats": (fetch(np.array([1.0])), TypeError, r"^ids must be integers, got float64 of shape \(1,\); pass a list"),
    "ids are booleans": (fetch(np.array([True])), TypeError, r"^ids must be integers, got bool of shape \(1,\); np.flatnonzero"),
    "ids are text": (fetch("ids"), TypeError, r"^ids must be integers, got 'ids'"),
    "ids are None": (fetch(None), ValueError, r"^ids must hold at least one array, got None .*shape \(0,\) is an empty batch"),
    "ids are traced": (lambda: jax.jit(fetch_traced)(jnp.array([3])), TypeError, r"^ids are traced, .*call fetch outside of jax"),
    "one of the ids": (
        fetch({"a": np.array([1]), "b": np.array([0.5])}),
        TypeError,
        r"^ids must be integers, got float64 of shape \(1,\)",
    ),
    "fetched is an array": (update(GRADS), TypeError, r"^fetched must be what HostTable.fetch returned, got "),
    "gradient of other rows": (
        update(row_grads=GRADS[:3]),
        ValueError,
        r"^row_grads has shape \(3, 4\), but the rows have \(64, 4\): differentiate",
    ),
    "gradient of integers": (update(row_grads=GRADS.astype(int)), TypeError, r"^row_grads must be an array of floats, got "),
    "gradient is None": (update(row_grads=None), TypeError, r"^row_grads must be an array of floats, got None"),
    "rate is negative": (update(learning_rate=-0.1), ValueError, r"^learning_rate must be finite and not negative, got -0.1"),
    "rate is an array": (update(learning_rate=jnp.ones(3)), TypeError, r"^learning_rate must be "),
    "rate is a schedule": (
        update(learning_rate=optax.constant_schedule(0.1)),
        TypeError,
        r"^learning_rate must be a number, got a function: pass schedule\(fetched.count\)",
    ),
    "rows are a FetchedRows": (
        lambda: large_tables.lookup(fetched(), fetched().places),
        TypeError,
        r"^rows must be .*pass fetched.rows",
    ),
    "rows are integers": (lookup(jnp.ones((3, 4), int), jnp.array([1])), TypeError, r"^rows must be the array of floats"),
    "places are floats": (
        lookup(GRADS, jnp.ones(3)),
        TypeError,
        r"^places must be arrays of integers, got .*pass fetched.places",
    ),
    "places are numbers": (lookup(GRADS, [1, 2]), TypeError, r"^places must be arrays of integers, got 1 of type int"),
    "written without a step": (
        write_untouched,
        ValueError,
        r"^fetched has taken no step since step 0 of the table: write what large_tables.update returned, once",
    ),
    "written twice": (write_twice, ValueError, r"^fetched has taken no step since step 1 of the table"),
    "two fetches before a write": (two_fetches, ValueError, r"^fetched has taken no step since step 1 of the table"),
    "a later step": (
        write(lambda rows: dataclasses.replace(rows, count=rows.count + 5)),
        ValueError,
        r"^fetched is the result of step 6, but the table is at step 0: fetch, update and write each batch",
    ),
    "of a table of other shape": (
        write(lambda rows: rows, shape=(101, 4)),
        ValueError,
        r"^fetched is of another table: .*101, 4",
    ),
    "of a table of other seed": (write(lambda rows: rows, seed=5), ValueError, r"^fetched is of another table: .*seed=5"),
    "written rows only": (write(lambda rows: rows.rows), TypeError, r"^fetched must be the FetchedRows that update returned"),
    "written inside of jit": (write_traced, TypeError, r"^fetched is traced, .*return it from the jitted step"),
    "prefetch of None": (
        lambda: table()().prefetch(None, lambda batch: batch),
        TypeError,
        r"^batches must be iterable, got None",
    ),
    "prefetch by a name": (
        lambda: table()().prefetch([], "ids"),
        TypeError,
        r"^ids_of must be a function, got 'ids'",
    ),
    "prefetch without write": (no_write, ValueError, r"^the step of the last batch was not written: call write once"),
    "prefetch of floats": (wrong_prefetch, TypeError, r"^ids must be integers, got "),
    "micro-batches of no table": (micro([], table=3), TypeError, r"^table must be a HostTable, got 3"),
    "no micro-batch": (micro([]), ValueError, r"^results must hold at least one pair .*got none"),
    "micro-batches without gradients": (
        micro([fetched()]),
        TypeError,
        r"^results must be a list of pairs \(fetched, row_grads\)",
    ),
    "micro-batch of other rows": (micro([(fetched(), GRADS[:3])]), ValueError, r"^row_grads has shape \(3, 4\), but the rows"),
    "micro-batch before a write": (
        micro_batch_before_a_write,
        ValueError,
        r"^results were fetched at step 4, but the table is at step 0: write the table once",
    ),
    "mesh is a name": (table(mesh="data"), TypeError, r"^mesh must be a jax.sharding.Mesh, got 'data'"),
    "ids without a mesh": (
        over_mesh(lambda one, ids: one.fetch(np.asarray(ids))),
        ValueError,
        r"^ids must be arrays over the table's mesh, got .*jax.make_array_from_process_local_data\(NamedSharding\(mesh, Part",
    ),
    "ids over another mesh": (
        over_mesh(lambda one, ids: one.fetch(jax.device_put(ids, NamedSharding(mesh_of("x"), PartitionSpec("x"))))),
        ValueError,
        r"^ids are over the mesh .*'x'.*, but the table is over .*'data'.*: use one mesh for both",
    ),
    "of a table over a mesh": (
        over_mesh(lambda one, ids: table()().write(one.fetch(ids))),
        ValueError,
        r"^fetched is of another table: it has mesh=.*data.*, but this table has mesh=None",
    ),
    "update inside shard_map": (over_mesh(inside_shard_map), ValueError, r"^update of a table with a mesh was called inside"),
    "fetch after close": (
        closed(lambda one: one.fetch(np.array([3]))),
        ValueError,
        r"^HostTable\(.*\) is closed: its rows are gone",
    ),
    "write after close": (closed(lambda one: one.write(fetched())), ValueError, r"^HostTable\(.*\) is closed"),
}

GOOD = {
    "one feature": table((1, 1)),
    "rows of three axes": table((5, 2, 3)),
    "rows of zeros": table(std=0),
    "the largest seed": table(seed=(1 << 32) - 1),
    "dtype by name": table(dtype="bfloat16"),
    "an empty batch": fetch(np.zeros((0,), np.int32)),
    "padding only": fetch(np.array([-1, 100, 1 << 40])),
    "a rate of zero": update(learning_rate=0.0),
    "ids over a mesh": over_mesh(lambda one, ids: one.fetch({"a": ids, "b": ids})),
    "close twice": closed(lambda one: one.close()),
}
