"""What is bit-identical from run to run, and how far apart the rest is: the table of docs/promises.md."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from steps import dense_step, sparse_step, to_dense

from ember_optax import EmberDimensionNumbers, ember

pytestmark = pytest.mark.fully_compiled

V, D, STEPS = 64, 16, 20
NUMBERS = EmberDimensionNumbers()
TX = ember(1e-2, optax.sgd(1e-2), tables=NUMBERS)
PAGE = Path(__file__).parents[2] / "docs" / "promises.md"
IDS = [np.random.default_rng(step).choice(V, 12, replace=False) for step in range(STEPS)]


def start():
    return jnp.asarray(np.random.default_rng(1).normal(size=(V, D)), jnp.float32)


def compact(step):
    return np.random.default_rng(100 + step).normal(size=(12, D)).astype(np.float32)


def gradient(step):
    return to_dense(compact(step), IDS[step], (V, D))


def run(step, steps=range(STEPS), carry=None, place=lambda x: x, gradient=gradient):
    params, state = carry or (place(start()), TX.init(place(start())))
    for number in steps:
        params, state = step(params, state, place(gradient(number)))
    return params, state


def plain(**options):
    return jax.jit(dense_step(TX), **options)


def again():
    return run(plain())


once = functools.cache(again)  # for all tests that compare with it


def donated():
    return run(plain(donate_argnums=(0, 1)))


def restarted(tmp_path):
    half = run(plain(), range(STEPS // 2))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
        carry = checkpointer.restore(tmp_path / "half", item=half, restore_args=ocp.checkpoint_utils.construct_restore_args(half))
    return run(plain(), range(STEPS // 2, STEPS), carry)


def with_a_skipped_batch():
    step = plain()
    carry = run(step, range(5))
    carry = run(step, range(1), carry, gradient=lambda _: jnp.full((V, D), jnp.nan))
    return run(step, range(5, STEPS), carry)


def in_a_scan():
    gradients = jnp.stack([gradient(step) for step in range(STEPS)])
    step = dense_step(TX)
    (params, state), _ = jax.lax.scan(lambda carry, g: (step(*carry, g), None), (start(), TX.init(start())), gradients)
    return params, state


def eager():
    return run(dense_step(TX))


def on_eight_devices():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", "tp"))
    return run(plain(), place=lambda x: jax.device_put(x, sharding))


def row_sparse(padding=0):
    step = jax.jit(sparse_step(TX))
    params, state = start(), TX.init(start())
    for number in range(STEPS):
        rows = jnp.asarray(np.pad(compact(number), ((0, padding), (0, 0)), constant_values=7.0))
        params, state = step(params, state, rows, jnp.asarray(np.pad(IDS[number], (0, padding), constant_values=-1)))
    return params, state


# What is compared, with what, and the bound in units of the largest number; 0 is bit for bit.
COMPARED = {
    "the same program again": (again, once, 0),
    "with arguments donated": (donated, once, 0),
    "a restart from a checkpoint": (restarted, once, 0),
    "a run that met and skipped a bad batch": (with_a_skipped_batch, once, 0),
    "row-sparse steps with and without padding": (lambda: row_sparse(20), row_sparse, 0),
    "row-sparse and dense steps": (row_sparse, once, 1e-6),
    "in `jax.lax.scan` and step by step": (in_a_scan, once, 1e-6),
    "without `jax.jit` and with it": (eager, once, 1e-6),
    "8 devices and one": (on_eight_devices, once, 1e-6),
}


@pytest.mark.parametrize("what", COMPARED)
def test_runs_are_alike(what, tmp_path):
    ours, theirs, bound = COMPARED[what]
    found, expected = (made(tmp_path) if made is restarted else made() for made in (ours, theirs))
    trees = [
        (params, *(getattr(optax.tree.get(state, "ScaleByEmberState"), f) for f in ("count", "nu_token", "nu_feature")))
        for params, state in (found, expected)
    ]
    for a, b in zip(*trees, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * np.abs(b).max())


def test_the_page_has_this_table():
    rows = dict(re.findall(r"^\| (.+?) +\| (.+?) +\|$", PAGE.read_text(encoding="utf-8"), re.M))
    for what, (_, _, bound) in COMPARED.items():
        assert rows[what] == ("bit for bit" if bound == 0 else f"{bound:g} of the largest number")
