"""Row-sparse steps are the dense steps, whatever the ids, the shapes and the mixture of both."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from products import in_turn
from steps import dense_step, sparse_step, to_dense

from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember
from ember_optax._tree import declared, tables
from ember_optax.losses import linear_softmax_cross_entropy

TABLE = EmberDimensionNumbers()


def assert_same_run(found, expected, start):
    """Parameters within 1e-6 of the largest change, state within 1e-6 relative."""
    (params, state), (params_2, state_2) = found, expected
    change = np.abs(np.asarray(params_2) - np.asarray(start)).max()
    np.testing.assert_allclose(params, params_2, rtol=0, atol=1e-6 * max(change, np.abs(start).max()))
    for leaf, leaf_2 in zip(jax.tree.leaves(state), jax.tree.leaves(state_2), strict=True):
        np.testing.assert_allclose(leaf, leaf_2, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_two_hundred_steps_of_both_kinds(weight_decay):
    """Duplicates, padding, empty and poisoned batches, tokens that stay silent for a hundred steps."""
    shape, rng = (300, 12), np.random.default_rng(0)
    tx = ember(1e-2, optax.adamw(1e-2), tables=TABLE, weight_decay=weight_decay)
    dense, sparse = jax.jit(dense_step(tx)), jax.jit(sparse_step(tx))
    start = jnp.asarray(rng.normal(size=shape), jnp.float32)
    run, reference = (start, tx.init(start)), (start, tx.init(start))
    for step in range(200):
        ids = rng.integers(-5, 305 if step % 4 else 20, 48)
        if step < 100:
            ids[ids > 250] = -1
        if step % 17 == 0:
            ids[:] = 999
        compact = rng.normal(size=(48, 12)).astype(np.float32)
        if step % 13 == 5:
            compact[7] = np.nan if step % 2 else np.inf
            ids[7] = 3
        if step % 29 == 7:  # squares that overflow only in the sum over the features
            compact[:], compact[7] = 1.0, 1.7e19
            ids[ids == 5] = 6
            ids[7] = 5
        compact[ids < 0] = np.nan  # padding is ignored, whatever stands there
        grads = to_dense(compact, ids, shape)
        if weight_decay:  # touched rows only: the reference decays them by itself
            touched = np.zeros(300, bool)
            touched[ids[(ids >= 0) & (ids < 300)]] = True
            reference = dense_with_decay_of(touched, tx, reference, grads)
        else:
            reference = dense(*reference, grads)
        run = dense(*run, grads) if step % 3 == 0 and not weight_decay else sparse(*run, jnp.asarray(compact), jnp.asarray(ids))
    assert_same_run(run, reference, start)
    assert optax.tree.get(run[1], "total_notfinite") > 10


@functools.partial(jax.jit, static_argnums=1)
def dense_with_decay_of(touched, tx, run, grads):
    params, state = run
    updates, state = tx.update(grads, state, params)
    return jnp.where(touched[:, None], params + updates, params), state


def test_a_thousand_silent_steps():
    """Rows that no batch touches for over 1,000 steps, twice."""
    shape, rng = (40, 6), np.random.default_rng(1)
    tx = optax.chain(scale_by_ember(), optax.scale(-1e-2))
    start = jnp.asarray(rng.normal(size=shape), jnp.float32)
    compact = jnp.asarray(rng.normal(size=(2300, 5, 6)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 10, (2300, 5)))
    for awake in (0, 1150, 2299):
        ids = ids.at[awake].set(jnp.array([30, 31, 31, -1, 39]))

    def run(step):
        return jax.lax.scan(step, (start, tx.init(start)), (compact, ids))[0]

    def sparse(carry, batch):
        return sparse_step(tx)(*carry, *batch), None

    def dense(carry, batch):
        grads = jnp.zeros(shape).at[jnp.where(batch[1] < 0, 40, batch[1])].add(batch[0], mode="drop")
        return dense_step(tx)(*carry, grads), None

    assert_same_run(jax.jit(run, static_argnums=0)(sparse), jax.jit(run, static_argnums=0)(dense), start)


@pytest.mark.parametrize(
    "size, features, ids_shape, dtype, axis",
    [
        (1, (), (7,), jnp.int32, 0),
        (9, (), (3, 1, 2), jnp.uint32, 0),
        (30, (), (0,), jnp.int8, 0),
        (2, (1,), (1,), jnp.uint32, 0),
        (23, (1,), (2, 4), jnp.int8, 1),
        (1, (5,), (3, 1, 2), jnp.uint8, 0),
        (12, (5,), (0,), jnp.uint32, 1),
        (20, (5,), (7,), jnp.uint8, 1),
        (3, (4,), (8,), jnp.int32, 1),
        (300, (4,), (9,), jnp.int8, 0),
        (30, (2, 3), (7,), jnp.int8, 0),
        (6, (2, 3), (1,), jnp.int32, 1),
        (8, (2, 3), (2, 4), jnp.uint8, 2),
        (3, (2, 3), (3, 1, 2), jnp.int32, 2),
    ],
)
def test_any_shape_of_table_and_ids(size, features, ids_shape, dtype, axis):
    """One row and more ids than rows, no ids, every rank, every place of the token axis: compiled once for several batches."""
    numbers = EmberDimensionNumbers(axis)
    tx = optax.chain(scale_by_ember(dimension_numbers=numbers), optax.scale(-1e-2))
    low, count = 0 if jnp.issubdtype(dtype, jnp.unsignedinteger) else -3, len(ids_shape)

    def random_batch(rng):
        ids = rng.integers(low, min(size + 3, 127), ids_shape).astype(dtype)
        rows = rng.normal(size=(*ids_shape, *features)).astype(np.float32)
        grads = np.moveaxis(to_dense(rows, ids, (size, *features)), 0, axis)
        return np.moveaxis(rows, range(count), range(axis, axis + count)), ids, grads

    def sparse(carry, batch):
        compact, ids, _ = batch
        params, state = carry
        updates, state = tx.update(compact, state, params, token_ids=ids)
        assert updates.shape == compact.shape
        return (row_sparse.apply_updates(params, updates, ids, tables=numbers), state), None

    def dense(carry, batch):
        return dense_step(tx)(*carry, batch[2]), None

    @jax.jit
    def both(start, batches):
        return [jax.lax.scan(step, (start, tx.init(start)), batches)[0] for step in (sparse, dense)]

    for seed in range(3):
        rng = np.random.default_rng(seed)
        start = np.moveaxis(rng.normal(size=(size, *features)), 0, axis).astype(np.float32)
        batches = jax.tree.map(lambda *leaves: np.stack(leaves), random_batch(rng), random_batch(rng))
        assert_same_run(*both(start, batches), start)


@pytest.mark.parametrize("table_dtype, grads_dtype", in_turn([jnp.float32, jnp.bfloat16], [jnp.bfloat16, jnp.float32]))
def test_half_precision(table_dtype, grads_dtype):
    """Distinct ids, so that both gradients are the same numbers; the parameters round once, as in optax.apply_updates.

    Op by op (`disable_jit`): compiled as a whole, the two programs round differently.
    """
    shape, rng = (64, 8), np.random.default_rng(2)
    tx = ember(1e-2, optax.adamw(1e-2), tables=TABLE)
    start = jnp.asarray(rng.normal(size=shape), table_dtype)
    run, reference = (start, tx.init(start)), (start, tx.init(start))
    with jax.disable_jit():
        for _ in range(3):
            ids = jnp.asarray(rng.permutation(64)[:10])
            compact = jnp.asarray(rng.normal(size=(10, 8)), grads_dtype)
            params, state = run
            updates, state = tx.update(compact, state, params, token_ids=ids)
            assert updates.dtype == grads_dtype
            run = row_sparse.apply_updates(params, updates, ids), state
            params, state = reference
            updates, state = tx.update(jnp.zeros(shape, grads_dtype).at[ids].set(compact), state, params)
            reference = optax.apply_updates(params, updates), state
    assert run[0].dtype == table_dtype
    # To the bit, but before jax 0.10 two sums of the same numbers may differ in the last one.
    rtol = 0.0 if jax.__version_info__ >= (0, 10) else 3e-7
    np.testing.assert_allclose(run[0].astype(jnp.float32), reference[0].astype(jnp.float32), rtol=rtol)


@pytest.mark.parametrize("heads", [(), "lm_head/kernel"], ids=["no head", "fused head"])
def test_each_call_of_a_step_reads_the_tree_once(heads, monkeypatch):
    """And the finder looks at it once."""
    params = {"embed": {"embedding": jnp.ones((100, 4))}, "lm_head": {"kernel": jnp.ones((4, 100))}}
    ids = jnp.array([[5, 9, 5]])

    def loss_fn(params):
        hidden, head = params["embed"]["embedding"][ids], params["lm_head"]["kernel"]
        return linear_softmax_cross_entropy(hidden, head, ids, token_axis=1).mean()

    reads = collections.Counter()
    for module, name in ((tables, "flatten_named"), (declared, "find_tables")):
        monkeypatch.setattr(module, name, counted(getattr(module, name), reads))

    def reads_of(call):
        reads.clear()
        return call(), dict(reads)

    tx, once = ember(1e-2, optax.adamw(1e-2)), {"flatten_named": 1, "find_tables": 1}
    opt_state = tx.init(params)
    (_, grads), found = reads_of(lambda: row_sparse.value_and_grad(loss_fn, heads=heads)(params, {"embed/embedding": ids}))
    assert found == once
    (updates, _), found = reads_of(lambda: tx.update(grads, opt_state, params))
    assert found == once
    _, found = reads_of(lambda: optax.apply_updates(params, updates))
    assert found == {}
    if not heads:
        updates, token_ids = row_sparse.split(updates)
        _, found = reads_of(lambda: row_sparse.apply_updates(params, updates, token_ids))
        assert found == once


def counted(function, counter):
    def counting(*args, **kwargs):
        counter[function.__name__] += 1
        return function(*args, **kwargs)

    return counting
