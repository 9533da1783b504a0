"""What fits on one chip: peak memory of whole train steps of published models, and the largest batch that compiles.

The compilers of the chips say it; no chip is needed, but the extras `tpu-compiler` and `gpu-compiler` are. Parameters and
optimizer state in float32, activations in bfloat16, blocks rematerialised, sequences of 1,024 tokens, full logits but where a row
says "loss in chunks". The TPU compiler refuses what does not fit; for the GPU the peak is held against the memory of the whole
chip. Batches are powers of two, looked for with the compiler's least effort (`jax_exec_time_optimization_effort` of -1).

This takes an hour or so on two cores; what is in the file already is not compiled again.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from benchmarks.harness.compiled import Cost, cost_if_it_fits, largest_batch
from benchmarks.harness.models import OPTIMIZERS, SHAPES, init_params, loss_fn
from benchmarks.harness.report import markdown, save_picture
from benchmarks.harness.results import PICTURES, RESULTS, fill, parser
from benchmarks.harness.steps import carry, train_step
from benchmarks.harness.targets import TARGETS, available, on_chip, use_compilers

CHIPS = ("v5e", "H100", "v5p")
MODELS = ("GPT-2", "Gemma 3 270M", "Gemma 3 1B", "Qwen3-0.6B", "Llama-3.2-1B")
_IN_CHUNKS = ", loss in chunks"
COMPARED = (
    *("Adam", f"Adam{_IN_CHUNKS}", "Adafactor", "Muon + Adam"),
    *("Ember + Adam", f"Ember + Adam{_IN_CHUNKS}", "Muon + Ember"),
)
LENGTH = 1024
LARGEST = 256  # sequences: beyond it a batch is not looked for
# The compiler's least effort, with which batches are looked for: a fifth of the time, and peaks that are a few per cent lower.
QUICK = -1.0
_GIB = 2**30


def main() -> None:
    """Compiles every step that is not in the file yet, prints the table, writes JSON and picture."""
    use_compilers()
    arguments = parser(__doc__)
    arguments.add_argument("--chips", nargs="+", choices=CHIPS, default=CHIPS, help="which chips")
    arguments.add_argument("--models", nargs="+", choices=SHAPES, default=MODELS, help="which models")
    arguments.add_argument("--optimizers", nargs="+", choices=COMPARED, default=COMPARED, help="which optimizers")
    arguments.add_argument("--output", type=Path, default=RESULTS / "fits.json", help="results")
    arguments.add_argument("--picture", type=Path, default=PICTURES / "fits.png", help="picture of the peaks")
    options = arguments.parse_args()
    wanted = [(chip, model, tx) for chip in available(options.chips) for model in options.models for tx in options.optimizers]
    results = fill(options.output, wanted, measure, "train step")
    print(table(results))
    draw(options.picture, results)


def measure(chip: str, model: str, optimizer: str) -> dict[str, Any]:
    """The peak with one sequence, None if even that does not fit, and the largest batch."""
    one = compiled(chip, model, optimizer, 1)
    if one is None:
        return {"peak of one sequence": None, "sequences": 0}
    return {"peak of one sequence": one.peak, "sequences": _largest_batch(chip, model, optimizer, one)}


def _largest_batch(chip: str, model: str, optimizer: str, one: Cost) -> int:
    # The loss in chunks needs no logits, but the hidden states.
    logits = LENGTH * SHAPES[model].table[1 if optimizer.endswith(_IN_CHUNKS) else 0] * 4

    def fits(batch: int) -> bool:
        worth_a_try = batch <= LARGEST and batch * logits < TARGETS[chip].memory
        return worth_a_try and compiled(chip, model, optimizer, batch, QUICK) is not None

    return largest_batch(fits, min(LARGEST, (TARGETS[chip].memory - one.peak) // max(logits, one.temporaries // 2)))


def compiled(chip: str, model: str, optimizer: str, batch: int, effort: float = 0.0) -> Cost | None:
    """What a train step costs by a chip's compiler, None if the chip has not the memory for it."""
    tx, shape = OPTIMIZERS[optimizer.removesuffix(_IN_CHUNKS)](), SHAPES[model]
    loss = partial(loss_fn, shape=shape, dtype=jnp.bfloat16, in_chunks=optimizer.endswith(_IN_CHUNKS))
    step = train_step(tx, loss)
    return compiled_step(chip, step, jax.eval_shape(lambda: carry(tx, init_params(shape))), batch, effort)


def compiled_step(chip: str, step: Callable[..., Any], start: Any, batch: int, effort: float) -> Cost | None:
    """The same of any `step(start, ids)`."""
    jax.config.update("jax_exec_time_optimization_effort", effort)
    ids = jax.ShapeDtypeStruct((batch, LENGTH + 1), jnp.int32)
    found = cost_if_it_fits(jax.jit(step, donate_argnums=0), *on_chip(chip, (start, ids)))
    jax.clear_caches()  # of dozens of large programs
    return found if found is not None and found.peak <= TARGETS[chip].memory else None


def table(results: dict[str, Any]) -> str:
    """One line for each model and optimizer: on each chip the peak of one sequence, and the largest batch."""
    rows = []
    for model in dict.fromkeys(model for of_chip in results.values() for model in of_chip):
        compiled_for = {optimizer for of_chip in results.values() for optimizer in of_chip.get(model, {})}
        for optimizer in (one for one in COMPARED if one in compiled_for):
            cells = [_cell(of_chip.get(model, {}).get(optimizer)) for of_chip in results.values()]
            rows.append((model, optimizer, *cells))
    headers = [f"{chip}, {TARGETS[chip].memory / _GIB:.1f} GiB" for chip in results]
    return markdown(rows, ("model", "optimizer", *headers), names=2)


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not compiled"
    if found["peak of one sequence"] is None:
        return "does not fit"
    at_least = "≥ " if found["sequences"] == LARGEST else ""
    return f"{found['peak of one sequence'] / _GIB:.2f} GiB, batch {at_least}{found['sequences']}"


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draws for each chip the peak of one sequence by model and optimizer, and the chip's memory.

    Optimizers that were not compiled for every chip and model are in the table alone.
    """
    models = [found for of_chip in results.values() for found in of_chip.values()]
    drawn = [optimizer for optimizer in COMPARED if all(optimizer in found for found in models)]
    width = 0.85 / len(drawn)
    figure, panels = plt.subplots(len(results), 1, figsize=(9, 3 * len(results)), layout="constrained", squeeze=False)
    for axes, (chip, of_chip) in zip(panels[:, 0], results.items(), strict=True):
        memory = TARGETS[chip].memory / _GIB
        for number, optimizer in enumerate(drawn):
            places = [place + (number - len(drawn) / 2) * width for place in range(len(of_chip))]
            peaks = [found[optimizer]["peak of one sequence"] for found in of_chip.values()]
            axes.bar(places, [memory if one is None else one / _GIB for one in peaks], 0.9 * width, label=optimizer, align="edge")
            for place, one in zip(places, peaks, strict=True):
                if one is None:
                    axes.text(place + width / 2, memory / 2, "does not fit", rotation=90, ha="center", va="center", fontsize=6)
        axes.axhline(memory, color="black", linewidth=1, linestyle="--")
        axes.set_xticks(range(len(of_chip)), list(of_chip), fontsize=8)
        axes.set(ylabel="peak of one sequence (GiB)", title=f"{chip}, {memory:.1f} GiB")
        axes.grid(alpha=0.3, axis="y")
    panels[0, 0].legend(fontsize=8)
    save_picture(path, figure)


if __name__ == "__main__":
    main()
