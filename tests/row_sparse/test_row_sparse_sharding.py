"""Row-sparse steps on eight devices: the numbers of one device, and nothing of a table's size is sent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from steps import sparse_step, sparse_train_step

from benchmarks.harness.compiled import collectives
from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember, state_shardings

V, D, H, B, T = 4096, 64, 16, 16, 8
TABLES = {"embed": EmberDimensionNumbers(), "head": None}
# How the table is laid over the mesh, and the batch; the first is plain data parallelism.
LAYOUTS = {
    "replicated": ((8, 1), P(), P("data")),
    "rows": ((2, 4), P("fsdp"), P("data")),
    "rows over all": ((2, 4), P(("data", "fsdp")), P(("data", "fsdp"))),
    "rows, batch over all": ((2, 4), P("fsdp"), P(("data", "fsdp"))),
    "columns": ((2, 4), P(None, "fsdp"), P("data")),
}


def make_batch(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, V, (B, T))
    ids[1] = ids[0]  # duplicates on different devices
    return jnp.asarray(ids, jnp.int32), jnp.asarray(rng.integers(0, H, (B, T)), jnp.int32)


def make_params():
    rng = np.random.default_rng(0)
    return {
        "embed": jnp.asarray(0.1 * rng.normal(size=(V, D)), jnp.float32),
        "head": jnp.asarray(0.1 * rng.normal(size=(D, H)), jnp.float32),
    }


def loss_fn(params, ids, labels):
    logits = jnp.tanh(row_sparse.lookup(params["embed"], ids)) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def make_step(tx):
    train_step = sparse_train_step(tx, loss_fn)
    return lambda params, state, ids, labels: train_step(params, state, {"embed": ids}, ids, labels)


@functools.cache
def one_device(steps, weight_decay):
    tx = ember(1e-2, optax.sgd(0.1), tables=TABLES, weight_decay=weight_decay)
    params, step = make_params(), jax.jit(make_step(tx))
    state = tx.init(params)
    for number in range(steps):
        params, state, _ = step(params, state, *make_batch(number))
    return params, state


GIVEN = optax.chain(scale_by_ember(), optax.scale(-1e-2))


@functools.cache
def given_gradients():
    """Ten batches of gradients and ids, and what one device makes of them."""
    rng = np.random.default_rng(0)
    batches = [(jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32), make_batch(number)[0]) for number in range(10)]
    table, step = make_params()["embed"], jax.jit(sparse_step(GIVEN))
    state = GIVEN.init(table)
    for batch in batches:
        table, state = step(table, state, *batch)
    return batches, table, state


@pytest.mark.parametrize(
    "name, axis_type, weight_decay",
    [
        # Every layout once, and both of both others; the rest are slow.
        pytest.param(name, axis_type, weight_decay, marks=() if i % 2 == j == k else pytest.mark.slow)
        for i, name in enumerate(LAYOUTS)
        for j, axis_type in enumerate([AxisType.Auto, AxisType.Explicit])
        for k, weight_decay in enumerate([0.0, 0.1])
    ],
)
def test_a_train_step_agrees_with_one_device(name, axis_type, weight_decay):
    sizes, spec, batch_spec = LAYOUTS[name]
    mesh = jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(axis_type, axis_type))
    tx = ember(1e-2, optax.sgd(0.1), tables=TABLES, weight_decay=weight_decay)
    shardings = {"embed": NamedSharding(mesh, spec), "head": NamedSharding(mesh, P())}
    with jax.set_mesh(mesh):
        params = jax.device_put(make_params(), shardings)
        of_state = state_shardings(tx, params, shardings)
        state = jax.jit(tx.init, out_shardings=of_state)(params)
        batches = [jax.device_put(make_batch(number), NamedSharding(mesh, batch_spec)) for number in range(3)]
        step = jax.jit(make_step(tx), donate_argnums=(0, 1), out_shardings=(shardings, of_state, None))
        step = step.lower(params, state, *batches[0]).compile()
        for batch in batches:
            params, state, _ = step(params, state, *batch)  # refuses what is sharded otherwise than at first
    sent = collectives(step)
    expected_params, expected_state = one_device(3, weight_decay)
    change = float(jnp.abs(expected_params["embed"] - make_params()["embed"]).max())
    np.testing.assert_allclose(params["embed"], expected_params["embed"], rtol=0, atol=3e-5 * change)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-12), state, expected_state)
    # The rows of the batch (again for their decay), its ids, vectors and the head: less than one device's part of the table.
    assert sent
    most = (1 + (weight_decay > 0)) * B * T * D + D * H + D + V // 8 + 1
    assert max(one.elements for one in sent) <= most < V * D // 8


@pytest.mark.parametrize(
    "name, axis_type",
    [
        # Both types of axes where the rows are split; the rest are slow.
        pytest.param(name, axis_type, marks=() if name == "rows" or (i + j) % 2 else pytest.mark.slow)
        for i, name in enumerate(LAYOUTS)
        for j, axis_type in enumerate([AxisType.Auto, AxisType.Explicit])
    ],
)
def test_given_gradients_agree_with_one_device_to_rounding(name, axis_type):
    """The optimizer alone, so that no forward pass adds rounding: 1e-6 after ten steps."""
    sizes, spec, batch_spec = LAYOUTS[name]
    mesh = jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(axis_type, axis_type))
    batches, expected, expected_state = given_gradients()
    start = make_params()["embed"]
    of_table, of_batch = NamedSharding(mesh, spec), NamedSharding(mesh, batch_spec)
    with jax.set_mesh(mesh):
        table = jax.device_put(np.asarray(start), of_table)
        of_state = state_shardings(GIVEN, table, of_table)
        state = jax.jit(GIVEN.init, out_shardings=of_state)(table)
        step = jax.jit(sparse_step(GIVEN), out_shardings=(of_table, of_state))
        for batch in batches:
            table, state = step(table, state, *jax.device_put(batch, of_batch))
    change = float(jnp.abs(expected - start).max())
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-6 * change)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), state, expected_state)


def test_inside_shard_map_each_part_applies_its_own_rows():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    tx = optax.chain(scale_by_ember(token_mesh_axes="fsdp"), optax.scale(-1e-2))
    whole = optax.chain(scale_by_ember(), optax.scale(-1e-2))
    table = make_params()["embed"]
    state = whole.init(table)
    specs = jax.tree.map(lambda leaf: P("fsdp") if leaf.shape == (V,) else P(), state)
    rng = np.random.default_rng(0)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P("fsdp"), specs, P(), P()),
        out_specs=(P("fsdp"), specs, P()),
    )
    def step(table, state, grads, ids):
        local = row_sparse.local_token_ids({"": ids}, table, "fsdp")
        rows = jax.lax.psum(row_sparse.lookup(table, local[""]), "fsdp")
        updates, state = tx.update(grads, state, table, token_ids=local)
        return row_sparse.apply_updates(table, updates, local), state, rows

    expected, expected_state, whole_step = table, state, jax.jit(sparse_step(whole))
    for number in range(3):
        ids = make_batch(number)[0]
        grads = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
        expected_rows = row_sparse.lookup(expected, ids)
        expected, expected_state = whole_step(expected, expected_state, grads, ids)
        table, state, rows = step(table, state, grads, ids)
        np.testing.assert_allclose(rows, expected_rows, atol=1e-6)
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-7)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), state, expected_state)
    sent = collectives(step.lower(table, state, grads, ids).compile())
    assert max(one.elements for one in sent) <= B * T * D + D + 1


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_shard_map_over_some_axes_of_the_mesh(kind):
    """The gradient, with ids of all devices."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto, kind))
    params, batch = make_params(), make_batch(0)

    def gradient(params, all_ids, *batch, loss_fn=loss_fn):
        grads = row_sparse.value_and_grad(loss_fn)(params, {"embed": all_ids}, *batch)[1]
        return grads["embed"].rows, grads["embed"].ids, grads["head"]

    def part_loss(*of_part):
        return jax.lax.pmean(loss_fn(*of_part), "data")

    of_part, specs = functools.partial(gradient, loss_fn=part_loss), (P(), P(), P("data"), P("data"))
    parted = jax.shard_map(of_part, mesh=mesh, in_specs=specs, out_specs=P(), axis_names={"data"})
    for found, wanted in zip(*(jax.jit(f)(params, batch[0], *batch) for f in (parted, gradient)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
