"""Time of one optimizer step on a token table, as a multiple of `p - lr * g` measured next to it, and compiled temporaries.

The step is `update` and `apply_updates`, jitted and donated, on a dense gradient. Each measurement of an optimizer alternates
with one of `p - lr * g` (axpy, the least that any step does) in the same process, and the optimizers take turns over several
rounds: the machine may be shared, so ratios of neighbours count and milliseconds do not.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from benchmarks.harness.report import markdown, save_picture
from benchmarks.harness.results import PICTURES, RESULTS, machine, parser, save
from benchmarks.harness.steps import optimizer_step
from benchmarks.harness.timing import CompiledStep, compile_step, time_against
from ember_optax import EmberDimensionNumbers, ember

LEARNING_RATE = 1e-3
# (V, D), or (D, V) where the second number is the larger one.
SHAPES = ["50257x768", "131072x1024", "262144x640", "1024x131072"]


def _ember(token_axis: int, **options: Any) -> optax.GradientTransformation:
    return ember(LEARNING_RATE, optax.adamw(LEARNING_RATE), tables=EmberDimensionNumbers(token_axis), **options)


def _factored_rms() -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_factored_rms(), optax.scale_by_learning_rate(LEARNING_RATE))


# Each takes the token axis; Muon trains tables with AdamW, so that is Muon's embedding path.
OPTIMIZERS: dict[str, Callable[[int], optax.GradientTransformation]] = {
    "ember": _ember,
    "ember, weight decay": lambda axis: _ember(axis, weight_decay=0.1),
    "adamw (Muon's embedding path)": lambda _: optax.adamw(LEARNING_RATE),
    "adam, bf16 mu": lambda _: optax.adam(LEARNING_RATE, mu_dtype=jnp.bfloat16),
    "adafactor": lambda _: optax.adafactor(LEARNING_RATE),
    "factored RMS": lambda _: _factored_rms(),
    "sm3": lambda _: optax.sm3(LEARNING_RATE),
    "lion": lambda _: optax.lion(LEARNING_RATE),
    "sgd": lambda _: optax.sgd(LEARNING_RATE),
}


def main() -> None:
    """Measures every shape and optimizer, prints the tables, writes JSON and picture."""
    arguments = parser(__doc__)
    arguments.add_argument("--shapes", nargs="+", default=SHAPES, help="table shapes; the longer axis is the vocabulary")
    arguments.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"], help="of the table"
    )
    arguments.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="which optimizers")
    arguments.add_argument("--rounds", type=int, default=5, help="turns that every optimizer takes")
    arguments.add_argument("--repeats", type=int, default=5, help="measurements in one turn")
    arguments.add_argument("--output", type=Path, default=RESULTS / "step_time.json", help="results")
    arguments.add_argument("--picture", type=Path, default=PICTURES / "step_time.png", help="picture of the ratios")
    options = arguments.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    for shape in options.shapes:
        for dtype in options.dtypes:
            sizes = tuple(int(size) for size in shape.split("x"))
            results[f"{shape} {dtype}"] = measure(sizes, jnp.dtype(dtype), options)
            save(options.output, results)
    print(table(results))
    draw(options.picture, results)


def measure(shape: tuple[int, ...], dtype: Any, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Ratios to axpy (median and quartiles over all turns), milliseconds and temporaries of each optimizer on one table."""
    grads = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32)).astype(dtype)
    axpy = compile_step(lambda p, g: p - jnp.asarray(LEARNING_RATE, p.dtype) * g, lambda: jnp.ones_like(grads), grads)
    token_axis = int(shape[1] > shape[0])
    steps = {name: compile_optimizer(OPTIMIZERS[name](token_axis), grads) for name in options.optimizers}
    times = time_against(axpy, steps, options.rounds, options.repeats, f"{shape[0]}x{shape[1]} {dtype}")
    return {
        name: {
            "times axpy": median(times[name].ratios),
            "quartiles": quantiles(times[name].ratios, n=4)[::2],
            "milliseconds": 1e3 * median(times[name].seconds),
            "temporaries / table": step.cost.temporaries / grads.nbytes,
        }
        for name, step in steps.items()
    }


def compile_optimizer(tx: optax.GradientTransformation, grads: jax.Array) -> CompiledStep:
    """The optimizer's step on a table like these gradients."""

    def fresh():
        params = jnp.ones_like(grads)
        return params, jax.jit(tx.init)(params)

    return compile_step(optimizer_step(tx), fresh, grads)


def table(results: dict[str, Any]) -> str:
    """One line for each optimizer, ratios to axpy for each table; then temporaries."""
    shapes = [shape for shape in results if shape != "machine"]
    names = list(results[shapes[0]])
    rows = [(name, *(f"{results[shape][name]['times axpy']:.2f}" for shape in shapes)) for name in names]
    small = [(name, *(f"{results[shape][name]['temporaries / table']:.1%}" for shape in shapes)) for name in names]
    return f"{markdown(rows, ('time / axpy', *shapes))}\n\n{markdown(small, ('temporaries', *shapes))}"


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draws the ratios with their quartiles, a group of bars for each table."""
    shapes = [shape for shape in results if shape != "machine"]
    names = list(results[shapes[0]])
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        found = [results[shape][name] for shape in shapes]
        middle = np.array([one["times axpy"] for one in found])
        low, high = np.array([one["quartiles"] for one in found]).T
        places = np.arange(len(shapes)) - 0.4 + (number + 0.5) * width
        axes.bar(places, middle, width, yerr=[middle - low, high - middle], label=name, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(shapes)), [shape.replace(" ", "\n") for shape in shapes], fontsize=8)
    axes.set(ylabel="time of a step / (p - lr g)", yscale="log", title=results["machine"])
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, ncols=2)
    save_picture(path, figure)


if __name__ == "__main__":
    main()
