"""What a head costs in chunks of its vocabulary, as a multiple of the usual loss with Ember's dense step.

Two measurements. The loss: `jax.value_and_grad` of the mean cross entropy with respect to hidden states and head. The step: the
same, Ember's step of the head and SGD's of the hidden states; for a tied table the hidden states contain its rows. All ways take
turns in one process. What counts is what the process does on all cores (`time.process_time`), since the machine may be busy.
Products are counted in the traced program, temporaries by XLA.

`--compilers` asks those of a TPU v5e and an H100 for the temporaries instead of a clock, and needs their extras, `tpu-compiler`
and `gpu-compiler`. `--write` puts the tables into docs/chunked_loss.md and docs/fused_head.md.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.harness.compiled import cost, products_of
from benchmarks.harness.report import markdown, put
from benchmarks.harness.results import RESULTS, ROOT, load, machine, parser, save
from benchmarks.harness.steps import Step, carry, row_sparse_train_step, train_step
from benchmarks.harness.targets import TARGETS, has_compiler, on_chip, use_compilers
from benchmarks.harness.timing import compile_step, take_turns
from ember_optax import EmberDimensionNumbers, ember, row_sparse, stochastic_rounding
from ember_optax.losses import linear_softmax_cross_entropy

# V, D, N, dtype. The first is that of the promise; the others vary one number of the second at a time.
SIZES = [
    "131072x640x512 float32 tied",
    "8192x640x512 float32",
    "8192x640x512 float32 tied",
    "8192x640x512 bfloat16",
    "8192x640x2048 float32",
    "8192x1280x512 float32",
    "32768x640x512 float32",
]
CHUNKED = {"8192x640x512 float32": (512, 2048, 4096)}
CHUNK = 2048
# For the compilers: a table of Gemma 3 1B and as many tokens as a chip sees.
ON_CHIP = (
    "262144x1152x4096 float32",
    "262144x1152x4096 float32 tied",
    "262144x1152x4096 bfloat16",
    "262144x1152x4096 bfloat16 tied",
)
CHIPS = ("v5e", "H100")
PAGES = {"HEAD LOSSES": ROOT / "docs" / "chunked_loss.md", "HEAD STEPS": ROOT / "docs" / "fused_head.md"}
USUAL = "usual loss"


class Size(NamedTuple):
    """Sizes of a head and its batch."""

    rows: int
    width: int
    tokens: int
    dtype: Any
    tied: bool


def main() -> None:
    """Measures every size that is not in the file yet, prints the tables, writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", nargs="+", default=SIZES, help="vocabulary x features x tokens, dtype, tied or not")
    arguments.add_argument("--repeats", type=int, default=5, help="measurements of each way")
    arguments.add_argument("--output", type=Path, default=RESULTS / "head_losses.json", help="results")
    arguments.add_argument("--compilers", action="store_true", help="temporaries on chips that are not here, and no clock")
    arguments.add_argument("--write", action="store_true", help="nothing but the tables of the pages, from the file")
    options = arguments.parse_args()
    results = load(options.output)
    if options.write:
        for mark, page in PAGES.items():
            put(page, mark, TABLES[mark](results) + "\n")
        return
    if options.compilers:
        use_compilers()
        for name in ON_CHIP:
            for chip in (chip for chip in CHIPS if has_compiler(TARGETS[chip])):
                results.setdefault("compilers", {}).setdefault(name, {})[chip] = account(chip, size_of(name))
                save(options.output, results)
    else:
        results["machine"] = machine()
        for name in tqdm(options.sizes, unit="size"):
            for kind, ways in (("loss", losses), ("step", steps)):
                if name not in results.setdefault(kind, {}) and not (kind == "loss" and size_of(name).tied):
                    results[kind][name] = measure(ways(size_of(name), CHUNKED.get(name, (CHUNK,))), options.repeats)
                    save(options.output, results)
    for of_results in TABLES.values():
        print(of_results(results), "\n")


def size_of(name: str) -> Size:
    """The sizes that a name tells."""
    sizes, dtype, *tied = name.split()
    rows, width, tokens = (int(number) for number in sizes.split("x"))
    return Size(rows, width, tokens, jnp.dtype(dtype), bool(tied))


class Way(NamedTuple):
    """One way to a result: the step, its fresh carry, what else it is given."""

    step: Step
    fresh: Callable[[], Any]
    given: tuple[Any, ...]


def measure(ways: dict[str, Way], repeats: int) -> dict[str, Any]:
    """For each way the ratio of its time to that of the usual one, its products by those of the usual one, and temporaries."""
    compiled = {name: compile_step(way.step, way.fresh, *way.given) for name, way in ways.items()}
    seconds = take_turns(compiled, repeats, time.process_time)
    products = {name: products_of(way.step, jax.eval_shape(way.fresh), *way.given) for name, way in ways.items()}

    def found(name: str) -> dict[str, Any]:
        ratios = [ours / unit for ours, unit in zip(seconds[name], seconds[USUAL], strict=True)]
        return {
            "ratio": median(ratios),
            "ratios": [min(ratios), max(ratios)],
            "milliseconds": 1e3 * median(seconds[name]),
            "products": products[name] / products[USUAL],
            "temporaries": compiled[name].cost.temporaries,
        }

    return {name: found(name) for name in ways}


def losses(size: Size, chunks: tuple[int, ...]) -> dict[str, Way]:
    """The usual loss and that in chunks, with the gradients of hidden states and head."""
    params, _, labels = arrays(size)

    def way(loss: Callable[..., jax.Array]) -> Way:
        def step(gradients, params):
            del gradients  # written over
            return jax.value_and_grad(lambda params: loss(params["hidden"], params["head"], labels).mean())(params)

        return Way(step, lambda: (jnp.float32(0), jax.tree.map(jnp.zeros_like, params)), (params,))

    return {USUAL: way(_usual_loss)} | {f"in chunks of {chunk:,}": way(_in_chunks(chunk)) for chunk in chunks}


def steps(size: Size, chunks: tuple[int, ...]) -> dict[str, Way]:
    """The usual loss and that in chunks with Ember's dense step, and the fused head."""
    params, ids, labels = arrays(size)
    return {
        name: Way(step, lambda: carry(_tx(size), jax.tree.map(jnp.copy, params)), (ids, labels))
        for name, step in step_functions(size, chunks).items()
    }


def step_functions(size: Size, chunks: tuple[int, ...]) -> dict[str, Step]:
    """`step(carry, ids, labels)` for each way."""

    def loss_fn(params, ids, labels, loss):
        hidden = params["hidden"] + (row_sparse.lookup(params["head"], ids) if size.tied else 0)
        return loss(hidden, params["head"], labels).mean()

    def of(loss):
        return lambda params, ids, labels: loss_fn(params, ids, labels, loss)

    tx = _tx(size)
    found = {USUAL: train_step(tx, of(_usual_loss))}
    found |= {f"in chunks of {chunk:,}": train_step(tx, of(_in_chunks(chunk))) for chunk in chunks}
    for chunk in chunks:
        looked_up = (lambda ids, labels: {"head": ids}) if size.tied else (lambda ids, labels: {})
        found[f"fused, chunks of {chunk:,}"] = row_sparse_train_step(tx, of(_in_chunks(chunk)), looked_up, heads=["head"])
    return found


def _tx(size: Size) -> Any:
    tx = ember(1e-3, optax.sgd(1e-3), tables={"head": EmberDimensionNumbers(), "hidden": None})
    return optax.chain(tx, stochastic_rounding(0)) if size.dtype == jnp.bfloat16 else tx


def _usual_loss(hidden: jax.Array, head: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels((hidden @ head.T).astype(jnp.float32), labels)


def _in_chunks(chunk: int | None) -> Callable[..., jax.Array]:
    def loss(hidden, head, labels):
        return linear_softmax_cross_entropy(hidden, head, labels, chunk=chunk)

    return loss


def arrays(size: Size) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Hidden states and head, ids and labels."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((size.tokens, size.width), np.float32), size.dtype)
    head = jnp.asarray(0.02 * rng.standard_normal((size.rows, size.width), np.float32), size.dtype)
    ids, labels = (jnp.asarray(rng.integers(0, size.rows, size.tokens), jnp.int32) for _ in range(2))
    return {"hidden": hidden, "head": head}, ids, labels


def account(chip: str, size: Size) -> dict[str, int]:
    """Temporaries of loss and step by the compiler of a chip, in bytes."""
    shapes = {"hidden": (size.tokens, size.width), "head": (size.rows, size.width)}
    params = {name: jax.ShapeDtypeStruct(shape, size.dtype) for name, shape in shapes.items()}
    ids = jax.ShapeDtypeStruct((size.tokens,), jnp.int32)
    given = on_chip(chip, (jax.eval_shape(partial(carry, _tx(size)), params), ids, ids))
    return {
        name: cost(jax.jit(step, donate_argnums=0), *given).temporaries for name, step in step_functions(size, (CHUNK,)).items()
    }


def loss_table(results: dict[str, Any]) -> str:
    """Loss and gradient."""
    return _table(results.get("loss", {}))


def step_table(results: dict[str, Any]) -> str:
    """Loss, gradient and step."""
    return _table(results.get("step", {}))


def _table(of_sizes: dict[str, Any]) -> str:
    rows = []
    for name, found in of_sizes.items():
        for way, one in found.items():
            low, high = one["ratios"]
            ratio = "1" if way == USUAL else f"{one['ratio']:.2f} ({low:.2f} to {high:.2f})"
            rows.append((name, way, ratio, f"{one['products']:.2f}", f"{one['temporaries'] / 2**20:,.1f}"))
    return markdown(rows, ("V x D x N", "way", "time", "products", "temporaries (MiB)"), names=2)


def account_table(results: dict[str, Any]) -> str:
    """Temporaries on chips."""
    rows = []
    for name, of_chips in results.get("compilers", {}).items():
        rows += [(name, chip, *(f"{one / 2**20:,.1f}" for one in found.values())) for chip, found in of_chips.items()]
    return markdown(rows, ("V x D x N", "chip", USUAL, "in chunks", "fused"), names=2)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "HEAD LOSSES": loss_table,
    "HEAD STEPS": step_table,
    "HEAD TEMPORARIES": account_table,
}


if __name__ == "__main__":
    main()
