"""What the optimizer costs on a mesh: the collectives of its compiled step, and the bytes of state on each device.

One table of 128,256 x 6,144 on 8 simulated devices, in five layouts, for Ember, Adam and Adafactor; then train steps of an input
table, the batch split over the devices, with dense and with row-sparse gradients. Only abstract values: the steps are compiled,
nothing is allocated.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from hlo import Collective, collectives
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tabulate import tabulate
from tqdm import tqdm

from ember_optax import EmberDimensionNumbers, ember, row_sparse, state_shardings

ROOT = Path(__file__).parents[1]
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
    "Ember": lambda: ember(1e-3, tables=EmberDimensionNumbers()),
    "Adam": lambda: optax.adam(1e-3),
    "Adafactor": lambda: optax.adafactor(1e-3),
}


def main() -> None:
    """Compiles every pair and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128_256, help="rows of the table")
    parser.add_argument("--features", type=int, default=6_144, help="columns of the table")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "collectives.json", help="results")
    parser.add_argument("--batch", type=int, default=2048, help="tokens of a train step's batch")
    parser.add_argument(
        "--row-sparse-output",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "collectives_row_sparse.json",
        help="results of the train steps",
    )
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    results = measure((options.tokens, options.features))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"State on each device, bytes, for a {options.tokens:,} x {options.features:,} float32 table on 8 devices:\n")
    print(bytes_table(results))
    print("\nCollectives of one optimizer step, bytes on each device:\n")
    print(collectives_table(results))
    row_sparse_results = measure_train_steps((options.tokens, options.features), options.batch)
    options.row_sparse_output.write_text(json.dumps(row_sparse_results, indent=1) + "\n")
    print(f"\nCollectives of a train step on {options.batch:,} tokens, bytes on each device:\n")
    print(train_steps_table(row_sparse_results))


def measure(shape: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """State bytes on each device and collectives of the step, by layout and optimizer."""
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(AxisType.Auto,) * len(MESH))
    results = {}
    for layout in tqdm(LAYOUTS, desc="layouts", unit="layout"):
        results[layout] = {}
        for name, make in OPTIMIZERS.items():
            state_bytes, found = optimizer_step(make(), shape, NamedSharding(mesh, LAYOUTS[layout]))
            results[layout][name] = {
                "state bytes per device": state_bytes,
                "collectives": [collective._asdict() for collective in found],
            }
    return results


def optimizer_step(
    tx: optax.GradientTransformation, shape: tuple[int, int], sharding: NamedSharding
) -> tuple[int, list[Collective]]:
    """Bytes of state on each device, and the collectives of `update` and `apply_updates` for one table's gradient."""
    table = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    shardings = state_shardings(tx, table, sharding)

    def step(table, opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, table)
        return optax.apply_updates(table, updates), opt_state

    state = jax.tree.map(_abstract, jax.eval_shape(tx.init, table), shardings)
    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(sharding, shardings))
    return sum(map(bytes_per_device, jax.tree.leaves(state))), collectives(step.lower(table, state, table).compile())


def measure_train_steps(shape: tuple[int, int], batch: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Collectives of whole train steps of an input table, by layout, with dense and with row-sparse gradients."""
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(AxisType.Auto,) * len(MESH))
    results = {}
    for layout, spec in tqdm(INPUT_LAYOUTS.items(), desc="train steps", unit="layout"):
        found = (train_step(shape, batch, NamedSharding(mesh, spec), sparse=sparse) for sparse in (False, True))
        results[layout] = dict(zip(("dense", "row-sparse"), ([one._asdict() for one in sent] for sent in found), strict=True))
    return results


def train_step(shape: tuple[int, int], batch: int, sharding: NamedSharding, *, sparse: bool) -> list[Collective]:
    """The collectives of lookup, backward pass and Ember's step for one input table and a batch split over all devices."""
    tx = ember(1e-3, tables=EmberDimensionNumbers())
    table = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    ids = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=NamedSharding(sharding.mesh, P(("data", "fsdp", "tp"))))
    shardings = state_shardings(tx, table, sharding)

    def loss_fn(table, ids):
        return jnp.mean(jnp.square(row_sparse.lookup(table, ids)))

    def step(table, opt_state, ids):
        if not sparse:
            grads = jax.lax.with_sharding_constraint(jax.grad(loss_fn)(table, ids), sharding)
            updates, opt_state = tx.update(grads, opt_state, table)
            return optax.apply_updates(table, updates), opt_state
        _, grads, token_ids = row_sparse.value_and_grad(loss_fn)(table, ids, ids)
        updates, opt_state = tx.update(grads, opt_state, table, token_ids=token_ids)
        return row_sparse.apply_updates(table, updates, token_ids), opt_state

    state = jax.tree.map(_abstract, jax.eval_shape(tx.init, table), shardings)
    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(sharding, shardings))
    return collectives(step.lower(table, state, ids).compile())


def bytes_per_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an abstract array's part on one device."""
    part = jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    return part.size * part.dtype.itemsize


def bytes_table(results: dict[str, dict[str, Any]]) -> str:
    """One line a layout, one column an optimizer."""
    rows = [(layout, *(f"{found['state bytes per device']:,}" for found in row.values())) for layout, row in results.items()]
    return _markdown(rows, ("layout", *OPTIMIZERS))


def collectives_table(results: dict[str, dict[str, Any]]) -> str:
    """One line a layout; bytes of each kind of collective, and how many there are."""
    rows = [(layout, *(_cell(found["collectives"]) for found in row.values())) for layout, row in results.items()]
    return _markdown(rows, ("layout", *OPTIMIZERS))


def train_steps_table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """One line a layout of the table, one column for each kind of gradient."""
    rows = [(layout, *map(_cell, row.values())) for layout, row in results.items()]
    return _markdown(rows, ("input table", "dense gradient", "row-sparse gradient"))


def _cell(found: list[dict[str, Any]]) -> str:
    operations = dict.fromkeys(collective["operation"] for collective in found)
    sizes = {name: [c["bytes"] for c in found if c["operation"] == name] for name in operations}
    return ", ".join(f"{name} {sum(size):,} ({len(size)})" for name, size in sizes.items()) or "none"


def _abstract(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _markdown(rows: list[tuple[str, ...]], headers: tuple[str, ...]) -> str:
    align = ("left",) + ("right",) * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)


if __name__ == "__main__":
    main()
