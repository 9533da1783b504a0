"""Transformations of updates against float64, in every layout, dense and row-sparse, and what Optax expects of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regularizer_oracle as oracle
from products import in_turn
from steps import to_dense
from three_matrices import TABLES, assert_trees_equal, initial_params

from ember_optax import EmberDimensionNumbers, TokenTables, ember, regularizers, row_sparse, scale_by_ember

V, D = 12, 4
COUNTS = np.arange(V)
HEAD = TokenTables(exclude=["embed/embedding"])
TRANSFORMATIONS = {
    "center updates": regularizers.center_rows(tables=TABLES),
    "center the table": regularizers.center_rows("table", tables=TABLES),
    "normalize": regularizers.normalize_spectral_norm(3.0, tables=TABLES),
    "scale by fixed counts": regularizers.scale_by_frequency(0.5, token_counts=COUNTS, tables=TABLES),
    "scale by streamed counts": regularizers.scale_by_frequency(0.5, decay=0.5, tables=TABLES),
    "cap": regularizers.cap_row_steps(0.5, tables=TABLES),
    "cap by a schedule": regularizers.cap_row_steps(lambda count: 0.25 * (count + 1).astype(jnp.float32), tables=TABLES),
    "no cap": regularizers.cap_row_steps(tables=TABLES),
}
EACH = pytest.mark.parametrize("name", TRANSFORMATIONS)


def gradients(seed=0, dtype=jnp.float32):
    keys = iter(jax.random.split(jax.random.key(seed), 3))
    return jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape, dtype), initial_params())


def as_rows(tree):
    """Both tables in float64, tokens first."""
    return {
        "embed": np.asarray(tree["embed"]["embedding"], np.float64),
        "lm_head": np.asarray(tree["lm_head"]["kernel"], np.float64).T,
    }


def expected(name, update, param):
    after = param + update
    return {
        "center updates": lambda: update - update.mean(0),
        "center the table": lambda: update - after.mean(0),
        "normalize": lambda: after * min(1, 3.0 / np.linalg.norm(after, 2)) - param,
        "scale by fixed counts": lambda: update * oracle.frequency_weights(COUNTS, 0.5)[:, None],
        # the second batch, after half of the first
        "scale by streamed counts": lambda: update * oracle.frequency_weights(1.5 * COUNTS, 0.5)[:, None],
        "cap": lambda: oracle.capped(update, 0.5),
        "cap by a schedule": lambda: oracle.capped(update, 0.5),
        "no cap": lambda: update,
    }[name]()


@EACH
def test_of_both_tables(name, strict_promotion):
    """In the second step; that of power iteration comes after so many that its vector has arrived."""
    tx, params, updates = TRANSFORMATIONS[name], initial_params(), gradients()
    update = jax.jit(functools.partial(tx.update, token_counts=jnp.asarray(COUNTS)))
    state = tx.init(params)
    for _ in range(80 if name == "normalize" else 2):
        found, state = update(updates, state, params)
    assert_trees_equal(found["dense"], updates["dense"])
    for table, rows in as_rows(found).items():
        wanted = expected(name, as_rows(updates)[table], as_rows(params)[table])
        np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-5, err_msg=table)


def test_a_normalised_table_is_not_above_its_bound():
    """In training, by the SVD, once the vector has converged; a table below it is left alone to the last bit."""
    params = initial_params()
    tx = optax.chain(optax.sgd(0.05), regularizers.normalize_spectral_norm(4.0, tables=TABLES))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(lambda p: -p, params), state, params)  # without it they would grow for ever
        return optax.apply_updates(params, updates), state, updates

    state = tx.init(params)
    for _ in range(40):
        params, state, _ = step(params, state)
    for rows in as_rows(params).values():
        assert np.linalg.norm(rows, 2) == pytest.approx(4.0, rel=1e-4)
    small = jax.tree.map(lambda p: 0.1 * p, params)
    _, _, updates = step(small, state)
    assert_trees_equal(updates, jax.tree.map(lambda p: -0.05 * -p, small))


def test_the_loss_does_not_see_the_centre_of_a_head():
    params = initial_params()
    tx = optax.chain(ember(1e-2, optax.adamw(1e-2)), regularizers.center_rows("table", tables=HEAD))
    plain, _ = ember(1e-2, optax.adamw(1e-2)).update(params, ember(1e-2, optax.adamw(1e-2)).init(params), params)
    centred, _ = tx.update(params, tx.init(params), params)
    assert_trees_equal(plain["embed"], centred["embed"])
    hidden, label = jnp.ones(4), jnp.arange(12)
    heads = [optax.apply_updates(params, updates)["lm_head"]["kernel"] for updates in (plain, centred)]
    losses = [optax.softmax_cross_entropy_with_integer_labels(jnp.tile(hidden @ head, (12, 1)), label) for head in heads]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(heads[1].mean(1), 0, atol=1e-6)
    assert np.abs(heads[0].mean(1)).max() > 1e-2


@pytest.mark.parametrize("name", ["scale by fixed counts", "scale by streamed counts", "cap", "cap by a schedule"])
@pytest.mark.parametrize("token_axis", [0, 1])
def test_row_sparse_updates_are_the_dense_ones(name, token_axis):
    """Ids of two axes, out of order, with padding."""
    tables = EmberDimensionNumbers(token_axis)
    tx = {
        "scale by fixed counts": regularizers.scale_by_frequency(0.5, token_counts=COUNTS, tables=tables),
        "scale by streamed counts": regularizers.scale_by_frequency(0.5, decay=0.5, tables=tables),
        "cap": regularizers.cap_row_steps(0.5, tables=tables),
        "cap by a schedule": regularizers.cap_row_steps(optax.constant_schedule(0.5), tables=tables),
    }[name]
    ids, rows = np.array([[5, 2, -1], [0, 11, V]]), np.random.default_rng(0).normal(size=(6, D)).astype(np.float32)
    rows[[2, 5]] = 0
    dense = to_dense(rows, ids, (V, D))
    params = {"wte": jnp.ones((V, D) if token_axis == 0 else (D, V))}
    compact = rows.reshape(2, 3, D) if token_axis == 0 else np.moveaxis(rows.reshape(2, 3, D), 2, 0)
    state, counts = tx.init(params), jnp.asarray(COUNTS)
    found, _ = tx.update({"wte": jnp.asarray(compact)}, state, params, token_ids={"wte": jnp.asarray(ids)}, token_counts=counts)
    wanted, _ = tx.update({"wte": dense if token_axis == 0 else dense.T}, state, params, token_counts=counts)
    back = found["wte"] if token_axis == 0 else jnp.moveaxis(found["wte"], 0, -1)
    applied = to_dense(np.asarray(back), ids, (V, D))
    np.testing.assert_allclose(applied, wanted["wte"] if token_axis == 0 else wanted["wte"].T, rtol=1e-6)


def test_a_cold_row_takes_a_capped_first_step():
    """Of three learning rates without a cap, in a chain between Ember and the rate, dense and row-sparse."""
    numbers = {"wte": jnp.ones((V, D))}
    steady = {"wte": jnp.ones((V, D)).at[7].set(0.0)}
    tx = optax.chain(scale_by_ember(), regularizers.cap_row_steps(2.0), optax.scale_by_learning_rate(1e-2))
    state = tx.init(numbers)
    for _ in range(8):
        _, state = tx.update(steady, state, numbers)
    free, _ = scale_by_ember().update(numbers, state[0], numbers)
    assert float(free["wte"][7, 0]) > 2.9
    cold = {"wte": jnp.zeros((V, D)).at[7].set(1e3)}
    for updates in (
        tx.update(cold, state, numbers)[0]["wte"][7],
        tx.update({"wte": cold["wte"][7:8]}, state, numbers, token_ids={"wte": jnp.array([7])})[0]["wte"][0],
    ):
        np.testing.assert_allclose(updates, -2e-2, rtol=1e-5)


def test_inside_a_partition():
    """The tree shows the tables alone there."""
    labels = {"embed": "ember", "lm_head": "ember", "dense": "body"}
    of_tables = optax.chain(scale_by_ember(), regularizers.cap_row_steps(0.5), optax.scale_by_learning_rate(1.0))
    tx, params = optax.partition({"ember": of_tables, "body": optax.sgd(1.0)}, labels), initial_params()
    updates, _ = tx.update(gradients(), tx.init(params), params)
    for rows in as_rows(updates).values():
        assert np.sqrt(np.mean(np.square(rows), 1)).max() == pytest.approx(0.5, rel=1e-5)


def test_each_table_of_a_stack_by_itself():
    stack = jax.random.normal(jax.random.key(0), (3, V, D)) * jnp.array([1.0, 2.0, 4.0])[:, None, None]
    numbers = EmberDimensionNumbers(1, batch_axes=(0,))
    for make in (
        functools.partial(regularizers.normalize_spectral_norm, 3.0, iterations=20),
        functools.partial(regularizers.center_rows, "table"),
        functools.partial(regularizers.scale_by_frequency),
        functools.partial(regularizers.cap_row_steps, 0.5),
    ):
        tx, one = make(tables=numbers), make(tables=EmberDimensionNumbers())
        found, _ = tx.update(stack, tx.init(stack), stack, token_counts=COUNTS)
        for update, table in zip(found, stack, strict=True):
            wanted, _ = one.update(table, one.init(table), table, token_counts=COUNTS)
            np.testing.assert_allclose(update, wanted, rtol=1e-5, atol=1e-5)


def test_streamed_counts_are_kept_and_decay():
    tx = regularizers.scale_by_frequency(decay=0.5)
    params = {"wte": jnp.ones((V, D))}
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, token_counts=COUNTS)
    np.testing.assert_allclose(state.token_counts["wte"], 1.75 * COUNTS)


@pytest.mark.slow  # two programs, of parts that are tested alone
def test_row_sparse_training_with_a_weighted_loss_and_cap():
    """One row-sparse step with both, against the dense one."""
    tx = optax.chain(ember(1e-2, optax.adamw(1e-2)), regularizers.cap_row_steps(5e-3))
    # Equal columns would leave the table a gradient of rounding errors.
    kernel = jax.random.normal(jax.random.key(0), (D, V))
    params, ids = {"wte": jnp.ones((V, D)), "lm_head": {"kernel": kernel}}, jnp.array([[1, 5, 5]])
    weights = regularizers.frequency_weights(COUNTS)

    def loss(params):
        logits = params["wte"][ids] @ params["lm_head"]["kernel"] * 0.1
        return jnp.mean(weights[ids] * optax.softmax_cross_entropy_with_integer_labels(logits, ids))

    _, grads = row_sparse.value_and_grad(loss)(params, {"wte": ids})
    updates, _ = tx.update(grads, tx.init(params), params)
    found = optax.apply_updates(params, updates)
    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    np.testing.assert_allclose(found["wte"], optax.apply_updates(params, updates)["wte"], rtol=1e-6)
    row_steps = np.sqrt(np.mean(np.square(found["wte"] - 1), 1))
    np.testing.assert_allclose(row_steps[[1, 5]], 5e-3, rtol=1e-3)


SAME_IDS = {
    "thrice": ([1, 1, 1, 2], [2.0, 2.0, 2.0, 2.0]),
    "apart, with padding": ([5, -1, 3, 5, V, 3, 5], [1.0, 9.0, -2.0, 1.5, 9.0, -2.5, 1.0]),
    "that cancel": ([4, 4, 0], [6.0, -6.0, 4.0]),
    "below the cap": ([7, 2, 7], [0.5, 1.0, 0.75]),
    "two axes": ([[1, 8], [8, 1]], [[1.0, 2.0], [2.0, 0.5]]),
    "zeros first": ([3, 3, 3], [0.0, 1.0, 5.0]),
}


@pytest.mark.parametrize("name, dtype, token_axis", in_turn([*SAME_IDS], [jnp.float32, jnp.bfloat16], [0, 1]))
def test_rows_of_equal_ids_are_capped_as_one(dtype, name, token_axis):
    """A token that stands several times in a batch has one step, as in the dense update."""
    tables = EmberDimensionNumbers(token_axis)
    ids, sizes = (jnp.asarray(values) for values in SAME_IDS[name])
    rows = sizes.reshape(-1, 1) * jnp.asarray([1.0, -0.5, 2.0, 1.0])
    dense = to_dense(rows, ids, (V, D)).astype(dtype)
    compact = rows.reshape(*ids.shape, D).astype(dtype)
    compact = compact if token_axis == 0 else jnp.moveaxis(compact, -1, 0)
    params = {"wte": jnp.zeros((V, D) if token_axis == 0 else (D, V), dtype)}
    for tx in (regularizers.cap_row_steps(3.0, tables=tables), regularizers.cap_row_steps(lambda _: 3.0, tables=tables)):
        wanted, _ = tx.update({"wte": dense if token_axis == 0 else dense.T}, tx.init(params), params)
        found, _ = tx.update({"wte": compact}, tx.init(params), params, token_ids={"wte": ids})
        assert found["wte"].dtype == dtype
        applied = row_sparse.apply_updates(params, found, {"wte": ids}, tables=tables)
        np.testing.assert_allclose(applied["wte"].astype(jnp.float32), wanted["wte"].astype(jnp.float32), rtol=1e-6)


@pytest.mark.parametrize("scale", [5e20, 1e-25, 1.0])
def test_the_bound_of_a_norm_whose_square_leaves_float32(scale):
    scale = np.float32(scale)
    params = {"wte": jnp.asarray(np.random.default_rng(0).normal(size=(V, D)), jnp.float32) * scale}
    tx = regularizers.normalize_spectral_norm(2.0 * float(scale), iterations=60, tables=EmberDimensionNumbers(0))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    after = np.asarray(params["wte"] + updates["wte"], np.float64)
    assert np.linalg.norm(after, 2) == pytest.approx(2.0 * float(scale), rel=1e-5)
