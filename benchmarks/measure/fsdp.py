"""A model in the shape of Llama 3 8B on 256 chips: bytes on each, and what the optimizer sends, by the TPU compiler's account.

Every parameter is split over all chips (FSDP), as its optimizer state is, by `state_shardings`; the batch is one sequence of
1,024 tokens on each chip, activations in bfloat16, blocks rematerialised. Nothing but the extra `tpu-compiler` is needed. The
whole train step is compiled with the least effort (`jax_exec_time_optimization_effort` of -1), in a fifth of the time.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.harness.compiled import cost, cost_if_it_fits, elements_by_operation
from benchmarks.harness.models import OPTIMIZERS, SHAPES, init_params, loss_fn
from benchmarks.harness.report import markdown, sent
from benchmarks.harness.results import RESULTS, fill, parser
from benchmarks.harness.steps import abstract_carry, bytes_per_device, optimizer_step, train_step
from benchmarks.harness.targets import available, mesh_of, use_compilers

CHIPS = ("256 x v5e", "256 x v5p", "256 x v6e")
COMPARED = ("SGD", "Adam", "Adafactor", "Ember + Adam", "Muon + Ember")
MODEL = "Llama-3-8B"
LENGTH = 1024
# The vocabulary of both tables and the input features of the blocks' matrices, whose first axis is the layers.
SPECS = {"embed": P("fsdp"), "lm_head": P(None, "fsdp"), "blocks": P(None, "fsdp"), "norms": P()}


def main() -> None:
    """Compiles, prints the table and writes JSON."""
    use_compilers()
    arguments = parser(__doc__)
    arguments.add_argument("--chips", nargs="+", choices=CHIPS, default=CHIPS[:1], help="which chips")
    arguments.add_argument("--output", type=Path, default=RESULTS / "fsdp.json", help="results")
    options = arguments.parse_args()
    wanted = [(chips, tx) for chips in available(options.chips) for tx in COMPARED]
    results = fill(options.output, wanted, lambda chips, tx: measure(chips, OPTIMIZERS[tx]()), "optimizer")
    print(table(results))


def measure(chips: str, tx: optax.GradientTransformation) -> dict[str, Any]:
    """Bytes on each chip: state, and the peak of a train step. Elements that a chip gets in the optimizer's step alone."""
    mesh, shape = mesh_of(chips, fsdp=256), SHAPES[MODEL]
    params = jax.eval_shape(lambda: init_params(shape))
    shardings = jax.tree_util.tree_map_with_path(lambda path, _: NamedSharding(mesh, _spec(path)), params)
    start, of_carry = abstract_carry(tx, params, shardings)
    ids = jax.ShapeDtypeStruct((256, LENGTH + 1), jnp.int32, sharding=NamedSharding(mesh, P("fsdp")))
    whole = train_step(tx, partial(loss_fn, shape=shape, dtype=jnp.bfloat16), shardings)
    step, whole = (jax.jit(one, donate_argnums=0, out_shardings=of_carry) for one in (optimizer_step(tx), whole))
    sent_by_step = elements_by_operation(cost(step, start, start[0]).collectives)
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    peak = cost_if_it_fits(whole, start, ids)
    jax.config.update("jax_exec_time_optimization_effort", 0.0)
    return {
        "state": sum(map(bytes_per_device, jax.tree.leaves(start[1]))),
        "peak": None if peak is None else peak.peak,
        "sent": sent_by_step,
    }


def _spec(path: tuple[Any, ...]) -> P:
    return SPECS["norms"] if path[-1].key == "norms" else SPECS[path[0].key]


def table(results: dict[str, Any]) -> str:
    """One line for each kind of chip and optimizer."""
    rows = [
        (chips, optimizer, f"{found['state'] / 2**20:,.1f}", _peak(found["peak"]), sent(found["sent"]))
        for chips, of_chips in results.items()
        for optimizer, found in of_chips.items()
    ]
    headers = (
        "chips",
        "optimizer",
        "state (MiB on each)",
        "peak (GiB on each)",
        "elements that the optimizer's step sends to each",
    )
    return markdown(rows, headers, names=2)


def _peak(peak: int | None) -> str:
    return "does not fit" if peak is None else f"{peak / 2**30:.2f}"


if __name__ == "__main__":
    main()
