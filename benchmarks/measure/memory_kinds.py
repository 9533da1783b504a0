"""A table in JAX's `pinned_host` memory, read and written by `compute_on` within one `jit`, against `HostTable`.

`v5e`: what the compiler for this TPU says of such a step: bytes in the memories of the device and of the host, and whether the
table is written in place. The topology of an H100 has no kinds of memory, so its compiler says nothing of them. `steps`: both
steps on this machine, which take turns; the CPU backend has the kinds as well. The ids are made distinct on the host in both.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compute_on import compute_on
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.harness.results import RESULTS, load, machine, parser, save
from benchmarks.harness.targets import available, mesh_of, use_compilers
from benchmarks.harness.timing import time_batches
from benchmarks.measure.large_tables import IDS, RATE, WIDTH, host_step, id_sets, in_turn, loss_fn
from ember_optax import large_tables

CHIP = "v5e"
ROWS = 10_000_000


def main() -> None:
    """Measures, prints and writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=1_000_000, help="rows of the steps on this machine")
    arguments.add_argument("--repeats", type=int, default=60, help="steps of each kind")
    arguments.add_argument("--output", type=Path, default=RESULTS / "memory_kinds.json", help="results")
    options = arguments.parse_args()
    use_compilers()
    results = load(options.output)
    results["machine"] = machine()
    for chip in available([CHIP]):
        results[chip] = {name: compiled(chip, jnp.dtype(name)) for name in ("float32", "bfloat16")}
    results["steps"] = {"rows": options.rows, **compare(options.rows, options.repeats)}
    save(options.output, results)
    print(results)


def step_of(mesh: Any, num_rows: int, dtype: Any) -> Any:
    """A jitted step of a table `(rows, nu_token, last)` in the host's memory, and the shardings of both memories."""
    host, device = (NamedSharding(mesh, PartitionSpec(), memory_kind=kind) for kind in ("pinned_host", "device"))
    to_host, to_device = (functools.partial(jax.device_put, device=sharding) for sharding in (host, device))
    of_ids = {"unique_indices": True, "indices_are_sorted": True}

    @compute_on("device_host")
    @jax.jit
    def take(table: Any, ids: jax.Array) -> Any:
        return jax.tree.map(lambda array: array.at[ids].get(mode="clip", **of_ids), table)

    @compute_on("device_host")
    @jax.jit
    def put(table: Any, ids: jax.Array, new: Any) -> Any:
        return jax.tree.map(lambda array, rows: array.at[ids].set(rows, mode="drop", **of_ids), table, new)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=((host,) * 3, device, device))
    def step(table: Any, count: jax.Array, nu_feature: jax.Array, ids: jax.Array, places: jax.Array) -> Any:
        ids_of_host = to_host(ids)
        rows, nu_token, last = to_device(take(table, ids_of_host))
        fetched = large_tables.FetchedRows(
            rows.astype(jnp.float32),
            places,
            ids,
            nu_token,
            last,
            count,
            nu_feature,
            jnp.int32(0),  # total_notfinite
            jnp.int32(0),  # table
            num_rows,
            dtype,
            0.999,
            1e-8,
            0,
        )
        row_grads = jax.grad(lambda rows: loss_fn(large_tables.lookup(rows, places)))(fetched.rows)
        new = large_tables.update(fetched, row_grads, RATE)
        rows = to_host((new.rows.astype(dtype), new.nu_token, new.last))
        return put(table, ids_of_host, rows), new.count, new.nu_feature

    return step, host, device


def compiled(chip: str, dtype: Any) -> dict[str, int]:
    """Bytes of each memory for a step."""
    step, host, device = step_of(mesh_of(chip), ROWS, dtype)

    def on(sharding: Any, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    table = (on(host, (ROWS, WIDTH), dtype), on(host, (ROWS,), jnp.float32), on(host, (ROWS,), jnp.int32))
    rest = (
        on(device, (), jnp.int32),
        on(device, (WIDTH,), jnp.float32),
        on(device, (IDS,), jnp.uint32),
        on(device, (IDS,), jnp.int32),
    )
    found = step.lower(table, *rest).compile().memory_analysis()
    return {
        "host, arguments": found.host_argument_size_in_bytes,
        "host, written in place": found.host_alias_size_in_bytes,
        "host, temporaries": found.host_temp_size_in_bytes,
        "device, arguments": found.argument_size_in_bytes,
        "device, temporaries": found.temp_size_in_bytes,
    }


def compare(rows: int, repeats: int) -> dict[str, Any]:
    """Median times of whole steps, which take turns."""
    step, host, device = step_of(jax.make_mesh((1,), ("x",), devices=jax.devices()[:1]), rows, jnp.dtype("float32"))
    zeros = jax.jit(lambda: (jnp.zeros((rows, WIDTH)), jnp.zeros(rows), jnp.zeros(rows, jnp.int32)), out_shardings=(host,) * 3)
    carry = [zeros(), *jax.device_put((jnp.int32(0), jnp.zeros(WIDTH)), device)]
    in_memory = large_tables.HostTable((rows, WIDTH), seed=0, std=0)

    def in_kinds(ids: np.ndarray) -> None:
        distinct, places = np.unique(ids, return_inverse=True)
        padded = np.concatenate([distinct, rows + np.arange(IDS - len(distinct))]).astype(np.uint32)
        carry[:] = step(*carry, *jax.device_put((padded, places.astype(np.int32)), device))
        jax.block_until_ready(carry)

    steps = {"pinned_host": in_kinds, "HostTable": lambda ids: in_memory.write(host_step(in_memory.fetch(ids)))}
    sets = id_sets(rows)
    for ids in sets:
        for take in steps.values():
            take(ids)
    times = time_batches(steps, in_turn(sets, repeats))
    difference = np.abs(np.asarray(carry[2]) - np.asarray(in_memory.nu_feature)).max()
    found = {name: of_step.milliseconds() for name, of_step in times.items()}
    return {
        **found,
        "ratio": times["pinned_host"].ratio_to(times["HostTable"]),
        "largest difference of nu_feature": float(difference),
    }


if __name__ == "__main__":
    main()
