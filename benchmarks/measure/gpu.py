"""What steps and losses take on a GPU by its clock: dense and row-sparse steps, heads in chunks and fused, beside AdamW.

    python -m benchmarks.measure.gpu --minutes 9

Every measurement is written as it comes, and a second call goes on with those that are missing. So each call may end after some
minutes. Needs a CUDA build of JAX and nothing else that this checkout does not have; on a CPU it runs with small `--sizes`.

The dense step is bound by memory. Its row says which share of the card's memory speed it reaches, when it is taken to move five
tables (`optax.adamw` seven): two reads of the gradient, and a read and a write of the parameter and one more read of the gradient
for the update, as XLA's program for an H100 has them (docs/speed.md).
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, load, machine, parser, save
from benchmarks.harness.steps import carry, optimizer_step, row_sparse_optimizer_step
from benchmarks.harness.timing import CompiledStep, compile_step, take_turns
from benchmarks.measure.head_losses import USUAL, Size, Way, arrays, losses, size_of, steps
from ember_optax import EmberDimensionNumbers, scale_by_ember

SIZES = ("131072x1024x8192 float32", "131072x1024x8192 bfloat16", "128256x4096x8192 bfloat16")
CHUNKS = (512, 1024, 2048, 4096, 8192, 16_384)
# Bytes a second, from the data sheets. The first name that is part of the device's counts.
MEMORY_SPEED = {"H200": 4.8e12, "H100 PCIe": 2.0e12, "H100": 3.35e12, "A100-SXM4-80GB": 2.04e12, "A100": 1.56e12, "L4": 0.3e12}
TABLES_MOVED = {"ember": 5, "adamw": 7}
# Steps between two looks at the clock, so that the time of a launch does not count.
IN_A_ROW = 10


def main() -> None:
    """Measures what the file lacks until the time is over, prints the tables, writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", nargs="+", default=SIZES, help="vocabulary x features x tokens, dtype")
    arguments.add_argument("--chunks", nargs="+", type=int, default=CHUNKS, help="tokens of the vocabulary in a chunk")
    arguments.add_argument("--repeats", type=int, default=5, help="measurements of each way")
    arguments.add_argument("--minutes", type=float, default=60.0, help="begin no measurement after this time")
    arguments.add_argument("--output", type=Path, default=RESULTS / "gpu.json", help="results")
    options = arguments.parse_args()
    results, card, start = load(options.output), jax.devices()[0].device_kind, time.monotonic()
    found = results.setdefault(card, {})
    for key, ways in measurements(options.sizes, options.chunks):
        if key in found:
            continue
        if time.monotonic() - start > 60 * options.minutes:
            print(f"the time is over before {key!r}; call it again")
            break
        found[key] = {"machine": machine(), "ways": measure(ways(), options.repeats)}
        save(options.output, results)
        print(table(card, key, found[key]["ways"]), "\n", flush=True)


def measurements(sizes: list[str], chunks: list[int]) -> Iterator[tuple[str, Callable[[], dict[str, Way]]]]:
    """The name of each measurement, and what makes its ways. Each size of a chunk has the usual loss beside it."""
    for name in sizes:
        yield f"optimizer step {name}", partial(optimizer_steps, size_of(name))
        for chunk in chunks:
            yield f"head loss {name}, chunk {chunk}", partial(losses, size_of(name), (chunk,))
            yield f"train step {name}, chunk {chunk}", partial(steps, size_of(name), (chunk,))


def optimizer_steps(size: Size) -> dict[str, Way]:
    """The dense step of AdamW and of Ember, and Ember's row-sparse step for the tokens of a batch."""
    params, ids, _ = arrays(size)
    table, gradient = {"table": params["head"]}, {"table": 0.1 * params["head"]}
    rows = {"table": gradient["table"][ids]}
    tx = optax.chain(scale_by_ember(dimension_numbers=EmberDimensionNumbers()), optax.scale_by_learning_rate(1e-3))
    adamw = optax.adamw(1e-3)
    return {
        "adamw": Way(optimizer_step(adamw), lambda: carry(adamw, jax.tree.map(jnp.copy, table)), (gradient,)),
        "ember": Way(optimizer_step(tx), lambda: carry(tx, jax.tree.map(jnp.copy, table)), (gradient,)),
        "ember, row-sparse": Way(
            row_sparse_optimizer_step(tx), lambda: carry(tx, jax.tree.map(jnp.copy, table)), (rows, {"table": ids})
        ),
    }


def measure(ways: dict[str, Way], repeats: int) -> dict[str, Any]:
    """Milliseconds and temporaries of each way, which take turns."""
    compiled = {name: _in_a_row(compile_step(way.step, way.fresh, *way.given)) for name, way in ways.items()}
    seconds = take_turns(compiled, repeats)
    return {
        name: {
            "milliseconds": 1e3 * median(times) / IN_A_ROW,
            "all": [1e3 * one / IN_A_ROW for one in times],
            "temporaries": compiled[name].cost.temporaries,
        }
        for name, times in seconds.items()
    }


def _in_a_row(step: CompiledStep) -> CompiledStep:
    def run(carry: Any) -> Any:
        for _ in range(IN_A_ROW):
            carry = step.run(carry)
        return carry

    return step._replace(run=run)


def table(card: str, key: str, ways: dict[str, Any]) -> str:
    """One measurement; the ratio is to AdamW or to the usual loss."""
    size = size_of(" ".join(key.partition(",")[0].split()[2:]))
    table_bytes = size.rows * size.width * size.dtype.itemsize
    reference = ways.get("adamw") or ways[USUAL]
    speed = next((speed for name, speed in MEMORY_SPEED.items() if name in card), None)
    rows = []
    for name, one in ways.items():
        seconds = 1e-3 * one["milliseconds"]
        moved = TABLES_MOVED.get(name)
        share = f"{moved * table_bytes / seconds / speed:.0%}" if moved and speed else ""
        ratio = f"{one['milliseconds'] / reference['milliseconds']:.2f}"
        rows.append((name, f"{one['milliseconds']:.3f}", ratio, f"{one['temporaries'] / 2**20:,.1f}", share))
    return markdown(rows, (key, "milliseconds", "ratio", "temporaries (MiB)", "share of the memory speed"))


if __name__ == "__main__":
    main()
