"""How many bytes does each number of the token tables cost, all in, and what does that leave of a 16 GB chip?

A number of a table costs its parameter, its optimizer state and, where a step makes one, its gradient. Whole train steps of
published models with one sequence of 1,024 tokens, by the compiler of a TPU v5e, which need not be there (extra `tpu-compiler`).
The body is trained by AdamW in float32 unless the recipe says otherwise, activations are bfloat16, blocks rematerialised.
The largest batch is a power of two, looked for with the compiler's least effort (`fits.QUICK`).

What is in the file already is not compiled again.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from benchmarks.harness.compiled import largest_batch
from benchmarks.harness.models import SHAPES, init_params, loss_fn, token_tables_of
from benchmarks.harness.report import markdown, save_picture
from benchmarks.harness.results import PICTURES, RESULTS, fill, parser
from benchmarks.harness.steps import carry, row_sparse_train_step, train_step, tree_bytes
from benchmarks.harness.targets import TARGETS, use_compilers
from benchmarks.measure.fits import LARGEST, LENGTH, QUICK, compiled_step
from ember_optax import ember, stochastic_rounding

MODELS = ("SmolLM2-135M", "Gemma 3 270M", "Qwen3-0.6B", "Gemma 3 1B", "Llama-3.2-1B")
CHIP, _GIB = "v5e", 2**30


def _ember() -> optax.GradientTransformationExtraArgs:
    return ember(1e-3, optax.adamw(1e-3), tables=token_tables_of)


def _rounded(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    return optax.chain(tx, stochastic_rounding(seed=0))


class Recipe(NamedTuple):
    """A way to train: the optimizer, the dtypes of tables and body, and whether the head is fused with its step."""

    tx: Callable[[], Any]
    tables: Any = jnp.float32
    body: Any = jnp.float32
    fused: bool = False


RECIPES = {
    "AdamW": Recipe(lambda: optax.adamw(1e-3)),
    "AdamW, all in bfloat16": Recipe(lambda: optax.adamw(1e-3), jnp.bfloat16, jnp.bfloat16),
    "Adafactor": Recipe(lambda: optax.adafactor(1e-3)),
    "Ember": Recipe(_ember),
    "Ember, fused head": Recipe(_ember, fused=True),
    "Ember, bfloat16 tables": Recipe(lambda: _rounded(_ember()), jnp.bfloat16),
    "Ember, bfloat16 tables, fused head": Recipe(lambda: _rounded(_ember()), jnp.bfloat16, fused=True),
}


def main() -> None:
    """Compiles every step that is not in the file yet, prints the tables, writes JSON and picture."""
    use_compilers()
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=SHAPES, default=MODELS, help="which models")
    arguments.add_argument("--output", type=Path, default=RESULTS / "table_bytes.json", help="results")
    arguments.add_argument("--picture", type=Path, default=PICTURES / "table_bytes.png", help="picture of the peaks")
    options = arguments.parse_args()
    wanted = [(model, recipe) for model in options.models for recipe in RECIPES]
    results = fill(options.output, wanted, measure, "train step")
    print(f"{table(results)}\n\n{batch_table(results)}")
    draw(options.picture, results)


def measure(model: str, recipe: str) -> dict[str, float | None]:
    """Bytes for each number of the tables, the peak of one sequence, None if it does not fit, and the largest batch."""
    of_one = peak(model, recipe)
    return bytes_per_number(model, recipe) | {"peak": of_one, "sequences": sequences(model, recipe, of_one)}


def bytes_per_number(model: str, recipe: str) -> dict[str, float]:
    """What each number of the tables costs, by the shapes and dtypes of arrays."""
    chosen = RECIPES[recipe]
    params = {"embed": abstract_params(model, recipe)["embed"]}
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = jax.eval_shape(chosen.tx().init, params)
    stored = {"parameter": params, "state": state, "gradient": {} if chosen.fused else params}
    return {what: tree_bytes(tree) / numbers for what, tree in stored.items()}


def sequences(model: str, recipe: str, of_one: int | None) -> int:
    """The largest batch; `of_one` is the peak of one sequence, None where it does not fit."""
    if of_one is None:
        return 0
    size, width = SHAPES[model].table
    # Rematerialised, a block leaves its input and the gradient of it; the usual loss needs the logits of all tokens.
    of_each = LENGTH * (4 * SHAPES[model].layers * width + (0 if RECIPES[recipe].fused else 4 * size))

    def fits(batch: int) -> bool:
        return batch <= LARGEST and peak(model, recipe, batch, QUICK) is not None

    return largest_batch(fits, min(LARGEST, 1 + (TARGETS[CHIP].memory - of_one) // of_each))


def peak(model: str, recipe: str, batch: int = 1, effort: float = 0.0) -> int | None:
    """Bytes of a train step by the compiler; None if the chip has not the memory for it."""
    start = jax.eval_shape(partial(carry, RECIPES[recipe].tx()), abstract_params(model, recipe))
    found = compiled_step(CHIP, step(model, recipe), start, batch, effort)
    return None if found is None else found.peak


def step(model: str, recipe: str) -> Callable[..., Any]:
    """The train step of a recipe; with a fused head the lookup of the tied table is row-sparse too."""
    chosen, shape = RECIPES[recipe], SHAPES[model]
    loss = partial(loss_fn, shape=shape, dtype=jnp.bfloat16, in_chunks=chosen.fused)
    if not chosen.fused:
        return train_step(chosen.tx(), loss)
    path = "embed/embedding"
    return row_sparse_train_step(chosen.tx(), loss, lambda ids_BxT: {path: ids_BxT[:, :-1]}, heads=[path])


def abstract_params(model: str, recipe: str) -> dict[str, Any]:
    """The parameters in the recipe's dtypes, without arrays."""
    chosen, params = RECIPES[recipe], jax.eval_shape(partial(init_params, SHAPES[model]))
    dtypes = {name: chosen.tables if name == "embed" else chosen.body for name in params}
    return {
        name: jax.tree.map(lambda leaf, name=name: jax.ShapeDtypeStruct(leaf.shape, dtypes[name]), of_name)
        for name, of_name in params.items()
    }


def table(results: dict[str, Any]) -> str:
    """One line for each recipe: bytes for each number of the largest tables, and the peak of each model."""
    rows = []
    for recipe in RECIPES:
        found = [of_model[recipe] for of_model in results.values() if recipe in of_model]
        parts = [found[-1][what] for what in ("parameter", "state", "gradient")]
        peaks = ["does not fit" if one["peak"] is None else f"{one['peak'] / _GIB:.2f}" for one in found]
        rows.append((recipe, *(f"{part:.2f}" for part in parts), f"{sum(parts):.2f}", *peaks))
    headers = ("recipe", "parameter", "state", "gradient", "bytes for each number, all in")
    return markdown(rows, (*headers, *(f"{model} (GiB)" for model in results)))


def batch_table(results: dict[str, Any]) -> str:
    """One line for each recipe: the largest batch of each model."""
    rows = []
    for recipe in RECIPES:
        found = [of_model.get(recipe, {}).get("sequences") for of_model in results.values()]
        rows.append((recipe, *("not looked for" if one is None else str(one or "does not fit") for one in found)))
    return markdown(rows, ("sequences of 1,024 tokens", *results))


def draw(path: Path, results: dict[str, Any]) -> None:
    """Peaks by model and recipe beside the chip's memory, and the largest batches."""
    figure, (of_peaks, of_batches) = plt.subplots(2, 1, figsize=(10, 7), layout="constrained")
    memory, width = TARGETS[CHIP].memory / _GIB, 0.8 / len(RECIPES)
    for number, recipe in enumerate(RECIPES):
        found = [of_model.get(recipe, {}) for of_model in results.values()]
        peaks = [one.get("peak") for one in found]
        places = [place + (number - len(RECIPES) / 2) * width for place in range(len(results))]
        of_peaks.bar(places, [memory if one is None else one / _GIB for one in peaks], width, label=recipe, align="edge")
        of_batches.bar(places, [one.get("sequences") or 0 for one in found], width, label=recipe, align="edge")
        for place, one in zip(places, peaks, strict=True):
            if one is None:
                of_peaks.text(place + width / 2, memory / 2, "does not fit", rotation=90, ha="center", va="center", fontsize=7)
    of_peaks.axhline(memory, color="black", linewidth=1, linestyle="--")
    of_peaks.set(ylabel="peak of one sequence (GiB)", title=f"Whole train step on one {CHIP}, {memory:.2f} GiB, by its compiler")
    of_batches.set_yscale("log", base=2)
    of_batches.yaxis.set_major_formatter("{x:g}")
    of_batches.set(ylabel="largest batch (sequences)", ylim=(0.5, None))
    for axes in (of_peaks, of_batches):
        axes.set_xticks(range(len(results)), list(results))
        axes.grid(alpha=0.3, axis="y")
    of_peaks.legend(fontsize=8)
    save_picture(path, figure)


if __name__ == "__main__":
    main()
