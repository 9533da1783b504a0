"""Whole train steps of a model in the shape of Llama 3 8B on 256 chips, its head split by tokens, by the TPU compiler's account.

The mesh has the axes "fsdp" and "vocab", of 16 chips each. The head is split over "vocab", and everything else over all chips.
Each chip has one sequence of 1,024 tokens. The hidden states are gathered over "vocab" for the head, so each chip works on 16,384
tokens and 8,016 rows. Activations are in bfloat16, parameters and states in float32, and blocks are rematerialised. Nothing but
the extra `tpu-compiler` is needed. The compiler works with its least effort (`jax_exec_time_optimization_effort` of -1).
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.harness.compiled import collectives_in, cost_of, elements_by_operation
from benchmarks.harness.models import OPTIMIZERS, SHAPES, init_params, loss_fn, token_tables_of
from benchmarks.harness.report import markdown, sent
from benchmarks.harness.results import RESULTS, fill, parser
from benchmarks.harness.sending import in_loops, outside_of_loops
from benchmarks.harness.steps import abstract_carry, bytes_per_device, optimizer_step
from benchmarks.harness.targets import available, mesh_of, use_compilers
from ember_optax import row_sparse

CHIPS, MODEL, LENGTH = "256 x v5e", "Llama-3-8B", 1024
USUAL, CHUNKS, FUSED = "usual loss", "loss in chunks", "fused head"
WAYS = (("Adam", USUAL), ("Adam", CHUNKS), ("Ember + Adam", USUAL), ("Ember + Adam", CHUNKS), ("Ember + Adam", FUSED))
HEAD = "lm_head/kernel"
_ALL = ("fsdp", "vocab")
# The vocabulary of both tables, and the input features of the blocks' matrices, whose first axis is the layers.
SPECS = {"embed": P(_ALL), "lm_head": P(None, "vocab"), "blocks": P(None, _ALL), "norms": P()}


def main() -> None:
    """Compiles what is not in the file yet, prints the table and writes JSON."""
    use_compilers()
    arguments = parser(__doc__)
    arguments.add_argument("--output", type=Path, default=RESULTS / "fsdp_head.json", help="results")
    options = arguments.parse_args()
    wanted = [(*case,) for case in WAYS] if available([CHIPS]) else []
    print(table(fill(options.output, wanted, measure, "train step")))


def measure(optimizer: str, way: str) -> dict[str, Any]:
    """Bytes of the state, of the peak and of temporaries on each chip, and the elements that it gets.

    A collective in a loop is counted once. The loops are those over the layers, forward and backward, and those over the chunks.
    """
    tx, shape, mesh = OPTIMIZERS[optimizer](), SHAPES[MODEL], mesh_of(CHIPS, fsdp=16, vocab=16)
    params = jax.eval_shape(lambda: init_params(shape))
    shardings = jax.tree_util.tree_map_with_path(lambda path, _: NamedSharding(mesh, _spec(path)), params)
    start, of_carry = abstract_carry(tx, params, shardings)
    ids = jax.ShapeDtypeStruct((mesh.size, LENGTH + 1), jnp.int32, sharding=NamedSharding(mesh, P(_ALL)))
    options = {} if way == USUAL else {"in_chunks": True, "token_mesh_axes": "vocab"}
    loss = partial(loss_fn, shape=shape, dtype=jnp.bfloat16, **options)

    def step(carry, ids):
        if way == FUSED:
            _, grads = row_sparse.value_and_grad(loss, heads=HEAD, tables=token_tables_of)(carry[0], {}, ids)
        else:
            grads = jax.lax.with_sharding_constraint(jax.grad(loss)(carry[0], ids), shardings)
        return optimizer_step(tx)(carry, grads)

    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=of_carry).lower(start, ids).compile()
    jax.config.update("jax_exec_time_optimization_effort", 0.0)
    cost, text = cost_of(compiled), compiled.as_text() or ""
    parts = {"in loops": in_loops(text), "outside": outside_of_loops(text)}
    state = sum(map(bytes_per_device, jax.tree.leaves(start[1])))
    found = {name: elements_by_operation(collectives_in(part)) for name, part in parts.items()}
    return {"state": state, "peak": cost.peak, "temporaries": cost.temporaries, **found}


def _spec(path: tuple[Any, ...]) -> P:
    return SPECS["norms"] if path[-1].key == "norms" else SPECS[path[0].key]


def table(results: dict[str, Any]) -> str:
    """One line for each optimizer and way."""
    rows = [
        (
            optimizer,
            way,
            *(f"{found[what] / 2**20:,.0f}" for what in ("state", "peak")),
            sent(found["in loops"]),
            sent(found["outside"]),
        )
        for optimizer, of_optimizer in results.items()
        for way, found in of_optimizer.items()
    ]
    headers = ("optimizer", "head", "state (MiB)", "peak (MiB)", "sent in loops, once counted", "sent outside of loops")
    return markdown(rows, headers, names=2)


if __name__ == "__main__":
    main()
