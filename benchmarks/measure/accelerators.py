"""What the compilers for TPUs and an H100 say of Ember's step: tables moved, temporaries, collectives.

No such chip is needed, but the extras `tpu-compiler` and `gpu-compiler` are (one of them is enough). One chip: `update` and
`apply_updates` on one table, jitted and donated, on a dense gradient and on that of 2,048 rows. Several chips: what the
optimizer sends, alone and within a whole train step. All figures are the compilers' account, not a clock. `--check` measures
the first few of them and fails where they are not what the documents promise.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from benchmarks.harness.compiled import collectives_in, cost, cost_of, elements_by_operation, passes_in
from benchmarks.harness.report import markdown, save_picture, sent
from benchmarks.harness.results import PICTURES, RESULTS, load, parser, save
from benchmarks.harness.steps import abstract_carry, carry, optimizer_step, row_sparse_optimizer_step, train_step
from benchmarks.harness.targets import TARGETS, available, mesh_of, on_chip, use_compilers
from ember_optax import EmberDimensionNumbers, ember

CHIPS = ("v5e", "v5p", "v6e", "H100")
MESHES = ("8 x v5e", "8 x v5p", "8 x v6e", "256 x v5e", "256 x v5p", "256 x v6e")
DTYPES = ("float32", "bfloat16")
RATE = 1e-3
ROWS = 2048
# Larger than what a chip has in its fast memory on every device, where the compiler would count moves into that as well.
TABLES: dict[str, tuple[tuple[int, ...], EmberDimensionNumbers]] = {
    "(262144, 1024)": ((262_144, 1024), EmberDimensionNumbers()),
    "(1024, 262144)": ((1024, 262_144), EmberDimensionNumbers(token_axis=1)),
    "(262144, 30, 256)": ((262_144, 30, 256), EmberDimensionNumbers()),
    "8 x (131072, 512)": ((8, 131_072, 512), EmberDimensionNumbers(token_axis=1, batch_axes=(0,))),
}
PLAIN = "(262144, 1024)"
OPTIMIZERS: dict[str, Callable[[EmberDimensionNumbers], optax.GradientTransformationExtraArgs]] = {
    "Ember": lambda numbers: ember(RATE, optax.adamw(RATE), tables=numbers),
    "adamw": lambda _: optax.with_extra_args_support(optax.adamw(RATE)),
    "adafactor": lambda _: optax.with_extra_args_support(optax.adafactor(RATE)),
    "sgd": lambda _: optax.with_extra_args_support(optax.sgd(RATE)),
}
ROW_SPARSE = "Ember, 2,048 rows"
SHARDED = (262_144, 5_376)
LAYOUTS = {"P('fsdp', None)": P("fsdp"), "P(None, 'fsdp')": P(None, "fsdp"), "P('fsdp', 'tp')": P("fsdp", "tp")}
# What `--check` requires: the most tables moved (a GPU's compiler counts none), and the most temporaries as a part of a table.
LIMITS = {"Ember": (4.1, 0.01), ROW_SPARSE: (0.5, 0.03)}


def main() -> None:
    """Compiles, prints the tables, writes JSON and picture; or checks."""
    use_compilers()
    arguments = parser(__doc__)
    arguments.add_argument("--check", action="store_true", help="only what the documents promise of v5e and H100; writes nothing")
    arguments.add_argument("--output", type=Path, default=RESULTS / "accelerators.json", help="results")
    arguments.add_argument("--picture", type=Path, default=PICTURES / "accelerators.png", help="picture of the tables moved")
    options = arguments.parse_args()
    if options.check:
        check(available(["v5e", "H100"]))
        return
    results = load(options.output)
    measure_chips(results, available(list(CHIPS)), options.output)
    measure_meshes(results, available(list(MESHES)), options.output)
    print(f"{moved_table(results)}\n\n{temporaries_table(results)}\n\n{collectives_table(results)}")
    draw(options.picture, results)


def check(chips: list[str]) -> None:
    """Measures the plain table on some chips.

    Raises:
      SystemExit: a figure is above its limit.
    """
    failed = []
    for chip in chips:
        for dtype in DTYPES:
            for name, (most_moved, most_temporaries) in LIMITS.items():
                found = one_chip(chip, name, PLAIN, dtype)
                bad = found["temporaries"] > most_temporaries
                bad |= TARGETS[chip].platform == "tpu" and found["tables moved"] > most_moved
                failed += [(chip, dtype, name)] * bad
                print(f"{chip} {dtype} {name}: {found} {'TOO MUCH' if bad else 'as promised'}")
    if failed:
        raise SystemExit(f"not as promised: {failed}")


def measure_chips(results: dict[str, Any], chips: list[str], output: Path) -> None:
    """One table on one chip: every optimizer on the plain one, Ember on all, in both dtypes."""
    cases = [(name, PLAIN) for name in (*OPTIMIZERS, ROW_SPARSE)] + [("Ember", table) for table in TABLES if table != PLAIN]
    work = [(chip, name, table, dtype) for chip in chips for name, table in cases for dtype in DTYPES]
    for chip, name, table, dtype in tqdm(work, desc="chips", unit="step"):
        of_chip = results.setdefault("chips", {}).setdefault(chip, {})
        if (key := f"{name}, {table}, {dtype}") not in of_chip:
            of_chip[key] = one_chip(chip, name, table, dtype)
            save(output, results)


def one_chip(chip: str, name: str, table: str, dtype: str) -> dict[str, Any]:
    """Tables read and written by a step, and its temporaries as a part of the table."""
    (shape, numbers), sparse = TABLES[table], name == ROW_SPARSE
    tx = OPTIMIZERS["Ember" if sparse else name](numbers)
    start = jax.eval_shape(lambda: carry(tx, jnp.zeros(shape, dtype)))
    if sparse:
        step = row_sparse_optimizer_step(tx)
        given = jax.ShapeDtypeStruct((ROWS, *shape[1:]), dtype), jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    else:
        step, given = optimizer_step(tx), (jax.ShapeDtypeStruct(shape, dtype),)
    compiled = jax.jit(step, donate_argnums=0).lower(*on_chip(chip, (start, *given))).compile()
    found, size = cost_of(compiled), start[0].size
    moved = None if found.bytes_accessed is None else found.bytes_accessed / (size * start[0].dtype.itemsize)
    if moved is None and not sparse:
        moved = passes_in(compiled.as_text() or "", size)
    return {"tables moved": moved, "temporaries": found.temporaries / (size * start[0].dtype.itemsize)}


def measure_meshes(results: dict[str, Any], meshes: list[str], output: Path) -> None:
    """What the optimizer sends for one table on several chips, by layout."""
    for name in tqdm(meshes, desc="meshes", unit="mesh"):
        for layout in LAYOUTS:
            of_mesh = results.setdefault("meshes", {}).setdefault(name, {})
            if layout not in of_mesh:
                of_mesh[layout] = {"optimizer step": sent_by_step(name, layout), "train step": sent_in_train_step(name, layout)}
                save(output, results)


def _mesh(name: str) -> jax.sharding.Mesh:
    chips = TARGETS[name].chips
    return mesh_of(name, fsdp=chips // 2, tp=2)


def sent_by_step(name: str, layout: str) -> dict[str, int]:
    """Elements that one device gets by each kind of collective in `update` and `apply_updates`."""
    sharding = NamedSharding(_mesh(name), LAYOUTS[layout])
    table, tx = (
        jax.ShapeDtypeStruct(SHARDED, jnp.float32, sharding=sharding),
        ember(RATE, optax.adamw(RATE), tables=EmberDimensionNumbers()),
    )
    start, shardings = abstract_carry(tx, table, sharding)
    found = cost(jax.jit(optimizer_step(tx), donate_argnums=0, out_shardings=shardings), start, table)
    return elements_by_operation(found.collectives)


def sent_in_train_step(name: str, layout: str) -> dict[str, int]:
    """The same in a train step of a tied table with a matrix.

    By all-reduces, which XLA may join with the model's own, it is the difference to that step with SGD; of every other kind, what
    comes from Ember's step by its name.
    """
    with_ember, with_sgd = (
        _train_step_hlo(name, layout, tx) for tx in (ember(RATE, optax.sgd(RATE), tables=_tied), optax.sgd(RATE))
    )
    reduced, without = (elements_by_operation(collectives_in(hlo)).get("all-reduce", 0) for hlo in (with_ember, with_sgd))
    of_step = elements_by_operation(collectives_in(with_ember, "ember_step"))
    return {"all-reduce": reduced - without} | {kind: sent for kind, sent in of_step.items() if kind != "all-reduce"}


def _tied(params: Any) -> Any:
    return {name: EmberDimensionNumbers() if name == "table" else None for name in params}


def _train_step_hlo(name: str, layout: str, tx: optax.GradientTransformation) -> str:
    mesh, width = _mesh(name), SHARDED[1]
    shardings = {"table": NamedSharding(mesh, LAYOUTS[layout]), "matrix": NamedSharding(mesh, P("fsdp"))}
    shapes = {"table": SHARDED, "matrix": (width, width)}
    params = {leaf: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings[leaf]) for leaf, shape in shapes.items()}

    def loss_fn(params, ids):
        logits = jnp.tanh(params["table"][ids[:, :-1]] @ params["matrix"]) @ params["table"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    start, of_carry = abstract_carry(tx, params, shardings)
    ids = jax.ShapeDtypeStruct((mesh.shape["fsdp"], 17), jnp.int32, sharding=NamedSharding(mesh, P("fsdp")))
    step = jax.jit(train_step(tx, loss_fn, shardings), donate_argnums=0, out_shardings=of_carry)
    return step.lower(start, ids).compile().as_text() or ""


def _rows(results: dict[str, Any], figure: Callable[[dict[str, Any]], str]) -> str:
    chips = results["chips"]
    names = dict.fromkeys(key for of_chip in chips.values() for key in of_chip)
    rows = [
        (*key.rsplit(", ", 1), *(figure(of_chip[key]) if key in of_chip else "not compiled" for of_chip in chips.values()))
        for key in names
    ]
    return markdown(rows, ("step and table", "dtype", *chips), names=2)


def moved_table(results: dict[str, Any]) -> str:
    """One line for each step, table and dtype: tables read and written."""
    return _rows(results, lambda found: "" if found["tables moved"] is None else f"{found['tables moved']:.2f}")


def temporaries_table(results: dict[str, Any]) -> str:
    """The same lines: temporaries as a part of the table."""
    return _rows(results, lambda found: f"{found['temporaries']:.1%}")


def collectives_table(results: dict[str, Any]) -> str:
    """One line for each mesh and layout: elements that one device gets."""
    rows = [
        (name, layout, sent(found["optimizer step"]), sent(found["train step"]))
        for name in MESHES
        for layout, found in results["meshes"].get(name, {}).items()
    ]
    return markdown(rows, ("chips", "layout", "optimizer step", "added to a train step with SGD"), names=2)


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draws the tables moved on the plain table, a group of bars for each chip."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    chips, names = results["chips"], [*OPTIMIZERS, ROW_SPARSE]
    for number, name in enumerate(names):
        found = [of_chip.get(f"{name}, {PLAIN}, float32", {}).get("tables moved") or 0.0 for of_chip in chips.values()]
        places = [chip + (number - len(names) / 2) * 0.16 for chip in range(len(chips))]
        axes.bar(places, found, 0.15, label=name, align="edge")
    axes.set_xticks(range(len(chips)), list(chips))
    axes.set(ylabel="tables read and written by a step", title=f"{PLAIN}, float32, by the compilers' account")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, ncols=len(names))
    save_picture(path, figure)


if __name__ == "__main__":
    main()
