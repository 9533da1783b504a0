"""Row-sparse steps are the dense steps, whatever the ids, the shapes and the mixture of both; compact gradients are gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember

TABLE = EmberDimensionNumbers()


def to_dense(compact, ids, shape):
    """The dense gradient for which compact rows stand, token axis first."""
    dense, ids = np.zeros(shape, np.float64), np.asarray(ids).reshape(-1)
    kept = (ids >= 0) & (ids < shape[0])
    np.add.at(dense, ids[kept], np.asarray(compact, np.float64).reshape(-1, *shape[1:])[kept])
    return jnp.asarray(dense, jnp.float32)


def make_steps(tx):
    @jax.jit
    def dense(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def sparse(params, state, grads, ids):
        updates, state = tx.update(grads, state, params, token_ids=ids)
        return row_sparse.apply_updates(params, updates, ids), state

    return dense, sparse


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
    tx = ember(1e-2, tables=TABLE, weight_decay=weight_decay)
    dense, sparse = make_steps(tx)
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
        params, state = carry
        updates, state = tx.update(batch[0], state, params, token_ids=batch[1])
        return (row_sparse.apply_updates(params, updates, batch[1]), state), None

    def dense(carry, batch):
        params, state = carry
        grads = jnp.zeros(shape).at[jnp.where(batch[1] < 0, 40, batch[1])].add(batch[0], mode="drop")
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    assert_same_run(jax.jit(run, static_argnums=0)(sparse), jax.jit(run, static_argnums=0)(dense), start)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 30),
    st.sampled_from([(), (1,), (5,), (2, 3)]),
    st.sampled_from([(0,), (1,), (7,), (2, 4), (3, 1, 2)]),
    st.sampled_from([jnp.int32, jnp.int8, jnp.uint8, jnp.uint32]),
    st.tuples(st.integers(0, 2), st.integers(0, 1000)),
)
@example(300, (4,), (9,), jnp.int8, (0, 0))
@example(3, (4,), (8,), jnp.int32, (1, 1))
def test_any_shape_of_table_and_ids(size, features, ids_shape, dtype, axis_and_seed):
    axis, seed = axis_and_seed
    rng = np.random.default_rng(seed)
    axis = min(axis, len(features))
    tx = optax.chain(scale_by_ember(dimension_numbers=EmberDimensionNumbers(axis)), optax.scale(-1e-2))
    start = jnp.asarray(np.moveaxis(rng.normal(size=(size, *features)), 0, axis), jnp.float32)
    run, reference = (start, tx.init(start)), (start, tx.init(start))
    for _ in range(2):
        low = 0 if jnp.issubdtype(dtype, jnp.unsignedinteger) else -3
        ids = jnp.asarray(rng.integers(low, min(size + 3, 127), ids_shape), dtype)
        rows = rng.normal(size=(*ids_shape, *features)).astype(np.float32)
        grads = jnp.moveaxis(to_dense(rows, ids, (size, *features)), 0, axis)
        count = len(ids_shape)
        compact = jnp.moveaxis(jnp.asarray(rows), range(count), range(axis, axis + count))
        params, state = run
        updates, state = tx.update(compact, state, params, token_ids=ids)
        assert updates.shape == compact.shape
        run = row_sparse.apply_updates(params, updates, ids, dimension_numbers=EmberDimensionNumbers(axis)), state
        params, state = reference
        updates, state = tx.update(grads, state, params)
        reference = optax.apply_updates(params, updates), state
    assert_same_run(run, reference, start)


@pytest.mark.parametrize("table_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("grads_dtype", [jnp.float32, jnp.bfloat16])
def test_half_precision(table_dtype, grads_dtype):
    """Distinct ids, so that both gradients are the same numbers; the parameters round once, as in optax.apply_updates."""
    shape, rng = (64, 8), np.random.default_rng(2)
    tx = ember(1e-2, tables=TABLE)
    start = jnp.asarray(rng.normal(size=shape), table_dtype)
    run, reference = (start, tx.init(start)), (start, tx.init(start))
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
    np.testing.assert_array_equal(run[0].astype(jnp.float32), reference[0].astype(jnp.float32))


def test_duplicates_of_bfloat16_rows_are_added_in_float32():
    compact = jnp.concatenate([jnp.full((1, 4), 256.0), jnp.full((64, 4), 1.0)]).astype(jnp.bfloat16)
    tx = scale_by_ember(b2=0.0)
    table = jnp.zeros((3, 4))
    _, state = tx.update(compact, tx.init(table), table, token_ids=jnp.zeros(65, jnp.int32))
    np.testing.assert_allclose(state.nu_token[0], 320.0**2, rtol=1e-6)


# A model with an input table, a body and a head of its own.
V, D, T = 50, 8, 6


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "embed": {"embedding": jnp.asarray(rng.normal(size=(V, D)), jnp.float32)},
        "layers": jnp.asarray(rng.normal(size=(3, D, D)) / 3, jnp.float32),
        "lm_head": {"kernel": jnp.asarray(rng.normal(size=(D, V)) / 3, jnp.float32)},
    }


def body(params, x, *, remat=False, unrolled=False):
    def layer(x, w):
        return x + jnp.tanh(x @ w), None

    layer = jax.checkpoint(layer) if remat else layer
    if unrolled:
        return functools.reduce(lambda x, w: layer(x, w)[0], params["layers"], x)
    return jax.lax.scan(layer, x, params["layers"])[0]


def plain_loss(params, ids):
    logits = body(params, params["embed"]["embedding"][ids[:, :-1]]) @ params["lm_head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


def several_lookups(params, ids):
    """Two lookups of one table outside of the body and one in each step of a scan over rematerialised layers."""
    table = params["embed"]["embedding"]

    @jax.checkpoint
    def layer(x, w):
        return jnp.tanh(x @ w) + row_sparse.lookup(table, ids[:, :-1]), None

    x = table[ids[:, :-1]] + row_sparse.lookup(table, ids[:, 1:])
    x, _ = jax.lax.scan(layer, x, params["layers"])
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["lm_head"]["kernel"], ids[:, 1:]).mean()


def under_remat(params, ids):
    @jax.checkpoint
    def hidden(params):
        return body(params, row_sparse.lookup(params["embed"]["embedding"], ids[:, :-1]), remat=True, unrolled=True)

    logits = hidden(params) @ params["lm_head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


def in_bfloat16(params, ids):
    cast = jax.tree.map(lambda p: p.astype(jnp.bfloat16) if jnp.issubdtype(p.dtype, jnp.floating) else p, params)
    logits = (body(cast, cast["embed"]["embedding"][ids[:, :-1]]) @ cast["lm_head"]["kernel"]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


def per_example(params, ids):
    def one(ids):
        logits = body(params, params["embed"]["embedding"][ids[:-1]]) @ params["lm_head"]["kernel"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:]).mean()

    return jax.vmap(one)(ids).mean()


IDS = jnp.asarray(np.random.default_rng(3).integers(0, V, (4, T + 1)), jnp.int32).at[0].set(7)


@pytest.mark.parametrize("loss_fn", [plain_loss, several_lookups, under_remat, in_bfloat16, per_example])
def test_compact_gradients_are_the_gradients(loss_fn):
    params = make_params()
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params, IDS)
    found, compact, token_ids = jax.jit(row_sparse.value_and_grad(loss_fn))(params, {"embed/embedding": IDS}, IDS)
    ids = token_ids["embed/embedding"]
    assert ids.shape == (IDS.size,)
    assert (np.diff(ids[ids < V]) > 0).all()
    exact = {"rtol": 1e-2, "atol": 1e-3} if loss_fn is in_bfloat16 else {"rtol": 1e-5, "atol": 1e-7}
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    np.testing.assert_allclose(to_dense(compact["embed"]["embedding"], ids, (V, D)), grads["embed"]["embedding"], **exact)
    for name in ("layers", "lm_head"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, **exact), compact[name], grads[name])


def test_more_tokens_than_rows():
    ids = jnp.asarray(np.random.default_rng(0).integers(0, V, (30, T + 1)))
    params = make_params()
    _, compact, token_ids = row_sparse.value_and_grad(plain_loss)(params, {"embed/embedding": ids}, ids)
    assert compact["embed"]["embedding"].shape == (V, D)  # never more rows than the table has
    grads = jax.grad(plain_loss)(params, ids)
    dense = to_dense(compact["embed"]["embedding"], token_ids["embed/embedding"], (V, D))
    np.testing.assert_allclose(dense, grads["embed"]["embedding"], rtol=1e-5, atol=1e-7)


def test_as_many_ids_as_rows_give_the_dense_gradient():
    """So that whoever forgets the ids then is still right."""
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 40, (9, T + 1)))
    params = make_params()
    _, compact, token_ids = row_sparse.value_and_grad(plain_loss)(params, {"embed/embedding": ids}, ids)
    np.testing.assert_array_equal(token_ids["embed/embedding"], jnp.arange(V))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-7), compact, jax.grad(plain_loss)(params, ids))


def test_lookup_of_padding_and_of_ids_that_were_not_declared():
    table = jnp.arange(1.0, 11.0)[:, None]
    part = row_sparse.RowSlice(table[jnp.array([2, 5])], jnp.array([2, 5]), 10)
    ids = jnp.array([[5, 2], [-1, 10]])
    for one in (table, part):
        np.testing.assert_array_equal(row_sparse.lookup(one, ids)[..., 0], [[6.0, 3.0], [0.0, 0.0]])
    np.testing.assert_array_equal(row_sparse.lookup(part, jnp.array([2, 3]))[:, 0], [3.0, np.nan])
    empty = row_sparse.RowSlice(table[:0], jnp.zeros(0, jnp.int32), 10)
    np.testing.assert_array_equal(empty[jnp.array([-1, 3])][:, 0], [0.0, np.nan])


def test_a_tap_has_the_compact_gradient():
    params, ids = make_params(), IDS[:, :-1]

    def tapped(tap):
        x = row_sparse.lookup(params["embed"]["embedding"], ids, tap)
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["lm_head"]["kernel"], IDS[:, 1:]).mean()

    def plain(table):
        x = table[ids]
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["lm_head"]["kernel"], IDS[:, 1:]).mean()

    compact = jax.grad(tapped)(jnp.zeros((*ids.shape, D)))
    np.testing.assert_allclose(to_dense(compact, ids, (V, D)), jax.grad(plain)(params["embed"]["embedding"]), atol=1e-7)
    of_table = jax.grad(lambda table: row_sparse.lookup(table, ids, jnp.zeros((*ids.shape, D))).sum())
    assert not of_table(params["embed"]["embedding"]).any()


def test_auxiliary_output_and_keyword_arguments():
    def loss_fn(params, *, ids):
        return plain_loss(params, ids), {"tokens": ids.size}

    (loss, aux), _, _ = row_sparse.value_and_grad(loss_fn, has_aux=True)(make_params(), {"embed/embedding": IDS}, ids=IDS)
    assert aux["tokens"] == IDS.size
    np.testing.assert_allclose(loss, plain_loss(make_params(), IDS), rtol=1e-6)


def train(tx, *, sparse, steps=6, micro_batches=1):
    params = make_params()

    def of_batch(params, ids):
        if not sparse:
            return (*jax.value_and_grad(plain_loss)(params, ids), None)
        return row_sparse.value_and_grad(plain_loss)(params, {"embed/embedding": ids}, ids)

    @jax.jit
    def step(params, state, batch):
        if micro_batches == 1:
            loss, grads, token_ids = of_batch(params, batch)
        else:
            parts = batch.reshape(micro_batches, -1, T + 1)
            _, (loss, grads, token_ids) = jax.lax.scan(lambda _, ids: (None, of_batch(params, ids)), None, parts)
            if sparse:
                grads, token_ids = row_sparse.mean_over_micro_batches(grads, token_ids)
            else:
                grads = jax.tree.map(lambda g: g.mean(0), grads)
        given = {"token_ids": token_ids} if sparse else {}
        updates, state = tx.update(grads, state, params, **given)
        if sparse:
            return row_sparse.apply_updates(params, updates, token_ids), state, loss
        return optax.apply_updates(params, updates), state, loss

    state = tx.init(params)
    for number in range(steps):
        ids = np.random.default_rng(number).integers(0, V if number % 2 else 9, (4, T + 1))
        params, state, _ = step(params, state, jnp.asarray(ids, jnp.int32))
    return params, state


WRAPPERS = {
    "ember": lambda: ember(1e-2),
    "schedule": lambda: ember(optax.linear_schedule(1e-2, 1e-3, 5)),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), ember(1e-2)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(ember)(learning_rate=1e-2),
    "apply_if_finite": lambda: optax.apply_if_finite(ember(1e-2), 3),
    "partition": lambda: optax.partition(
        {"t": optax.chain(scale_by_ember(), optax.scale(-1e-2)), "b": optax.sgd(1e-2)},
        {"embed": "t", "layers": "b", "lm_head": "b"},
    ),
    "named chain": lambda: optax.named_chain(("first", optax.identity()), ("second", ember(1e-2, optax.contrib.muon(1e-2)))),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_composition(name):
    """The norm of distinct rows is the dense norm, so clipping agrees as well."""
    found, expected = train(WRAPPERS[name](), sparse=True), train(WRAPPERS[name](), sparse=False)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), found, expected)


def test_micro_batches_are_averaged_before_they_are_squared():
    found, expected = train(ember(1e-2), sparse=True, micro_batches=2), train(ember(1e-2), sparse=False)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), found, expected)


def test_sum_over_duplicates_gives_the_dense_norm():
    ids = jnp.array([[4, -1, 4], [2, 4, 9]])
    compact = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    summed = row_sparse.sum_over_duplicates({"wte": compact}, {"wte": ids})["wte"]
    assert summed.shape == compact.shape
    dense = to_dense(compact, ids, (10, 5))
    np.testing.assert_allclose(optax.tree.norm(summed), optax.tree.norm(dense), rtol=1e-6)
    np.testing.assert_allclose(to_dense(summed, ids, (10, 5)), dense, rtol=1e-6)


def test_ids_may_be_a_tree_like_the_parameters():
    """None for dense leaves, or nothing at all."""
    params = make_params()
    for token_ids in ({"embed": {"embedding": IDS}, "layers": None, "lm_head": {"kernel": None}}, {"embed": {"embedding": IDS}}):
        _, _, found = row_sparse.value_and_grad(plain_loss)(params, token_ids, IDS)
        assert list(found) == ["embed/embedding"]


def test_updates_of_sgd_are_added_up():
    """`apply_updates` is right for any optimizer's compact updates, also where ids stand twice."""
    for dtype in (jnp.float32, jnp.bfloat16):
        table = jnp.ones((4, 2), dtype)
        found = row_sparse.apply_updates({"wte": table}, {"wte": jnp.ones((3, 2))}, {"wte": jnp.array([2, -1, 2])})
        np.testing.assert_array_equal(found["wte"][:, 0], [1.0, 1.0, 3.0, 1.0])
        assert found["wte"].dtype == dtype


@pytest.mark.parametrize("compact", [False, True])
def test_frozen_rows_stay_bit_identical(compact):
    params = {"wte": jnp.asarray(np.random.default_rng(0).normal(size=(20, 4)), jnp.float32).at[3].set(-0.0)}
    tx = row_sparse.train_only_rows(ember(1e-2, weight_decay=0.1), {"wte": jnp.array([18, 19])})
    state, found = tx.init(params), params
    alone, alone_state = ember(1e-2, weight_decay=0.1), ember(1e-2, weight_decay=0.1).init(params)
    expected = params
    for step in range(5):
        ids = jnp.asarray(np.random.default_rng(step).integers(0, 20, 40)).at[:2].set(jnp.array([18, 19]))  # both decay
        rows = jnp.asarray(np.random.default_rng(step).normal(size=(40, 4)), jnp.float32)
        token_ids = {"wte": ids} if compact else None
        grads = {"wte": rows if compact else to_dense(rows, ids, (20, 4))}
        updates, state = tx.update(grads, state, found, token_ids=token_ids)
        found = row_sparse.apply_updates(found, updates, token_ids)
        grads = {"wte": to_dense(rows, ids, (20, 4)).at[:18].set(0.0)}
        updates, alone_state = alone.update(grads, alone_state, expected)
        expected = optax.apply_updates(expected, updates)
    bits = functools.partial(np.asarray, dtype=np.float32)
    np.testing.assert_array_equal(bits(found["wte"][:18]).view(np.uint32), bits(params["wte"][:18]).view(np.uint32))
    np.testing.assert_allclose(found["wte"][18:], expected["wte"][18:], rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state, alone_state)


@pytest.mark.parametrize("compact", [False, True])
def test_frozen_rows_are_out_of_norms_and_of_noise(compact):
    """Their gradients are zero before the inner transformation, their updates after it."""
    inner = optax.chain(optax.clip_by_global_norm(1e-3), scale_by_ember(), optax.scale(-1e-2), optax.add_noise(1e-2, 0.0, 0))
    tx = row_sparse.train_only_rows(inner, {"wte": np.array([1, 2])})
    table, ids = {"wte": jnp.ones((20, 4))}, jnp.array([1, 7, 9])
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32).at[1].set(jnp.nan)
    token_ids = {"wte": ids} if compact else None
    grads = {"wte": rows if compact else jnp.zeros((20, 4)).at[ids].set(rows)}
    state = jax.jit(tx.init)(table)
    updates, state = jax.jit(tx.update)(grads, state, table, token_ids=token_ids)
    found = row_sparse.apply_updates(table, updates, token_ids)["wte"]
    moved = np.flatnonzero((found != 1.0).any(1))
    assert 1 in moved
    assert set(moved) <= {1, 2}
    scaled = optax.tree.get(state, "nu_token")["wte"]
    np.testing.assert_allclose(jnp.sqrt(scaled[1] * 4 / 1e-3), 1e-3, rtol=1e-4)  # the norm is that of row 1 alone
    assert not optax.tree.get(state, "total_notfinite")["wte"]


@pytest.mark.parametrize("dtype, most", [(jnp.float16, 0.02), (jnp.bfloat16, 1.02)])
def test_copies_of_a_half_precision_table(dtype, most):
    """XLA on CPU copies a bfloat16 table once, not twice as float32."""
    table, ids = jax.ShapeDtypeStruct((100_000, 64), dtype), jax.ShapeDtypeStruct((128,), jnp.int32)
    step = jax.jit(row_sparse.apply_updates, donate_argnums=0)
    memory = step.lower(table, jax.ShapeDtypeStruct((128, 64), dtype), ids).compile().memory_analysis()
    assert memory.temp_size_in_bytes < most * table.size * table.dtype.itemsize


def test_a_compiled_step_has_no_table_sized_gradient():
    """Optimizer step below 2 % of the table, a train step below 5 %, where AdamW's has the V x D gradient."""
    size, width, tokens = 262_144, 1024, 2048
    tx = ember(1e-3, tables=TABLE)
    table = jax.ShapeDtypeStruct((size, width), jnp.float32)
    rows, ids = jax.ShapeDtypeStruct((tokens, width), jnp.float32), jax.ShapeDtypeStruct((tokens,), jnp.int32)

    def step(params, state, grads, ids):
        updates, state = tx.update(grads, state, params, token_ids=ids)
        return row_sparse.apply_updates(params, updates, ids), state

    arguments = (table, jax.eval_shape(tx.init, table), rows, ids)
    memory = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.02 * size * width * 4

    def train_step(params, state, ids):
        def loss_fn(table, ids):
            return jnp.mean(jnp.tanh(table[ids]) ** 2)

        _, grads, token_ids = row_sparse.value_and_grad(loss_fn)(params, ids, ids)
        updates, state = tx.update(grads, state, params, token_ids=token_ids)
        return row_sparse.apply_updates(params, updates, token_ids), state

    memory = jax.jit(train_step, donate_argnums=(0, 1)).lower(*arguments[:2], ids).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * size * width * 4


PARAMS = make_params()
STATE = ember(1e-2).init(PARAMS)
GRADS = {**PARAMS, "embed": {"embedding": jnp.ones((5, D))}}
FIVE = jnp.arange(5)


def update(grads=GRADS, params=PARAMS, **ids):
    return ember(1e-2).update(grads, STATE, params, token_ids={"embed/embedding": FIVE} | ids)


def tied_loss(params, ids):
    table = params["embed"]["embedding"]
    return jnp.mean(table[ids] @ table.T)


MISTAKES = {
    "ids of floats": (lambda: update(**{"embed/embedding": FIVE * 1.0}), TypeError, r"'embed/embedding' .* integers .* float32"),
    "ids in a list": (
        lambda: update(**{"embed/embedding": [1, 2]}),
        TypeError,
        r"'embed/embedding/0' must be an array .* type int",
    ),
    "ids of another number": (lambda: update(**{"embed/embedding": FIVE[:3]}), ValueError, r"shape \(5, 8\).*\(3,\).*\(3, 8\)"),
    "compact without ids": (lambda: ember(1e-2).update(GRADS, STATE, PARAMS), ValueError, r"embedding' has shape \(5, 8\)"),
    "dense with ids": (lambda: update(PARAMS), ValueError, r"is dense, of shape \(50, 8\).*tied to the head.*None"),
    "ids of the body": (lambda: update(**{"layers": FIVE}), ValueError, r"'layers' of shape \(3, 8, 8\), trained by the body"),
    "unknown path": (lambda: update(**{"embed/table": FIVE}), ValueError, r"\['embed/table'\].* correct the path"),
    "no parameters": (lambda: update(params=None), ValueError, r"token_ids need the parameters: call update\(updates, state"),
    "no parameters of one table": (
        lambda: scale_by_ember().update(GRADS["embed"], scale_by_ember().init(PARAMS["embed"]), token_ids={"embedding": FIVE}),
        ValueError,
        r"token_ids need the parameters: call update\(updates, state",
    ),
    "apply without ids": (
        lambda: row_sparse.apply_updates(PARAMS, GRADS, None),
        ValueError,
        r"'embed/embedding' has shape \(5, 8\), but the parameter has \(50, 8\).*token_ids",
    ),
    "apply with other ids": (
        lambda: row_sparse.apply_updates(PARAMS, GRADS, {"embed/embedding": FIVE[:2]}),
        ValueError,
        r"'embed/embedding' has shape \(5, 8\).*ids of shape \(2,\).*one row for each id",
    ),
    "tied table": (
        lambda: row_sparse.value_and_grad(tied_loss)(PARAMS, {"embed/embedding": IDS}, IDS),
        TypeError,
        r"only the rows of the declared ids exist.*its transpose.*tied to the head.*own",
    ),
    "table in a product": (
        lambda: row_sparse.value_and_grad(lambda p: jnp.sum(jnp.ones(V) @ p["embed"]["embedding"]))(
            PARAMS, {"embed/embedding": IDS}
        ),
        TypeError,
        r"only the rows of the declared ids exist",
    ),
    "table in jnp.take": (
        lambda: row_sparse.value_and_grad(lambda p: jnp.take(p["embed"]["embedding"], FIVE, 0).sum())(
            PARAMS, {"embed/embedding": IDS}
        ),
        TypeError,
        r"used as an array.*row_sparse.lookup",
    ),
    "sliced table": (
        lambda: row_sparse.value_and_grad(lambda p: p["embed"]["embedding"][2:4].sum())(PARAMS, {"embed/embedding": IDS}),
        TypeError,
        r"indexed with slice",
    ),
    "ids cast with the parameters": (
        lambda: row_sparse.value_and_grad(
            lambda p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), p)["embed"]["embedding"][IDS].sum()
        )(PARAMS, {"embed/embedding": IDS}),
        NotImplementedError,
        r"astype",
    ),
    "indexed with a mask": (
        lambda: row_sparse.value_and_grad(lambda p: p["embed"]["embedding"][IDS > 3].sum())(PARAMS, {"embed/embedding": IDS}),
        TypeError,
        r"ids must be integers, got bool",
    ),
    "L2 term over all leaves": (
        lambda: row_sparse.value_and_grad(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)))(
            PARAMS, {"embed/embedding": IDS}
        ),
        TypeError,
        r"key<fry>",
    ),
    "table times two": (
        lambda: row_sparse.value_and_grad(lambda p: jnp.sum(2.0 * p["embed"]["embedding"]))(PARAMS, {"embed/embedding": IDS}),
        TypeError,
        r"arithmetic was done with it",
    ),
    "one path of two leaves": (
        lambda: row_sparse.apply_updates({"a/b": jnp.ones((4, 2)), "a": {"b": jnp.ones((4, 2))}}, None, {"a/b": FIVE}),
        ValueError,
        r"'a/b'\], which stand for more than one leaf",
    ),
    "micro-batches of a (D, V) head": (
        lambda: row_sparse.mean_over_micro_batches({"head": jnp.ones((6, 6, 5))}, {"head": jnp.zeros((6, 5), jnp.int32)}),
        ValueError,
        r"'head' has shape \(6, 6, 5\), but its ids have shape \(6, 5\)",
    ),
    "lookup of floats": (lambda: row_sparse.lookup(jnp.ones((4, 2)), jnp.ones(3)), TypeError, r"ids must be integers, got f"),
    "tap of another shape": (
        lambda: row_sparse.lookup(jnp.ones((4, 2)), jnp.arange(3), jnp.ones((2, 2))),
        ValueError,
        r"tap has shape \(2, 2\).*\(3, 2\)",
    ),
    "stacked tables": (
        lambda: scale_by_ember(dimension_numbers=EmberDimensionNumbers(1, (0,))).update(
            jnp.ones((2, 3, 4)),
            scale_by_ember(dimension_numbers=EmberDimensionNumbers(1, (0,))).init(jnp.ones((2, 9, 4))),
            jnp.ones((2, 9, 4)),
            token_ids=jnp.arange(3),
        ),
        ValueError,
        r"has the batch axes \(0,\): row-sparse steps are for one table",
    ),
    "rows that do not exist": (
        lambda: row_sparse.train_only_rows(ember(1e-2), {"embed/embedding": jnp.array([3, 50])}).init(PARAMS),
        ValueError,
        r"rows of 'embed/embedding' names \[50\].*0 to 49",
    ),
    "rows of no parameter": (
        lambda: row_sparse.train_only_rows(ember(1e-2), {"wte": FIVE}).init(PARAMS),
        ValueError,
        r"names \['wte'\].*correct the path",
    ),
    "duplicates of another shape": (
        lambda: row_sparse.sum_over_duplicates({"wte": jnp.ones((3, 2))}, {"wte": jnp.arange(4)}),
        ValueError,
        r"'wte' has shape \(3, 2\), but its ids have shape \(4,\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    mistake, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        mistake()
