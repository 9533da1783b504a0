"""Tables on the host: time and memory of a step, by the number of rows, against the row-sparse step on the device.

`steps`: one step of a table in a file, of one in memory, and of the row-sparse step with the table on the device. They take turns
in one process. Half of the ids are from all rows, half from few rows, as in text. A step is distinct ids, rows to the device,
gradient and Ember, rows back. `sizes`: files of 1M to 100M rows in bfloat16 with the touched rows in the
page cache, each in its own process, and the memory that the process itself has (`RssAnon`). Files are removed afterwards.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness.results import RESULTS, load, machine, parser, save
from benchmarks.harness.timing import time_batches
from ember_optax import EmberDimensionNumbers, ember, large_tables, row_sparse

WIDTH, IDS, RATE = 64, 8192, 0.1
SIZES = (1_000_000, 10_000_000, 100_000_000)
# The ids of a step are drawn from this many sets, so that after one turn the touched rows are in the page cache.
SETS = 20


def main() -> None:
    """Measures, prints and writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=10_000_000, help="rows of the comparison with the device")
    arguments.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of the files")
    arguments.add_argument("--repeats", type=int, default=60, help="steps of each kind")
    arguments.add_argument("--folder", type=Path, default=None, help="where the files are made; a temporary folder without it")
    arguments.add_argument("--output", type=Path, default=RESULTS / "large_tables.json", help="results")
    arguments.add_argument("--one", type=int, default=None, help="(of this program) one size in this process")
    options = arguments.parse_args()
    if options.one:
        print(json.dumps(one_size(options.one, options.repeats, options.folder)))
        return
    results = load(options.output)
    results["machine"] = machine()
    for rows in options.sizes:
        command = [sys.executable, "-m", __spec__.name, "--one", str(rows), "--repeats", str(options.repeats)]
        folder = ["--folder", str(options.folder)] if options.folder else []
        printed = subprocess.run([*command, *folder], check=True, capture_output=True, text=True).stdout
        results.setdefault("sizes", {})[f"{rows}"] = json.loads(printed.splitlines()[-1])
        save(options.output, results)
    if options.rows:
        results["steps"] = {"rows": options.rows, **compare(options.rows, options.repeats, options.folder)}
        save(options.output, results)
    print(json.dumps(results, indent=1))


def id_sets(rows: int) -> list[np.ndarray]:
    """Half of the ids from all rows, half of them from the first hundredth with repeats."""
    rng = np.random.default_rng(0)
    return [
        np.concatenate([rng.integers(0, rows, IDS // 2), rng.integers(0, rows // 100, IDS // 2)]).astype(np.int32)
        for _ in range(SETS)
    ]


def in_turn(sets: list[np.ndarray], repeats: int) -> Iterator[np.ndarray]:
    """`repeats` sets, one after the other, again and again."""
    return itertools.islice(itertools.cycle(sets), repeats)


def loss_fn(rows: jax.Array) -> jax.Array:
    """A loss whose gradient is of full rank and costs little beside the step."""
    return jnp.mean(jnp.square(rows.astype(jnp.float32) - 1.0))


@jax.jit
def host_step(fetched: large_tables.FetchedRows) -> large_tables.FetchedRows:
    """The device's part of a step on a table on the host."""
    grads = jax.grad(lambda rows: loss_fn(large_tables.lookup(rows, fetched.places)))(fetched.rows)
    return large_tables.update(fetched, grads, RATE)


def take_host_step(table: large_tables.HostTable, ids: np.ndarray) -> None:
    """One whole step."""
    table.write(host_step(table.fetch(ids)))


def one_size(rows: int, repeats: int, folder: Path | None) -> dict[str, Any]:
    """Times of steps on a file of bfloat16 rows, and the memory of this process without the page cache."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as inside,
        large_tables.HostTable((rows, WIDTH), jnp.bfloat16, seed=0, path=Path(inside) / "table") as table,
    ):
        sets = id_sets(rows)
        for ids in sets:
            take_host_step(table, ids)
        table.save()
        times = time_batches({"": partial(take_host_step, table)}, in_turn(sets, repeats))[""]
        start = time.perf_counter()
        table.save()
        seconds_of_save = time.perf_counter() - start
        size = (Path(inside) / "table" / "rows").stat().st_size
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    anonymous = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    more = {"save, seconds": seconds_of_save, "file, bytes": size, "own memory, bytes": 1024 * anonymous}
    return times.milliseconds() | more


def compare(rows: int, repeats: int, folder: Path | None) -> dict[str, Any]:
    """Median times of whole steps, which take turns."""
    tx, sets = ember(RATE, optax.sgd(RATE), tables=EmberDimensionNumbers()), id_sets(rows)

    @partial(jax.jit, donate_argnums=(0, 1))
    def device_step(params, opt_state, ids):
        _, grads = row_sparse.value_and_grad(lambda params: loss_fn(params["table"][ids]))(params, {"table": ids})
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    with tempfile.TemporaryDirectory(dir=folder) as inside:
        in_memory = large_tables.HostTable((rows, WIDTH), seed=0)
        in_file = large_tables.HostTable((rows, WIDTH), seed=0, path=Path(inside) / "table")
        params = {"table": jnp.zeros((rows, WIDTH))}
        carry = [params, tx.init(params)]
        del params

        def on_device(ids):
            carry[:] = device_step(*carry, jnp.asarray(ids))
            jax.block_until_ready(carry)

        steps = {
            "on the device": on_device,
            "host memory": partial(take_host_step, in_memory),
            "file": partial(take_host_step, in_file),
        }
        for ids in sets:
            for step in steps.values():
                step(ids)
        times = time_batches(steps, in_turn(sets, repeats))
        in_file.close()
    return {name: of_step.milliseconds() for name, of_step in times.items()} | {
        "ratio": {name: of_step.ratio_to(times["on the device"]) for name, of_step in times.items()}
    }


if __name__ == "__main__":
    main()
