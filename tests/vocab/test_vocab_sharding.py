"""On eight devices, of one or of two processes: the same as on one, in the same places, and no device gathers a table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_processes
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import make_mesh

from benchmarks.harness.compiled import collectives
from ember_optax import TokenTables, ember, state_shardings, vocab
from ember_optax.vocab import _row_moves as row_moves

V, D = 32, 8
IDS = np.random.default_rng(0).integers(-1, V, 48)
SPECS = [P("fsdp"), P(("fsdp", "tp")), P(("tp", "fsdp")), P("fsdp", "tp"), P(None, "tp"), P()]
EACH_TYPE = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@EACH_TYPE
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rows_move_between_devices(spec, axis_type):
    mesh, table = make_mesh(axis_type), draw((V, D), 0)
    expected = np.where(IDS[:, None] < 0, 0, np.asarray(table)[IDS])
    moved = row_moves.moved_rows(jax.device_put(table, NamedSharding(mesh, spec)), IDS, 0)
    np.testing.assert_array_equal(moved, expected)
    assert moved.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
    turned = NamedSharding(mesh, P(*[*spec, None, None][1::-1]))
    moved = row_moves.moved_rows(jax.device_put(table.T, turned), IDS, 1)
    np.testing.assert_array_equal(moved, expected.T)
    assert moved.sharding.is_equivalent_to(turned, 2)


def test_no_device_gathers_a_table():
    """Parts go from device to device, V / 4 rows at a time."""
    sharding = NamedSharding(make_mesh(AxisType.Auto), P("fsdp"))
    ids = jax.device_put(IDS.astype(np.int32), NamedSharding(sharding.mesh, P("fsdp")))
    table = jax.device_put(draw((V, D), 0), sharding)
    compiled = row_moves._move_sharded_rows.lower(table, ids, 0, ("fsdp",), sharding).compile()
    found = collectives(compiled)
    assert {one.operation for one in found} == {"collective-permute"}
    assert max(one.elements for one in found) <= V // 4 * D


@functools.cache
def trained():
    tx = ember(1e-2, optax.adam(1e-2), tables=TokenTables(exclude=["of_body/embedding"]))
    params = {
        "embed": {"embedding": draw((V, D), 0)},
        "lm_head": {"kernel": draw((D, V), 1), "bias": draw((V,), 2)},
        "of_body": {"embedding": draw((V, D), 3)},
    }
    grads = jax.tree.map(lambda p: p**3, params)
    updates, state = tx.update(grads, tx.init(params), params)
    return tx, optax.apply_updates(params, updates), state


def grown_at_random(tx, params, opt_state, **kwargs):
    # A key made at import would start JAX before two processes have joined.
    key = jax.random.key(0)
    return vocab.resize(tx, params, opt_state, 48, initializer="gaussian", key=key, covariance_scale=1.0, **kwargs)


CHANGES = {
    "grow by zeros": functools.partial(vocab.resize, size=40, initializer="zeros"),
    "grow by means": functools.partial(vocab.resize, size=64),
    "grow at random": grown_at_random,
    "cut": functools.partial(vocab.resize, size=16),
    "take": functools.partial(vocab.take, token_ids=np.random.default_rng(1).permutation(V)[:24]),
    "transplant": functools.partial(
        vocab.transplant,
        old_vocabulary=[str(i) for i in range(V)],
        new_vocabulary=[str(i) for i in range(10, 50)],
        pieces=lambda text: [int(letter) for letter in text],
    ),
}


def compare(change, axis_type):
    """Runs a change on this process and over all devices, of all processes."""
    tx, params, state = trained()
    mesh = make_mesh(axis_type)
    specs = {
        "embed": {"embedding": P("fsdp", "tp")},
        "lm_head": {"kernel": P(None, "fsdp"), "bias": P("fsdp")},
        "of_body": {"embedding": P(("tp", "fsdp"))},
    }
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))
    of_state = state_shardings(tx, params, shardings)
    tables = TokenTables(include=["of_body/embedding"])
    run = functools.partial(CHANGES[change], tx, tables=tables, names=[".*"])
    ours = run(jax.device_put(params, shardings), jax.device_put(state, of_state))
    places = jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim), ours[:2], (shardings, of_state))
    assert jax.tree.all(places), places
    gathered = process_allgather(ours[:2], tiled=True)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), gathered, run(params, state)[:2])


QUICK = {"grow by means", "take"}  # each change is compiled for each type of axes: these with explicit axes, the others without


@pytest.mark.parametrize("change", [pytest.param(name, marks=pytest.mark.slow if name in QUICK else ()) for name in CHANGES])
def test_as_on_one_device(change):
    compare(change, AxisType.Auto)


@pytest.mark.parametrize("change", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CHANGES])
def test_as_on_one_device_with_explicit_axes(change):
    compare(change, AxisType.Explicit)


@pytest.mark.slow  # two more processes
def test_as_on_one_device_in_two_processes():
    for output in two_processes.outputs(__file__):
        assert output.splitlines()[-1] == f"{2 * len(CHANGES)} alike", output


def test_rows_that_devices_cannot_share():
    tx, params, state = trained()
    sharding = NamedSharding(make_mesh(AxisType.Auto), P("fsdp"))
    put = {**params, "embed": jax.device_put(params["embed"], sharding)}
    options = {"tables": TokenTables(include=["of_body/embedding"]), "names": [".*"]}
    with pytest.raises(
        ValueError, match=r"axis 0 of 'embed/embedding', of size 33, does not divide by the 4 devices.*Pass pad_to_multiple_of to"
    ):
        vocab.resize(tx, put, state, V + 1, **options)
    assert vocab.resize(tx, put, state, V + 1, **options, pad_to_multiple_of=4).params["embed"]["embedding"].shape[0] == 36


def _main():
    """What one of two processes does."""
    for change in CHANGES:
        for axis_type in (AxisType.Auto, AxisType.Explicit):
            compare(change, axis_type)
    print(f"{2 * len(CHANGES)} alike", flush=True)


if __name__ == "__main__":
    two_processes.join()
    _main()
