"""Time of one optimizer step on a token table, as a multiple of `p - lr * g` measured next to it, and compiled temporaries.

The step is `update` and `apply_updates`, jitted and donated, on a dense gradient. Each measurement of an optimizer alternates
with one of `p - lr * g` (axpy, the least that any step does) in the same process, and the optimizers take turns over several
rounds: the machine may be shared, so ratios of neighbours count and milliseconds do not.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from tabulate import tabulate
from tqdm import tqdm

from ember_optax import EmberDimensionNumbers, ember

matplotlib.use("Agg")
ROOT = Path(__file__).parents[1]
LEARNING_RATE = 1e-3
# (V, D), or (D, V) where the second number is the larger one.
SHAPES = ["50257x768", "131072x1024", "262144x640", "1024x131072"]


def _ember(token_axis: int, **options: Any) -> optax.GradientTransformation:
    return ember(LEARNING_RATE, tables=EmberDimensionNumbers(token_axis), **options)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="table shapes; the longer axis is the vocabulary")
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"], help="of the table"
    )
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="which optimizers")
    parser.add_argument("--rounds", type=int, default=5, help="turns that every optimizer takes")
    parser.add_argument("--repeats", type=int, default=5, help="measurements in one turn")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "step_time.json", help="results")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "step_time.png", help="picture of the ratios")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "machine": f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}, optax {optax.__version__}"
    }
    for shape in options.shapes:
        for dtype in options.dtypes:
            sizes = tuple(int(size) for size in shape.split("x"))
            results[f"{shape} {dtype}"] = measure(sizes, jnp.dtype(dtype), options)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    save_picture(options.picture, results)


def measure(shape: tuple[int, ...], dtype: Any, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Ratios to axpy (median and quartiles over all turns), milliseconds and temporaries of each optimizer on one table."""
    grads = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32)).astype(dtype)
    axpy = jax.jit(lambda p, g: p - jnp.asarray(LEARNING_RATE, p.dtype) * g, donate_argnums=0)
    token_axis = int(shape[1] > shape[0])
    compiled = {name: compile_step(OPTIMIZERS[name](token_axis), grads) for name in options.optimizers}
    ratios: dict[str, list[float]] = {name: [] for name in compiled}
    milliseconds: dict[str, list[float]] = {name: [] for name in compiled}
    description = f"{shape[0]}x{shape[1]} {dtype}"
    for _ in tqdm(range(options.rounds), desc=description, unit="round"):
        for name, step in compiled.items():
            times = turn(step, OPTIMIZERS[name](token_axis), axpy, grads, options.repeats)
            ratios[name] += [ours / unit for ours, unit in times]
            milliseconds[name] += [1e3 * ours for ours, _ in times]
    return {
        name: {
            "times axpy": median(ratios[name]),
            "quartiles": quantiles(ratios[name], n=4)[::2],
            "milliseconds": median(milliseconds[name]),
            "temporaries / table": step.memory_analysis().temp_size_in_bytes / grads.nbytes,
        }
        for name, step in compiled.items()
    }


def compile_step(tx: optax.GradientTransformation, table: jax.Array) -> Any:
    """The jitted, donated `step(params, state, grads)`."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    abstract = jax.ShapeDtypeStruct(table.shape, table.dtype)
    return jax.jit(step, donate_argnums=(0, 1)).lower(abstract, jax.eval_shape(tx.init, abstract), abstract).compile()


def turn(step: Any, tx: optax.GradientTransformation, axpy: Any, grads: jax.Array, repeats: int) -> list[tuple[float, float]]:
    """Seconds of a step and of axpy, alternating, after one of each that is not counted."""
    params, other = jnp.ones_like(grads), jnp.ones_like(grads)
    state = jax.jit(tx.init)(params)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        params, state = jax.block_until_ready(step(params, state, grads))
        middle = time.perf_counter()
        other = jax.block_until_ready(axpy(other, grads))
        times.append((middle - start, time.perf_counter() - middle))
    return times[1:]


def table(results: dict[str, Any]) -> str:
    """One line for each optimizer, ratios to axpy for each table; then temporaries."""
    shapes = [shape for shape in results if shape != "machine"]
    names = list(results[shapes[0]])
    rows = [(name, *(f"{results[shape][name]['times axpy']:.2f}" for shape in shapes)) for name in names]
    small = [(name, *(f"{results[shape][name]['temporaries / table']:.1%}" for shape in shapes)) for name in names]
    align = ("left",) + ("right",) * len(shapes)
    times = tabulate(rows, ("time / axpy", *shapes), tablefmt="github", disable_numparse=True, colalign=align)
    return f"{times}\n\n" + tabulate(small, ("temporaries", *shapes), tablefmt="github", disable_numparse=True, colalign=align)


def save_picture(path: Path, results: dict[str, Any]) -> None:
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
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
