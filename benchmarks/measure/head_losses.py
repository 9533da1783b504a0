"""Time and memory of a head's loss and gradient, in chunks of the vocabulary, as a multiple of the usual loss.

`jax.value_and_grad` of the mean cross entropy with respect to hidden states and table. Each measurement alternates with one of
the usual loss, from all logits, in the same process. `--compilers` asks those of a TPU v5e and an H100 for the temporaries
instead of a clock, and needs their extras, `tpu-compiler` and `gpu-compiler`.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness.compiled import cost
from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, load, machine, parser, save
from benchmarks.harness.targets import on_chip, use_compilers
from benchmarks.harness.timing import CompiledStep, compile_step, time_against
from ember_optax.losses import softmax_cross_entropy

# V, D, N.
SIZES = ["131072x640x512", "131072x640x2048", "32768x1024x1024"]
CHUNKS = [512, 1024, 2048, 4096, 8192]
# For the compilers: a table of Gemma 3 1B and as many tokens as a chip sees.
ON_CHIP = "262144x1152x4096"
CHIPS = ("v5e", "H100")


def main() -> None:
    """Measures every size, prints the table, writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", nargs="+", default=SIZES, help="vocabulary x features x tokens")
    arguments.add_argument("--chunks", nargs="+", type=int, default=CHUNKS, help="rows of the table at once")
    arguments.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"], help="of all")
    arguments.add_argument("--rounds", type=int, default=3, help="turns that every chunk takes")
    arguments.add_argument("--repeats", type=int, default=3, help="measurements in one turn")
    arguments.add_argument("--output", type=Path, default=RESULTS / "head_losses.json", help="results")
    arguments.add_argument("--compilers", action="store_true", help="temporaries on chips that are not here, and no clock")
    options = arguments.parse_args()
    results = load(options.output)
    if options.compilers:
        use_compilers()
        results["compilers"] = {f"{chip} {dtype}": account(chip, jnp.dtype(dtype)) for chip in CHIPS for dtype in options.dtypes}
        save(options.output, results)
        return print(account_table(results))
    results["machine"] = machine()
    for size in options.sizes:
        for dtype in options.dtypes:
            rows, width, tokens = (int(number) for number in size.split("x"))
            measured = measure(rows, width, tokens, jnp.dtype(dtype), options.chunks, options.rounds, options.repeats)
            results[f"{size} {dtype}"] = measured
            save(options.output, results)
    print(table(results))


def measure(size: int, width: int, tokens: int, dtype: Any, chunks: list[int], rounds: int, repeats: int) -> dict[str, Any]:
    """Ratios to the usual loss (median and quartiles) and temporaries for each chunk."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((tokens, width), np.float32), dtype)
    head = jnp.asarray(0.02 * rng.standard_normal((size, width), np.float32), dtype)
    labels = jnp.asarray(rng.integers(0, size, tokens), jnp.int32)

    def compiled(loss: Callable[..., jax.Array]) -> CompiledStep:
        def step(gradients, *arrays):
            del gradients  # written over
            return jax.value_and_grad(lambda hidden, head: loss(hidden, head, labels).mean(), (0, 1))(*arrays)

        return compile_step(step, lambda: (jnp.float32(0), (jnp.zeros_like(hidden), jnp.zeros_like(head))), hidden, head)

    usual = compiled(_usual_loss)
    steps = {str(chunk): compiled(lambda *a, chunk=chunk: softmax_cross_entropy(*a, chunk=chunk)) for chunk in chunks}
    times = time_against(usual, steps, rounds, repeats, f"{size} x {width}, {tokens} tokens, {dtype.name}")
    found: dict[str, Any] = {"usual": {"temporaries": usual.cost.temporaries}}
    for name, step in steps.items():
        low, _, high = quantiles(times[name].ratios, n=4)
        found[name] = {
            "ratio": median(times[name].ratios),
            "quartiles": [low, high],
            "milliseconds": 1e3 * median(times[name].seconds),
            "temporaries": step.cost.temporaries,
        }
    return found


def _usual_loss(hidden: jax.Array, head: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels((hidden @ head.T).astype(jnp.float32), labels)


def account(chip: str, dtype: Any) -> dict[str, int]:
    """Temporaries of loss and gradient by the compiler of a chip, in bytes."""
    size, width, tokens = (int(number) for number in ON_CHIP.split("x"))
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((tokens, width), (size, width))]
    given = on_chip(chip, (*arrays, jax.ShapeDtypeStruct((tokens,), jnp.int32)))

    def temporaries(loss: Callable[..., jax.Array]) -> int:
        return cost(jax.jit(jax.value_and_grad(lambda *arrays: loss(*arrays).mean(), (0, 1))), *given).temporaries

    return {"usual": temporaries(_usual_loss), "in chunks": temporaries(softmax_cross_entropy)}


def account_table(results: dict[str, Any]) -> str:
    """What the compilers say, as a Markdown table."""
    rows = [(name, *(f"{found[of] / 2**20:,.0f}" for of in found)) for name, found in results["compilers"].items()]
    return markdown(rows, ("temporaries (MiB)", "usual loss", "in chunks"))


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    rows = []
    for name, found in results.items():
        for chunk, one in found.items() if isinstance(found, dict) and name != "compilers" else ():
            time = f"{one['ratio']:.2f} ({one['quartiles'][0]:.2f} to {one['quartiles'][1]:.2f})" if "ratio" in one else "1"
            rows.append((name, chunk, time, f"{one['temporaries'] / 2**20:,.1f}"))
    return markdown(rows, ("V x D x N", "chunk", "time / usual loss", "temporaries (MiB)"), names=2)


if __name__ == "__main__":
    main()
