"""The loss in chunks and the fused step by the size of the chunks, by the compilers of a TPU v5e and an H100.

Neither has to be here. Temporaries for 4,096 tokens: of `jax.value_and_grad` of the mean loss with respect to hidden states and
head, and of a whole step of a fused head. `--write` puts the table into docs/chunked_loss.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.harness.compiled import cost_of
from benchmarks.harness.report import markdown, put
from benchmarks.harness.results import RESULTS, ROOT, fill, load, parser
from benchmarks.harness.targets import available, on_chip, use_compilers
from ember_optax import EmberDimensionNumbers, ember, row_sparse
from ember_optax.losses import linear_softmax_cross_entropy

CHIPS = ("v5e", "H100")
HEADS = {"262144 x 1152 float32": (262_144, 1_152, "float32"), "128256 x 4096 bfloat16": (128_256, 4_096, "bfloat16")}
LOSS, FUSED = "loss in chunks", "fused step"
CHUNKS = ("1024", "2048", "4096", "8192", "16384")
TOKENS = 4_096
PAGE = ROOT / "docs" / "chunked_loss.md"


def main() -> None:
    """Compiles what is not in the file yet, prints the table and writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--write", action="store_true", help="nothing but the table of the page, from the file")
    options = arguments.parse_args()
    output = RESULTS / "chunk_sizes.json"
    if options.write:
        put(PAGE, "CHUNK SIZES", table(load(output)) + "\n")
        return
    use_compilers()
    chips = available(list(CHIPS))
    wanted = [(chip, head, way, chunk) for chip in chips for head in HEADS for way in (LOSS, FUSED) for chunk in CHUNKS]
    print(table(fill(output, wanted, measure, "program")))


def measure(chip: str, head: str, way: str, chunk: str) -> dict[str, Any]:
    """Bytes of temporaries."""
    size, width, dtype = HEADS[head]
    table, hidden = (jax.ShapeDtypeStruct((rows, width), dtype) for rows in (size, TOKENS))
    params, batch = {"head": table}, (hidden, jax.ShapeDtypeStruct((TOKENS,), jnp.int32))

    def loss_fn(params: Any, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        return linear_softmax_cross_entropy(hidden, params["head"], labels, chunk=int(chunk)).mean()

    if way == LOSS:
        lowered = jax.jit(jax.value_and_grad(loss_fn, (0, 1))).lower(*on_chip(chip, (params, *batch)))
    else:
        tables = {"head": EmberDimensionNumbers()}
        tx, gradient = (
            ember(1e-3, optax.sgd(1e-3), tables=tables),
            row_sparse.value_and_grad(loss_fn, heads="head", tables=tables),
        )

        def step(params, opt_state, *batch):
            _, grads = gradient(params, {}, *batch)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        given = on_chip(chip, (params, jax.eval_shape(tx.init, params), *batch))
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*given)
    return {"temporaries": cost_of(lowered.compile()).temporaries}


def table(results: dict[str, Any]) -> str:
    """One line for each chip, head and way, with the temporaries in MiB at each size of the chunks."""
    rows = [
        (chip, head, way, *(f"{found[chunk]['temporaries'] / 2**20:,.0f}" if chunk in found else "" for chunk in CHUNKS))
        for chip, of_chip in results.items()
        for head, of_head in of_chip.items()
        for way, found in of_head.items()
    ]
    return markdown(rows, ("chip", "head", "program", *(f"{int(chunk):,}" for chunk in CHUNKS)), names=3)


if __name__ == "__main__":
    main()
