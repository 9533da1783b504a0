"""Optimizer memory at the shapes of published models: bytes of state, and peak memory of a whole compiled train step.

Only abstract values: the train step (forward, backward, update, donated) is compiled for a CPU and nothing is allocated.
Everything is float32; the batch is one short sequence, so that optimizers and not activations are compared.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from tqdm import tqdm

from benchmarks.harness.compiled import cost
from benchmarks.harness.report import markdown, save_picture
from benchmarks.harness.results import PICTURES, RESULTS, load, parser, save
from benchmarks.harness.steps import carry, train_step
from ember_optax import EmberDimensionNumbers, ember

LENGTH = 128


class Shape(NamedTuple):
    """A decoder-only transformer whose head is tied to its embedding, or with `layers=0` its token table alone."""

    table: tuple[int, ...]
    layers: int = 0
    heads: int = 1
    kv_heads: int = 1
    head_size: int = 1
    hidden: int = 0
    gated: bool = True
    positions: int = 0


# As in the models' published configurations.
SHAPES = {
    "GPT-2": Shape((50_257, 768), 12, 12, 12, 64, 3_072, gated=False, positions=1_024),
    "Gemma 3 270M": Shape((262_144, 640), 18, 4, 1, 256, 2_048),
    "Gemma 3 1B": Shape((262_144, 1_152), 26, 4, 1, 256, 6_912),
    "Qwen3-0.6B": Shape((151_936, 1_024), 28, 16, 8, 128, 3_072),
    "Llama-3.2-1B": Shape((128_256, 2_048), 16, 32, 8, 64, 8_192),
    "Gemma 3n E2B, per-layer table": Shape((262_144, 30, 256)),
    "Marin, embedding": Shape((128_256, 6_144)),
}


def main() -> None:
    """Compiles every pair, prints the table, writes JSON and picture."""
    arguments = parser(__doc__)
    arguments.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="which models")
    arguments.add_argument("--output", type=Path, default=RESULTS / "memory.json", help="results")
    arguments.add_argument("--picture", type=Path, default=PICTURES / "memory.png", help="picture of the state bytes")
    options = arguments.parse_args()
    results = load(options.output)
    pairs = [(shape, optimizer) for shape in options.shapes for optimizer in OPTIMIZERS]
    for shape, optimizer in tqdm(pairs, unit="compilation"):
        if optimizer not in results.get(shape, {}):
            results.setdefault(shape, {})[optimizer] = measure(SHAPES[shape], OPTIMIZERS[optimizer]())
            save(options.output, results)
    print(table(results))
    draw(options.picture, results)


def init_params(shape: Shape) -> dict[str, Any]:
    """Parameters, the blocks' stacked over the layers: call it under `jax.eval_shape`."""
    width = shape.table[-1]
    params: dict[str, Any] = {"embed": {"embedding": jnp.zeros(shape.table)}}
    if shape.positions:
        params["positions"] = jnp.zeros((shape.positions, width))
    if shape.layers:
        sizes = {
            "qkv": (width, (shape.heads + 2 * shape.kv_heads) * shape.head_size),
            "attention_out": (shape.heads * shape.head_size, width),
            "up": (width, (1 + shape.gated) * shape.hidden),
            "down": (shape.hidden, width),
        }
        params["blocks"] = {name: jnp.zeros((shape.layers, *size)) for name, size in sizes.items()}
        params["blocks"]["norms"] = jnp.ones((shape.layers, 2, width))
    return params


def loss_fn(params: dict[str, Any], ids_T: jax.Array, shape: Shape) -> jax.Array:
    """Next-token loss of one sequence; of a table alone, the mean square of the rows that are looked up."""
    table = params["embed"]["embedding"]
    x_TxD = table[ids_T[:-1]]
    if not shape.layers:
        return jnp.mean(jnp.square(x_TxD))
    if shape.positions:
        x_TxD = x_TxD + params["positions"][: x_TxD.shape[0]]

    def block(x, weights):
        x = x + _attention(_norm(x, weights["norms"][0]) @ weights["qkv"], shape) @ weights["attention_out"]
        hidden = _norm(x, weights["norms"][1]) @ weights["up"]
        gate, *up = jnp.split(hidden, 1 + shape.gated, axis=-1)
        return x + (jax.nn.gelu(gate) * (up[0] if up else 1.0)) @ weights["down"], None

    x_TxD, _ = jax.lax.scan(jax.checkpoint(block), x_TxD, params["blocks"])
    return optax.softmax_cross_entropy_with_integer_labels(x_TxD @ table.T, ids_T[1:]).mean()


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * scale


def _attention(qkv: jax.Array, shape: Shape) -> jax.Array:
    heads = qkv.reshape(1, qkv.shape[0], shape.heads + 2 * shape.kv_heads, shape.head_size)
    query, key, value = jnp.split(heads, (shape.heads, shape.heads + shape.kv_heads), axis=2)
    return jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(qkv.shape[0], -1)


def _table(params: Any) -> Any:
    """Dimension numbers of the token table, None for everything else; positions are no vocabulary."""
    return {
        name: jax.tree.map(lambda _, name=name: EmberDimensionNumbers() if name == "embed" else None, params[name])
        for name in params
    }


def _muon() -> optax.GradientTransformation:
    """Muon for the stacked matrices of the blocks, Adam for what it is given besides."""

    def matrices(params):
        numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        wanted = {"qkv", "attention_out", "up", "down"}
        return jax.tree_util.tree_map_with_path(lambda path, _: numbers if path[-1].key in wanted else None, params)

    return optax.contrib.muon(1e-3, muon_weight_dimension_numbers=matrices)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "SGD": lambda: optax.sgd(1e-3),
    "Adam": lambda: optax.adamw(1e-3),
    "Adafactor": lambda: optax.adafactor(1e-3),
    "Ember + Adam": lambda: ember(1e-3, tables=_table),
    "Muon + Adam": _muon,
    "Muon + Ember": lambda: ember(1e-3, _muon(), tables=_table),
}


def measure(shape: Shape, tx: optax.GradientTransformation) -> dict[str, int]:
    """Bytes of parameters and of optimizer state, and the peak of a train step: arguments and temporaries."""
    params, state = start = jax.eval_shape(lambda: carry(tx, init_params(shape)))
    step = jax.jit(train_step(tx, partial(loss_fn, shape=shape)), donate_argnums=0)
    return {
        "parameters": _bytes(params),
        "state": _bytes(state),
        "table state": _bytes(jax.eval_shape(tx.init, {"embed": params["embed"]})),
        "peak": cost(step, start, jax.ShapeDtypeStruct((LENGTH,), jnp.int32)).peak,
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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
    """Draws the bytes of state for each model, a bar for each optimizer."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    names = [name for name in OPTIMIZERS if name != "SGD"]
    for number, optimizer in enumerate(names):
        places = [model + (number - len(names) / 2) * 0.16 for model in range(len(results))]
        axes.bar(places, [found[optimizer]["state"] / 2**30 for found in results.values()], 0.15, label=optimizer, align="edge")
    axes.set_xticks(range(len(results)), [name.replace(" ", "\n", 1) for name in results], fontsize=8)
    axes.set(ylabel="optimizer state (GiB)")
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    save_picture(path, figure, dpi=110)


if __name__ == "__main__":
    main()
