"""What the optimizer costs on a mesh: the collectives of its compiled step, and the bytes of state on each device.

One table of 128,256 x 6,144 on 8 simulated devices, in five layouts, for Ember, Adam and Adafactor; then train steps of an input
table, the batch split over the devices, with dense and with row-sparse gradients. Only abstract values: the steps are compiled,
nothing is allocated.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from benchmarks.harness.compiled import Collective, cost
from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, parser, save
from benchmarks.harness.steps import abstract_carry, bytes_per_device, optimizer_step, row_sparse_train_step, train_step
from ember_optax import EmberDimensionNumbers, ember, row_sparse

MESH = {"data": 2, "fsdp": 2, "tp": 2}
LAYOUTS = {
    "replicated": P(),
    "P('fsdp', None)": P("fsdp"),
    "P(None, 'tp')": P(None, "tp"),
    "P('fsdp', 'tp')": P("fsdp", "tp"),
    "P(('data', 'fsdp'), None)": P(("data", "fsdp")),
}
# Of the input table of a train step, whose batch is split over all devices.
INPUT_LAYOUTS = {"replicated": P(), "rows": P(("data", "fsdp", "tp"))}
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "Ember": lambda: ember(1e-3, optax.adamw(1e-3), tables=EmberDimensionNumbers()),
    "Adam": lambda: optax.adam(1e-3),
    "Adafactor": lambda: optax.adafactor(1e-3),
}


def main() -> None:
    """Compiles every pair and prints the tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--tokens", type=int, default=128_256, help="rows of the table")
    arguments.add_argument("--features", type=int, default=6_144, help="columns of the table")
    arguments.add_argument("--output", type=Path, default=RESULTS / "collectives.json", help="results")
    arguments.add_argument("--batch", type=int, default=2048, help="tokens of a train step's batch")
    arguments.add_argument(
        "--row-sparse-output",
        type=Path,
        default=RESULTS / "collectives_row_sparse.json",
        help="results of the train steps",
    )
    options = arguments.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    results = measure((options.tokens, options.features))
    save(options.output, results)
    print(f"State on each device, bytes, for a {options.tokens:,} x {options.features:,} float32 table on 8 devices:\n")
    print(bytes_table(results))
    print("\nCollectives of one optimizer step, bytes on each device:\n")
    print(collectives_table(results))
    row_sparse_results = measure_train_steps((options.tokens, options.features), options.batch)
    save(options.row_sparse_output, row_sparse_results)
    print(f"\nCollectives of a train step on {options.batch:,} tokens, bytes on each device:\n")
    print(train_steps_table(row_sparse_results))


def measure(shape: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """State bytes on each device and collectives of the step, by layout and optimizer."""
    mesh, results = _mesh(), {}
    for layout in tqdm(LAYOUTS, desc="layouts", unit="layout"):
        results[layout] = {}
        for name, make in OPTIMIZERS.items():
            state_bytes, found = of_optimizer_step(make(), shape, NamedSharding(mesh, LAYOUTS[layout]))
            results[layout][name] = {
                "state bytes per device": state_bytes,
                "collectives": [collective._asdict() for collective in found],
            }
    return results


def of_optimizer_step(
    tx: optax.GradientTransformation, shape: tuple[int, int], sharding: NamedSharding
) -> tuple[int, list[Collective]]:
    """Bytes of state on each device, and the collectives of `update` and `apply_updates` for one table's gradient."""
    table = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    start, shardings = abstract_carry(tx, table, sharding)
    step = jax.jit(optimizer_step(tx), donate_argnums=0, out_shardings=shardings)
    return sum(map(bytes_per_device, jax.tree.leaves(start[1]))), cost(step, start, table).collectives


def measure_train_steps(shape: tuple[int, int], batch: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Collectives of whole train steps of an input table, by layout, with dense and with row-sparse gradients."""
    mesh, results = _mesh(), {}
    for layout, spec in tqdm(INPUT_LAYOUTS.items(), desc="train steps", unit="layout"):
        found = (of_train_step(shape, batch, NamedSharding(mesh, spec), sparse=sparse) for sparse in (False, True))
        results[layout] = dict(zip(("dense", "row-sparse"), ([one._asdict() for one in sent] for sent in found), strict=True))
    return results


def of_train_step(shape: tuple[int, int], batch: int, sharding: NamedSharding, *, sparse: bool) -> list[Collective]:
    """The collectives of lookup, backward pass and Ember's step for one input table and a batch split over all devices."""
    tx = ember(1e-3, optax.adamw(1e-3), tables=EmberDimensionNumbers())
    table = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    ids = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=NamedSharding(sharding.mesh, P(("data", "fsdp", "tp"))))

    def loss_fn(table, ids):
        return jnp.mean(jnp.square(row_sparse.lookup(table, ids)))

    start, shardings = abstract_carry(tx, table, sharding)
    step = row_sparse_train_step(tx, loss_fn, lambda ids: ids) if sparse else train_step(tx, loss_fn, sharding)
    return cost(jax.jit(step, donate_argnums=0, out_shardings=shardings), start, ids).collectives


def bytes_table(results: dict[str, dict[str, Any]]) -> str:
    """One line a layout, one column an optimizer."""
    rows = [(layout, *(f"{found['state bytes per device']:,}" for found in row.values())) for layout, row in results.items()]
    return markdown(rows, ("layout", *OPTIMIZERS))


def collectives_table(results: dict[str, dict[str, Any]]) -> str:
    """One line a layout; bytes of each kind of collective, and how many there are."""
    rows = [(layout, *(_cell(found["collectives"]) for found in row.values())) for layout, row in results.items()]
    return markdown(rows, ("layout", *OPTIMIZERS))


def train_steps_table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """One line a layout of the table, one column for each kind of gradient."""
    rows = [(layout, *map(_cell, row.values())) for layout, row in results.items()]
    return markdown(rows, ("input table", "dense gradient", "row-sparse gradient"))


def _cell(found: list[dict[str, Any]]) -> str:
    operations = dict.fromkeys(collective["operation"] for collective in found)
    sizes = {name: [c["bytes"] for c in found if c["operation"] == name] for name in operations}
    return ", ".join(f"{name} {sum(size):,} ({len(size)})" for name, size in sizes.items()) or "none"


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(AxisType.Auto,) * len(MESH))


if __name__ == "__main__":
    main()
