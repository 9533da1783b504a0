"""Drills with one bad batch: a run that meets it and one that never did, in every way to run a step.

As a program, one of two processes that drill together.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import two_processes
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from steps import dense_step, sparse_step

from ember_optax import EmberDimensionNumbers, ember, losses, row_sparse

POISONS = {"nan": np.nan, "+inf": np.inf, "-inf": -np.inf, "3e38": 3e38, "2e19": 2e19}
POSITIONS = {
    "first": np.s_[0, 0],
    "last": np.s_[-1, -1],
    "row": np.s_[3, :],
    "column": np.s_[:, 2],
    "everything": np.s_[:, :],
    "silent row": np.s_[5, 1],
}
DTYPES = ("float32", "bfloat16", "float16")
KINDS = ("dense", "row-sparse", "fused head")
MODES = ("eager", "jit", "scan", "8 devices")
V, D, STEPS, POISONED, RATE = 16, 8, 6, 3, 1e-2
IDS = [7, 2, 7, 11, -1, 4, 0, 15]  # one token twice, one row of padding
LABELS = [7, 2, 7, 11, 3, 9, 0, 15]  # no poisoned hidden state predicts them: a loss of zero would be no poison


def drill(kind, mode, dtype):
    """The drills of one program; returns what went wrong, by poison and position.

    What is poisoned are gradients, with a fused head the hidden states that its gradient is made of.
    """
    run = _runner(kind, mode)
    rows = V if kind == "dense" else len(IDS)
    clean = np.random.default_rng(0).normal(size=(STEPS, rows, D)).astype(np.float32)
    clean[:, 5] = 0.0
    expected, expected_state = run(jnp.asarray(clean, dtype))
    failures = {}
    for poison, value in POISONS.items():
        for position, place in POSITIONS.items():
            bad = clean[POISONED].copy()
            bad[place] = value
            with np.errstate(over="ignore"):  # 3e38 is inf in float16
                grads = jnp.asarray(np.insert(clean, POISONED, bad, 0)).astype(dtype)
            found, state = run(grads)
            if failure := _failure(found, state, expected, expected_state):
                failures[poison, position] = failure
    return failures


def _failure(found, state, expected, expected_state):
    """Parameters before the first step and after each, as lists of the parts that are here; None if all is well."""
    if not _equal(found[POISONED + 1], found[POISONED]):
        return "the poisoned step is not zero"
    if not all(map(_equal, [*found[: POISONED + 1], *found[POISONED + 2 :]], expected)):
        return "what follows is not what a run without the batch does"
    steps = [
        np.abs(after.astype(np.float64) - before).max()
        for pair in zip(found[1:], found[:-1], strict=True)
        for after, before in zip(*pair, strict=True)
    ]
    if not max(steps) <= 1000 * RATE:
        return f"a step of {max(steps)}"
    for field in ("count", "nu_token", "nu_feature"):
        if not _equal(state[field], expected_state[field]):
            return f"another {field}"
    skipped = [int(parts[0]) for parts in (state["total_notfinite"], expected_state["total_notfinite"])]
    return None if skipped == [1, 0] else f"skipped {skipped}"


def _equal(ours, theirs):
    return len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _runner(kind, mode):
    """From gradients of (steps, rows, D) to the parameters before and after each step, and the fields of the state."""
    tx = ember(RATE, optax.adamw(RATE), weight_decay=0.1, tables=EmberDimensionNumbers())
    steps = {
        "dense": dense_step(tx),
        "row-sparse": lambda *state: sparse_step(tx)(*state, jnp.array(IDS)),
        "fused head": _fused_step(tx),
    }
    take = steps[kind]
    place = _on_eight_devices() if mode == "8 devices" else lambda x: x
    one = take if mode == "eager" else jax.jit(take)

    @jax.jit
    def all_at_once(params, state, grads):
        def body(carry, g):
            carry = take(*carry, g)
            return carry, carry[0]

        return jax.lax.scan(body, (params, state), grads)

    def run(grads):
        params = place(jnp.asarray(np.random.default_rng(1).normal(size=(V, D)), grads.dtype))
        history, state = [_parts(params)], tx.init(params)
        if mode == "scan":
            (_, state), steps = all_at_once(params, state, grads)
            return [*history, *([step] for step in np.asarray(steps))], _fields(state)
        for g in grads:
            params, state = one(params, state, place(g) if kind == "dense" else g)
            history.append(_parts(params))
        return history, _fields(state)

    return run


def _fused_step(tx):
    """From hidden states of a batch to the next parameters."""

    def loss_fn(params, hidden):
        return jnp.sum(losses.linear_softmax_cross_entropy(hidden, params, jnp.array(LABELS), token_axis=0))

    def step(params, state, hidden):
        _, grads = row_sparse.value_and_grad(loss_fn, heads="", tables=EmberDimensionNumbers())(params, {}, hidden)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def _on_eight_devices():
    """Lays an array out in eight parts, by tokens and features."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", "tp"))
    return lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x)[index])


def _parts(array):
    """What this process holds of an array."""
    return [np.asarray(shard.data) for shard in array.addressable_shards]


def _fields(state):
    found = optax.tree.get(state, "ScaleByEmberState")
    return {field: _parts(getattr(found, field)) for field in found._fields}


def _main(kind):
    """What one of two processes does."""
    for dtype in DTYPES:
        print(dtype, drill(kind, "8 devices", dtype), flush=True)


if __name__ == "__main__":
    _main(*two_processes.join())
