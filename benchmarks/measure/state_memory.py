"""Optimizer memory at the shapes of published models: bytes of state, and peak memory of a whole compiled train step.

Only abstract values: the train step (forward, backward, update, donated) is compiled for a CPU and nothing is allocated.
Everything is float32; the batch is one short sequence, so that optimizers and not activations are compared.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from benchmarks.harness.compiled import cost
from benchmarks.harness.models import OPTIMIZERS, SHAPES, Shape, init_params, loss_fn
from benchmarks.harness.report import markdown, save_picture
from benchmarks.harness.results import PICTURES, RESULTS, fill, parser
from benchmarks.harness.steps import carry, train_step, tree_bytes

LENGTH = 128
_TOO_SHORT = 100  # MiB
MODELS = [name for name in SHAPES if name != "Llama-3-8B"]


def main() -> None:
    """Compiles every pair, prints the table, writes JSON and picture."""
    arguments = parser(__doc__)
    arguments.add_argument("--shapes", nargs="+", choices=SHAPES, default=MODELS, help="which models")
    arguments.add_argument("--output", type=Path, default=RESULTS / "memory.json", help="results")
    arguments.add_argument("--picture", type=Path, default=PICTURES / "memory.png", help="picture of the state bytes")
    options = arguments.parse_args()
    pairs = [(shape, optimizer) for shape in options.shapes for optimizer in OPTIMIZERS]
    results = fill(options.output, pairs, lambda shape, tx: measure(SHAPES[shape], OPTIMIZERS[tx]()), "compilation")
    print(table(results))
    draw(options.picture, results)


def measure(shape: Shape, tx: optax.GradientTransformation) -> dict[str, int]:
    """Bytes of parameters and of optimizer state, and the peak of a train step: arguments and temporaries."""
    params, state = start = jax.eval_shape(lambda: carry(tx, init_params(shape)))
    step = jax.jit(train_step(tx, partial(loss_fn, shape=shape)), donate_argnums=0)
    return {
        "parameters": tree_bytes(params),
        "state": tree_bytes(state),
        "table state": tree_bytes(jax.eval_shape(tx.init, {"embed": params["embed"]})),
        "peak": cost(step, start, jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)).peak,
    }


def table(results: dict[str, dict[str, dict[str, int]]]) -> str:
    """One line for each model and optimizer."""
    rows = []
    for shape, found in results.items():
        for optimizer, sizes in found.items():
            fraction = sizes["state"] / (sizes["parameters"] + sizes["state"])
            peak = f"{(sizes['peak'] - found['SGD']['peak']) / 2**20:,.1f}"
            rows.append((shape, optimizer, f"{sizes['state'] / 2**20:,.1f}", f"{fraction:.1%}", peak))
    headers = ("model", "optimizer", "state (MiB)", "of parameters and state", "peak above SGD (MiB)")
    return markdown(rows, headers, names=2)


def draw(path: Path, results: dict[str, dict[str, dict[str, int]]]) -> None:
    """Draws the bytes of state for each model, a bar with a mark on top for each optimizer.

    The bars of some megabytes are too short to be seen: their size is written over the mark.
    """
    figure, axes = plt.subplots(figsize=(9, 4.8), layout="constrained")
    names = [name for name in OPTIMIZERS if name != "SGD"]
    for number, optimizer in enumerate(names):
        places = [model + (number - (len(names) - 1) / 2) * 0.16 for model in range(len(results))]
        sizes = [found[optimizer]["state"] / 2**20 for found in results.values()]
        bars = axes.bar(places, [size / 2**10 for size in sizes], 0.12, label=optimizer, zorder=2)
        axes.plot(
            places, [size / 2**10 for size in sizes], "o", color=bars[0].get_facecolor(), markersize=5, clip_on=False, zorder=3
        )
        for place, size in zip(places, sizes, strict=True):
            if size < _TOO_SHORT:
                style = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 7, "color": bars[0].get_facecolor()}
                axes.annotate(f"{size:.2g} MiB", (place, size / 2**10), (0, 5), textcoords="offset points", **style)
    axes.set_xticks(range(len(results)), [name.replace(" ", "\n", 1) for name in results], fontsize=8)
    axes.set(ylabel="optimizer state (GiB)", ylim=(0, None))
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    save_picture(path, figure, dpi=110)


if __name__ == "__main__":
    main()
