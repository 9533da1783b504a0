"""The loss in chunks by the size of the chunks, by the compilers of a TPU v5e and an H100, which need not be here.

Temporaries of `jax.value_and_grad` of the mean loss with respect to hidden states and head, for 4,096 tokens. `--write` puts the
table into docs/chunked_loss.md.
"""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness.compiled import cost_of
from benchmarks.harness.report import markdown, put
from benchmarks.harness.results import RESULTS, ROOT, fill, load, parser
from benchmarks.harness.targets import available, on_chip, use_compilers
from ember_optax.losses import linear_softmax_cross_entropy

CHIPS = ("v5e", "H100")
HEADS = {"262144 x 1152 float32": (262_144, 1_152, "float32"), "128256 x 4096 bfloat16": (128_256, 4_096, "bfloat16")}
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
    wanted = [(chip, head, chunk) for chip in available(list(CHIPS)) for head in HEADS for chunk in CHUNKS]
    print(table(fill(output, wanted, measure, "program")))


def measure(chip: str, head: str, chunk: str) -> dict[str, Any]:
    """Bytes of temporaries."""
    size, width, dtype = HEADS[head]

    def loss_fn(head: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        return linear_softmax_cross_entropy(hidden, head, labels, chunk=int(chunk)).mean()

    arrays = [jax.ShapeDtypeStruct((rows, width), dtype) for rows in (size, TOKENS)]
    given = on_chip(chip, (*arrays, jax.ShapeDtypeStruct((TOKENS,), jnp.int32)))
    return {"temporaries": cost_of(jax.jit(jax.value_and_grad(loss_fn, (0, 1))).lower(*given).compile()).temporaries}


def table(results: dict[str, Any]) -> str:
    """One line for each chip and head, with the temporaries in MiB at each size of the chunks."""
    rows = [
        (chip, head, *(f"{found[chunk]['temporaries'] / 2**20:,.0f}" if chunk in found else "" for chunk in CHUNKS))
        for chip, of_chip in results.items()
        for head, found in of_chip.items()
    ]
    return markdown(rows, ("chip", "head", *(f"{int(chunk):,}" for chunk in CHUNKS)), names=2)


if __name__ == "__main__":
    main()
