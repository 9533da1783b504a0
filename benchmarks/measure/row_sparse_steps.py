"""What a row-sparse step costs against dense Ember and AdamW: over the vocabulary V and over the tokens N of a batch.

Two measurements. The optimizer step alone (`update` and the application of the updates, jitted and donated) on given gradients,
compact for the row-sparse step. And whole train steps (forward, backward, update) of a small model with three kinds of head.
Every measurement alternates with one of AdamW in the same process, so ratios count and milliseconds do not.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.harness.report import markdown, save_picture
from benchmarks.harness.results import PICTURES, RESULTS, load, machine, parser, save
from benchmarks.harness.steps import carry, optimizer_step, row_sparse_optimizer_step, row_sparse_train_step, train_step
from benchmarks.harness.timing import CompiledStep, compile_step, take_turns
from ember_optax import EmberDimensionNumbers, ember, row_sparse

RATE = 1e-3
# V, D, N. The first two are the headline; the others vary one size at a time.
STEPS = [
    *[(262_144, 1024, 2048), (524_288, 1024, 2048)],
    *[(size, 256, 2048) for size in (32_768, 131_072, 524_288, 1_048_576)],
    *[(262_144, 256, tokens) for tokens in (512, 2048, 8192, 16_384)],
]
# AdamW needs five arrays of the table's size; above this many elements of one only the row-sparse step is measured.
LARGEST_DENSE = 300_000_000
# The table of Gemma 3 270M under a small MLP.
MODEL = {"vocabulary": 262_144, "width": 640, "hidden": 640, "classes": 256, "batch": 8, "length": 64, "negatives": 1024}


def main() -> None:
    """Measures, prints the tables, writes JSON and picture."""
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=11, help="measurements of each step")
    arguments.add_argument("--only", choices=("optimizer", "train"), help="one of the two measurements")
    arguments.add_argument("--output", type=Path, default=RESULTS / "row_sparse.json", help="results")
    arguments.add_argument("--picture", type=Path, default=PICTURES / "row_sparse.png", help="picture of the costs")
    options = arguments.parse_args()
    results = load(options.output)
    results["machine"] = machine()
    work: list[tuple[str, str, Callable[[], dict[str, CompiledStep]]]] = []
    if options.only != "train":
        for sizes in STEPS:
            work.append(("optimizer", "V={} D={} N={}".format(*sizes), lambda sizes=sizes: optimizer_steps(*sizes)))
    if options.only != "optimizer":
        work += [("train", head, lambda head=head: train_steps(head)) for head in HEADS]
    for kind, name, steps in tqdm(work, unit="measurement"):
        results.setdefault(kind, {})[name] = measure(steps(), options.repeats)
        save(options.output, results)
    print(table(results))
    if "optimizer" in results:
        draw(options.picture, results["optimizer"], results["machine"])


def measure(steps: dict[str, CompiledStep], repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each step, the steps taking turns, and temporaries."""
    seconds = take_turns(steps, repeats)
    return {
        name: {"milliseconds": 1e3 * median(seconds[name]), "temporaries": step.cost.temporaries} for name, step in steps.items()
    }


def optimizer_steps(size: int, width: int, tokens: int) -> dict[str, CompiledStep]:
    """The three optimizer steps on one (V, D) table; the compact gradient has N distinct tokens."""
    rng = np.random.default_rng(0)
    ids = jnp.asarray(np.sort(rng.choice(size, tokens, replace=False)), jnp.int32)
    rows = jnp.asarray(rng.standard_normal((tokens, width), np.float32))
    ember_tx, adamw = ember(RATE, optax.adamw(RATE), tables=EmberDimensionNumbers()), optax.adamw(RATE)

    def fresh(tx):
        return lambda: carry(tx, jnp.ones((size, width)))

    steps = {"row-sparse": compile_step(row_sparse_optimizer_step(ember_tx), fresh(ember_tx), rows, ids)}
    if size * width > LARGEST_DENSE:
        return steps
    dense = jnp.zeros((size, width)).at[ids].set(rows)
    for name, tx in (("dense Ember", ember_tx), ("AdamW", adamw)):
        steps[name] = compile_step(optimizer_step(tx), fresh(tx), dense)
    return steps


def train_steps(head: str) -> dict[str, CompiledStep]:
    """Whole train steps of a small model: an input table of V rows, an MLP, one of `HEADS`."""
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, MODEL["vocabulary"], (MODEL["batch"], MODEL["length"] + 1)), jnp.int32)
    negatives = jnp.asarray(rng.integers(0, MODEL["vocabulary"], MODEL["negatives"]), jnp.int32)
    loss_fn, looked_up = HEADS[head]
    ember_tx, adamw = ember(RATE, optax.adamw(RATE), tables=_tables), optax.adamw(RATE)

    def fresh(tx):
        return lambda: carry(tx, _init_model(head))

    row_step = row_sparse_train_step(ember_tx, loss_fn, looked_up)
    steps = {"row-sparse": compile_step(row_step, fresh(ember_tx), ids, negatives)}
    for name, tx in (("dense Ember", ember_tx), ("AdamW", adamw)):
        steps[name] = compile_step(train_step(tx, loss_fn), fresh(tx), ids, negatives)
    return steps


def _init_model(head: str) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    size, width, hidden = MODEL["vocabulary"], MODEL["width"], MODEL["hidden"]
    outputs = MODEL["classes"] if head == "classes" else size
    return {
        "embed": {"embedding": 0.02 * jax.random.normal(keys[0], (size, width))},
        "up": {"kernel": 0.02 * jax.random.normal(keys[1], (width, hidden))},
        "down": {"kernel": 0.02 * jax.random.normal(keys[2], (hidden, width))},
        "head": {"embedding": 0.02 * jax.random.normal(keys[3], (outputs, width))},
    }


def _tables(params: Any) -> Any:
    def numbers(path, leaf):
        del leaf
        return EmberDimensionNumbers() if path[-1].key == "embedding" else None

    return jax.tree_util.tree_map_with_path(numbers, params)


def _hidden(params: Any, ids: jax.Array) -> jax.Array:
    x = row_sparse.lookup(params["embed"]["embedding"], ids)
    return x + jax.nn.gelu(x @ params["up"]["kernel"]) @ params["down"]["kernel"]


def _classes_loss(params: Any, ids: jax.Array, negatives: jax.Array) -> jax.Array:
    del negatives
    logits = _hidden(params, ids[:, :-1]) @ params["head"]["embedding"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:] % MODEL["classes"]).mean()


def _sampled_loss(params: Any, ids: jax.Array, negatives: jax.Array) -> jax.Array:
    """Softmax over the label and uniformly drawn negatives, whose correction is one constant for all of them."""
    x, labels = _hidden(params, ids[:, :-1]), ids[:, 1:]
    of_labels = jnp.sum(x * row_sparse.lookup(params["head"]["embedding"], labels), -1)
    of_negatives = x @ row_sparse.lookup(params["head"]["embedding"], negatives).T
    correction = np.log(MODEL["vocabulary"] / MODEL["negatives"])
    rest = jax.nn.logsumexp(jnp.where(negatives == labels[..., None], -jnp.inf, of_negatives + correction), -1)
    return jnp.mean(jnp.logaddexp(of_labels, rest) - of_labels)


def _dense_loss(params: Any, ids: jax.Array, negatives: jax.Array) -> jax.Array:
    del negatives
    logits = _hidden(params, ids[:, :-1]) @ params["head"]["embedding"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


def _input_ids(ids: jax.Array, negatives: jax.Array) -> dict[str, jax.Array]:
    del negatives
    return {"embed/embedding": ids[:, :-1]}


def _both_ids(ids: jax.Array, negatives: jax.Array) -> dict[str, jax.Array]:
    return _input_ids(ids, negatives) | {"head/embedding": jnp.concatenate([ids[:, 1:].reshape(-1), negatives])}


# A loss, and the ids that its row-sparse tables look up.
HEADS = {
    "classes": (_classes_loss, _input_ids),
    "sampled softmax": (_sampled_loss, _both_ids),
}


def table(results: dict[str, Any]) -> str:
    """Times as multiples of the row-sparse step, and its temporaries."""
    parts = []
    for kind in ("optimizer", "train"):
        rows = []
        for name, found in results.get(kind, {}).items():
            ours = found["row-sparse"]
            ratios = [
                f"{found[other]['milliseconds'] / ours['milliseconds']:.1f}" if other in found else ""
                for other in ("dense Ember", "AdamW")
            ]
            temporaries = [f"{found[one]['temporaries'] / 2**20:.1f}" if one in found else "" for one in ("row-sparse", "AdamW")]
            rows.append((name, f"{ours['milliseconds']:.2f}", *ratios, *temporaries))
        headers = (f"{kind} step", "row-sparse (ms)", "dense Ember / it", "AdamW / it", "temporaries (MiB)", "AdamW's (MiB)")
        if rows:
            parts.append(markdown(rows, headers))
    return "\n\n".join(parts)


def draw(path: Path, results: dict[str, Any], machine: str) -> None:
    """Draws milliseconds against V (at N = 2048) and against N (at V = 262144), D = 256."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    sizes = {tuple(int(part.split("=")[1]) for part in name.split()): found for name, found in results.items()}
    for axes, varied, fixed, label in (
        (panels[0], 0, (2, 2048), "V, at N = 2048"),
        (panels[1], 2, (0, 262_144), "N, at V = 262144"),
    ):
        chosen = sorted((size for size in sizes if size[1] == 256 and size[fixed[0]] == fixed[1]), key=lambda size: size[varied])
        for name in ("AdamW", "dense Ember", "row-sparse"):
            points = [(size[varied], sizes[size][name]["milliseconds"]) for size in chosen if name in sizes[size]]
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("optimizer step, ms (D = 256)")
    panels[0].legend()
    figure.suptitle(machine, fontsize=9)
    save_picture(path, figure)


if __name__ == "__main__":
    main()
