"""Every row-sparse function takes the vocabulary axis that `ember` takes: the declaration, else the finder, else axis 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from steps import split_value_and_grad
from x64 import enable_x64

from ember_optax import EmberDimensionNumbers, TokenTables, ember, row_sparse, scale_by_ember

HEAD = {"lm_head": {"kernel": jnp.ones((4, 1000))}}
IDS = {"lm_head/kernel": jnp.array([500, 600])}


def of_two_columns(params):
    return jnp.sum(row_sparse.lookup(params["lm_head"]["kernel"], jnp.array([500, 600]), token_axis=1))


def test_a_head_is_read_along_its_vocabulary():
    """Along its four features, ids 500 and 600 are padding and the loss is zero."""
    loss, grads = row_sparse.value_and_grad(of_two_columns)(HEAD, IDS)
    assert loss == 8.0
    assert grads["lm_head"]["kernel"].rows.shape == (4, 2)
    tx = ember(1e-2, optax.adamw(1e-2))
    updates, _ = tx.update(grads, tx.init(HEAD), HEAD)
    moved = optax.apply_updates(HEAD, updates)["lm_head"]["kernel"] != 1.0
    np.testing.assert_array_equal(np.flatnonzero(moved.any(0)), [500, 600])


def test_rows_of_a_head_are_tokens():
    params = {"lm_head": {"kernel": jnp.ones((16, 97))}}
    tx = row_sparse.train_only_rows(ember(1e-2, optax.adamw(1e-2)), {"lm_head/kernel": np.array([5, 6])})
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(np.flatnonzero(updates["lm_head"]["kernel"].any(0)), [5, 6])


def test_the_bare_transformation_asks_the_finder_too():
    state = scale_by_ember().init(HEAD)
    assert state.nu_token["lm_head"]["kernel"].shape == (1000,)
    _, grads = row_sparse.value_and_grad(of_two_columns)(HEAD, IDS)
    updates, _ = scale_by_ember().update(grads, state, HEAD)
    assert updates["lm_head"]["kernel"].rows.shape == (4, 2)


@pytest.mark.parametrize(
    "numbers",
    [
        EmberDimensionNumbers(0),
        {"lm_head": EmberDimensionNumbers(0)},
        lambda params: jax.tree.map(lambda _: TOKENS_FIRST, params),
    ],
)
def test_a_declaration_wins_over_the_finder(numbers):
    params = {"lm_head": {"kernel": jnp.ones((40, 8))}}
    ids = {"lm_head/kernel": jnp.array([30, 31])}

    def loss_fn(params):
        return jnp.sum(params["lm_head"]["kernel"][jnp.array([30, 31])])

    loss, grads = row_sparse.value_and_grad(loss_fn, tables=numbers)(params, ids)
    assert (loss, grads["lm_head"]["kernel"].rows.shape) == (16.0, (2, 8))
    updates, _ = (tx := ember(1e-2, optax.adamw(1e-2), tables=numbers)).update(grads, tx.init(params), params)
    optax.apply_updates(params, updates)


TOKENS_FIRST = EmberDimensionNumbers(0)


def test_a_leaf_that_the_finder_does_not_know_has_its_tokens_first():
    params = {"nameless": jnp.ones((40, 8))}
    loss, grads = row_sparse.value_and_grad(lambda p: jnp.sum(p["nameless"][jnp.array([30])]))(
        params, {"nameless": jnp.array([30])}
    )
    assert loss == 8.0
    tables = TokenTables(include=["nameless"])
    assert ember(1e-2, optax.adamw(1e-2), tables=tables).init(params) is not None
    assert grads["nameless"].rows.shape == (2, 8)


def test_one_compact_row_does_not_broadcast():
    """As an array, `optax.apply_updates` would add it to every row of the table."""
    params = {"wte": jnp.zeros((9, 4))}
    ids = {"wte": jnp.array([3])}
    _, grads, token_ids = split_value_and_grad(lambda p: jnp.sum(p["wte"][jnp.array([3])]))(params, ids)
    np.testing.assert_array_equal(token_ids["wte"], [3, 9])
    with pytest.raises((ValueError, TypeError)):
        optax.apply_updates(params, grads)
    found = row_sparse.apply_updates(params, grads, token_ids)["wte"]
    np.testing.assert_array_equal(np.flatnonzero(found.any(1)), [3])
    two = {"wte": jnp.zeros((2, 4))}  # two places are all rows here: the dense gradient
    _, grads, token_ids = split_value_and_grad(lambda p: jnp.sum(p["wte"][jnp.array([1])]))(two, {"wte": jnp.array([1])})
    np.testing.assert_array_equal(token_ids["wte"], [0, 1])
    np.testing.assert_array_equal(grads["wte"][:, 0], [0.0, 1.0])


def test_frozen_rows_inside_a_partition_are_checked():
    tx = optax.partition(
        {"t": row_sparse.train_only_rows(ember(1e-2, optax.adamw(1e-2)), {"wte": np.array([1, 99])}), "b": optax.sgd(1e-2)},
        {"wte": "t", "mlp": "b"},
    )
    with pytest.raises(ValueError, match=r"token_ids of 'wte' names \[99\].*0 to 11"):
        tx.init({"wte": jnp.ones((12, 4)), "mlp": jnp.ones((4, 4))})


def test_ids_beyond_int32_are_padding():
    """2^32 + 5 is no row; its lower half is row 5."""
    beyond = np.array([2**32 + 5, 2], np.int64)
    params, updates = {"wte": jnp.zeros((8, 2))}, {"wte": jnp.ones((2, 2))}
    found = row_sparse.apply_updates(params, updates, {"wte": beyond})["wte"]
    np.testing.assert_array_equal(np.flatnonzero(found.any(1)), [2])
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,))
    with enable_x64(True):

        def local(table, ids):
            return row_sparse.local_token_ids({"wte": ids}, {"wte": table}, "fsdp")["wte"]

        specs = {"in_specs": (PartitionSpec("fsdp"), PartitionSpec()), "out_specs": PartitionSpec("fsdp")}
        ids = jnp.asarray(np.array([2**32 + 5, 5, 4, -3, 2**63 - 1], np.int64))
        mine = jax.jit(jax.shard_map(local, mesh=mesh, **specs))(jnp.zeros((8, 2), jnp.float32), ids)
    np.testing.assert_array_equal(mine, [-1, -1, -1, -1, -1, -1, 1, 0, -1, -1])


EMBEDS = {
    "first": {"wte": jnp.ones((30, 4))},
    "second": {"wte": jnp.ones((20, 4))},
    "mlp": {"kernel": jnp.ones((4, 4))},
}


def of_two_tables(params):
    first, second = params["first"]["wte"], params["second"]["wte"]
    return jnp.sum((first[jnp.array([3, 7])] @ params["mlp"]["kernel"]) * second[jnp.array([1, 2])])


@pytest.mark.parametrize("nested", ["two in a partition", "as a body"])
def test_two_embers_each_take_their_ids(nested):
    def make():
        if nested == "as a body":
            inner = optax.partition(
                {"t": ember(1e-2, optax.adamw(1e-2)), "b": optax.sgd(1e-2)}, {"first": "b", "second": "t", "mlp": "b"}
            )
            return ember(1e-3, body=inner, tables={"first": EmberDimensionNumbers(), "second": None, "mlp": None})
        of_first = {"first": "a", "second": "b", "mlp": "c"}
        return optax.partition(
            {"a": ember(1e-3, optax.adamw(1e-3)), "b": ember(1e-2, optax.adamw(1e-2)), "c": optax.sgd(1e-2)}, of_first
        )

    ids = {"first/wte": jnp.array([3, 7]), "second/wte": jnp.array([1, 2])}
    tx = make()
    _, grads = row_sparse.value_and_grad(of_two_tables)(EMBEDS, ids)
    updates, _ = tx.update(grads, tx.init(EMBEDS), EMBEDS)
    found = optax.apply_updates(EMBEDS, updates)
    updates, _ = tx.update(jax.grad(of_two_tables)(EMBEDS), tx.init(EMBEDS), EMBEDS)
    expected = optax.apply_updates(EMBEDS, updates)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_rows_and_features_split_in_shard_map(axis_type):
    """Compact gradients are the same on all parts of the rows, which their ids tell apart."""
    mesh = jax.make_mesh((2, 2), ("fsdp", "tp"), axis_types=(axis_type,) * 2)
    table = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)
    ids, compact = jnp.array([3, 12, 9]), jnp.asarray(np.random.default_rng(1).normal(size=(3, 8)), jnp.float32)
    whole = optax.chain(scale_by_ember(), optax.scale(-1e-2))
    split = optax.chain(scale_by_ember(token_mesh_axes="fsdp", feature_mesh_axes="tp"), optax.scale(-1e-2))

    def step(tx, table, compact, ids):
        updates, _ = tx.update(compact, tx.init(table), table, token_ids=ids)
        return row_sparse.apply_updates(table, updates, ids)

    def part(table, compact, ids):
        local = row_sparse.local_token_ids({"": ids}, table, "fsdp")[""]
        return step(split, table, compact, local)

    spec = PartitionSpec("fsdp", "tp")
    specs = (spec, PartitionSpec(None, "tp"), PartitionSpec())
    inputs = [jax.device_put(x, NamedSharding(mesh, of)) for x, of in zip((table, compact, ids), specs, strict=True)]
    found = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=spec))(*inputs)
    np.testing.assert_allclose(found, step(whole, table, compact, ids), rtol=1e-6)
