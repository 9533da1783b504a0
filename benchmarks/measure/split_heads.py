"""What the compiler for TPUs says of heads that are split by tokens over a mesh: temporaries, and what is sent.

No TPU is needed, but the extra `tpu-compiler` is. The mesh has the axes "data" and "vocab", with 4,096 tokens on each part of
"data". All figures are the compiler's account of one device, not a clock. `--check` measures the smaller head on eight chips, and
fails where it is not what docs/fused_head.md promises.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.harness.compiled import collectives_in, cost_of, elements_by_operation
from benchmarks.harness.report import markdown, sent
from benchmarks.harness.results import RESULTS, fill, load, parser
from benchmarks.harness.sending import bytes_sent, in_loops, outside_of_loops
from benchmarks.harness.steps import abstract_carry
from benchmarks.harness.targets import available, mesh_of, use_compilers
from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember
from ember_optax.losses import linear_softmax_cross_entropy

MESHES = {"8 x v5e": (2, 4), "256 x v5e": (16, 16)}
HEADS = {"262144 x 1152 float32": (262_144, 1_152, "float32"), "128256 x 8192 bfloat16": (128_256, 8_192, "bfloat16")}
TOKENS = 4_096
USUAL, CHUNKS, DENSE, FUSED, FUSED_ALL = "usual loss", "loss in chunks", "dense step", "fused step", "fused step, all axes"
MANUAL = "fused step, shard_map"
WAYS = (USUAL, CHUNKS, DENSE, FUSED, FUSED_ALL, MANUAL)
# What `--check` requires: the most temporaries in MiB, and what may be sent in each turn of a loop.
LIMITS = {CHUNKS: (150, set()), FUSED: (64, {"all-gather"}), FUSED_ALL: (100, set()), MANUAL: (64, {"all-gather"})}


def main() -> None:
    """Compiles, prints the table and writes JSON; or checks."""
    use_compilers()
    arguments = parser(__doc__)
    arguments.add_argument("--check", action="store_true", help="only what the documents promise of eight chips; writes nothing")
    arguments.add_argument("--output", type=Path, default=RESULTS / "split_heads.json", help="results")
    options = arguments.parse_args()
    if options.check:
        check(*available(["8 x v5e"]))
        return
    wanted = [(mesh, head, way) for mesh in available(list(MESHES)) for head in HEADS for way in WAYS]
    print(table(fill(options.output, wanted, measure, "program")))


def check(mesh: str) -> None:
    """Measures the smaller head on one mesh.

    Raises:
      SystemExit: a figure is above its limit, something else is sent in loops, or more is sent than by the dense step.
    """
    failed, head = [], next(iter(HEADS))
    dense = load(RESULTS / "split_heads.json")[mesh][head][DENSE]
    for way, (most, may_be_sent) in LIMITS.items():
        found = measure(mesh, head, way)
        bad = found["temporaries"] > most * 2**20 or not set(found["in a turn"]) <= may_be_sent or found["sent"] > dense["sent"]
        failed += [way] * bad
        print(f"{mesh} {way}: {found} {'TOO MUCH' if bad else 'as promised'}")
    if failed:
        raise SystemExit(f"not as promised: {failed}")


def measure(mesh: str, head: str, way: str) -> dict[str, Any]:
    """Bytes of temporaries; elements that one device gets by each kind of collective; bytes that it sends in all."""
    compiled = _program(mesh, HEADS[head], way).compile()
    text, (data, vocab), (size, width, _) = compiled.as_text() or "", MESHES[mesh], HEADS[head]
    rows = size // vocab // (data if way == FUSED_ALL else 1)
    inside, outside, turns = in_loops(text), outside_of_loops(text), rows // min(2_048, 2**23 // width)
    return {
        "temporaries": cost_of(compiled).temporaries,
        "in a turn": elements_by_operation(collectives_in(inside)),
        "outside": elements_by_operation(collectives_in(outside)),
        "sent": bytes_sent(outside) + turns * bytes_sent(inside),
    }


def _program(mesh_name: str, head: tuple[int, int, str], way: str) -> jax.stages.Lowered:
    (size, width, dtype), (data, vocab) = head, MESHES[mesh_name]
    mesh = mesh_of(mesh_name, data=data, vocab=vocab)
    axes = ("vocab", "data") if way == FUSED_ALL else ("vocab",)
    rows, batch, whole = (NamedSharding(mesh, spec) for spec in (P(axes), P("data"), P()))
    of_params = {"head": rows, "body": whole}
    params = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=of_params[name])
        for name, shape in (("head", (size, width)), ("body", (width,)))
    }
    given = (
        jax.ShapeDtypeStruct((TOKENS * data, width), dtype, sharding=batch),
        jax.ShapeDtypeStruct((TOKENS * data,), jnp.int32, sharding=batch),
    )
    loss_fn = functools.partial(_loss, way=way, axes=axes)
    if way in (USUAL, CHUNKS):
        gradient = jax.jit(jax.value_and_grad(loss_fn), out_shardings=(whole, of_params))
        return gradient.lower(params, *given)
    tables = {"head": EmberDimensionNumbers(), "body": None}
    tx = _ember_of_parts() if way == MANUAL else ember(1e-3, optax.sgd(1e-3), tables=tables)
    start, shardings = abstract_carry(tx, params, of_params)
    fused = row_sparse.value_and_grad(loss_fn, heads="head", tables=tables)
    gradient = jax.value_and_grad(loss_fn) if way == DENSE else lambda params, *batch: fused(params, {}, *batch)
    step = _step(_ember_of_parts(*axes) if way == MANUAL else tx, gradient)
    if way == MANUAL:
        of_carry = jax.tree.map(lambda sharding: sharding.spec, shardings)
        specs = of_carry, P("data"), P("data")
        step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(of_carry, P()))
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole)).lower(start, *given)


def _ember_of_parts(*mesh_axes: str) -> optax.GradientTransformation:
    of_head = optax.chain(scale_by_ember(token_mesh_axes=mesh_axes), optax.scale(-1e-3))
    return optax.partition({"head": of_head, "body": optax.sgd(1e-3)}, {"head": "head", "body": "body"})


def _step(tx: optax.GradientTransformation, gradient: Callable[..., Any]) -> Callable[..., Any]:
    def step(carry, *batch):
        params, state = carry
        loss, grads = gradient(params, *batch)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return step


def _loss(params: Any, hidden: jax.Array, labels: jax.Array, *, way: str, axes: tuple[str, ...]) -> jax.Array:
    hidden = jnp.tanh(hidden * params["body"])
    if way == USUAL:
        logits = jnp.einsum("nd,vd->nv", hidden, params["head"], preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    loss = linear_softmax_cross_entropy(hidden, params["head"], labels, token_mesh_axes=axes).mean()
    return jax.lax.pmean(loss, "data") if way == MANUAL else loss


def table(results: dict[str, Any]) -> str:
    """One line for each mesh, head and way."""
    rows = [
        (mesh, head, way, *_in_mib(found["temporaries"], found["sent"]), sent(found["in a turn"]), sent(found["outside"]))
        for mesh, of_mesh in results.items()
        for head, of_head in of_mesh.items()
        for way, found in of_head.items()
    ]
    headers = ("chips", "head", "way", "temporaries (MiB)", "sent (MiB)", "received in each turn of a loop", "outside of loops")
    return markdown(rows, headers, names=3)


def _in_mib(*sizes: float) -> list[str]:
    return [f"{size / 2**20:,.0f}" for size in sizes]


if __name__ == "__main__":
    main()
