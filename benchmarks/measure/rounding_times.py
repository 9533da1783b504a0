"""Time of stochastic rounding, as a multiple of rounding to the nearest: a step of SGD on a bfloat16 table.

`update` and `apply_updates` of `optax.sgd`, jitted and donated: the apply pass of any optimizer and nothing else. Both take turns
in one process. What counts is what the process does on all cores (`time.process_time`), since the machine may be busy. Besides,
the bytes that the compiler of a TPU v5e counts, where it is installed (extra `tpu-compiler`), again as a multiple.
"""

import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness.compiled import cost
from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, machine, parser, save
from benchmarks.harness.steps import carry, optimizer_step
from benchmarks.harness.targets import TARGETS, has_compiler, on_chip, use_compilers
from benchmarks.harness.timing import compile_step, take_turns
from ember_optax import stochastic_rounding

SIZES = ["65536x640", "131072x1024", "1024x131072"]
CHIP = "v5e"
STEPS = {
    "to the nearest": optax.sgd(1e-5),
    "stochastically": optax.chain(optax.sgd(1e-5), stochastic_rounding(seed=0)),
}


def main() -> None:
    """Measures every size and dtype of the updates, prints the table, writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", nargs="+", default=SIZES, help="shapes of the table")
    arguments.add_argument("--repeats", type=int, default=20, help="measurements of each step")
    arguments.add_argument("--output", type=Path, default=RESULTS / "rounding_times.json", help="results")
    options = arguments.parse_args()
    use_compilers()
    results: dict[str, Any] = {"machine": machine(), "tables": {}}
    for size in options.sizes:
        for dtype in ("bfloat16", "float32"):
            shape = tuple(int(number) for number in size.split("x"))
            results["tables"][f"{size}, updates in {dtype}"] = measure(shape, jnp.dtype(dtype), options.repeats)
            save(options.output, results)
    print(table(results))


def measure(shape: tuple[int, ...], dtype: Any, repeats: int) -> dict[str, Any]:
    """Ratio of the times (median and quartiles), temporaries as a part of the table, ratio of the bytes on a TPU."""
    rng = np.random.default_rng(0)
    params = jnp.asarray(0.02 * rng.standard_normal(shape, np.float32), jnp.bfloat16)
    grads = jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
    steps = {
        name: compile_step(optimizer_step(tx), lambda tx=tx: carry(tx, jnp.copy(params)), grads) for name, tx in STEPS.items()
    }
    nearest, rounded = take_turns(steps, repeats, time.process_time).values()
    ratios = [ours / unit for ours, unit in zip(rounded, nearest, strict=True)]
    return {
        "ratio": median(ratios),
        "quartiles": quantiles(ratios, n=4)[::2],
        "milliseconds": 1e3 * median(rounded),
        "temporaries / table": steps["stochastically"].cost.temporaries / params.nbytes,
        f"bytes on {CHIP}": bytes_on_chip(params, grads) if has_compiler(TARGETS[CHIP]) else None,
    }


def bytes_on_chip(params: jax.Array, grads: jax.Array) -> float | None:
    """Bytes accessed, as a multiple of those of the step to the nearest."""

    def of_step(tx: Any) -> float | None:
        given = on_chip(CHIP, (jax.eval_shape(lambda: carry(tx, params)), jax.eval_shape(lambda: grads)))
        return cost(jax.jit(optimizer_step(tx), donate_argnums=0), *given).bytes_accessed

    nearest, rounded = (of_step(tx) for tx in STEPS.values())
    return rounded / nearest if rounded and nearest else None


def table(results: dict[str, Any]) -> str:
    """One line for each table and dtype of the updates."""
    rows = []
    for name, found in results["tables"].items():
        low, high = found["quartiles"]
        moved = found[f"bytes on {CHIP}"]
        cells = (f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})", f"{found['temporaries / table']:.2%}")
        rows.append((name, *cells, "" if moved is None else f"{moved:.2f}"))
    return markdown(rows, ("bfloat16 table", "time / to the nearest", "temporaries", f"bytes / to the nearest, {CHIP}"))


if __name__ == "__main__":
    main()
