"""What depends on which rows are tokens, and along which axis: the clip, sums of equal ids and means of micro-batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import EmberDimensionNumbers, ember, row_sparse

# The table's shape, its token axis, and what tells the axis: the name, or a declaration.
LAYOUTS = {
    "(V, D)": ("wte", (12, 5), 0, None),
    "(D, V)": ("reverse_embeddings", (5, 12), 1, None),
    "(D, V), V = D": ("reverse_embeddings", (12, 12), 1, None),
    "(V, D), V = D": ("wte", (12, 12), 0, None),
    "declared": ("anything", (5, 12), 1, {"anything": EmberDimensionNumbers(1), "w": None}),
    "a function": ("anything", (5, 12), -1, lambda params: {"anything": EmberDimensionNumbers(-1), "w": None}),
    "features in two axes": ("anything", (3, 12, 2), 1, {"anything": EmberDimensionNumbers(1), "w": None}),
}
IDS = {
    "distinct": [3, 7, 1, 0],
    "equal": [3, 7, 3, 3, 11],
    "padding below": [3, -1, 7, -100],
    "padding at V": [3, 12, 7, 12],
    "padding beyond": [12, 3, 10**6, 2**31 - 1, 3],
    "of two axes": [[3, 12, 3], [-1, 7, 9]],
    "one": [12],
}


def case(layout, ids, dtype=np.float32, padding=1e6):
    """Compact rows whose padding holds large numbers, and the dense gradient in float64."""
    name, shape, axis, told = LAYOUTS[layout]
    axis, ids = axis % len(shape), np.asarray(IDS[ids])
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((*ids.shape, *np.delete(shape, axis)))
    is_token = (ids >= 0) & (ids < 12)
    rows[~is_token] = padding
    rows = np.asarray(jnp.asarray(rows, dtype).astype(jnp.float32), np.float64)
    dense = np.zeros((12, *np.delete(shape, axis)))
    np.add.at(dense, ids[is_token], rows[is_token])
    compact = np.moveaxis(rows, range(ids.ndim), range(axis, axis + ids.ndim))
    params, tables = {name: jnp.zeros(shape), "w": jnp.zeros(3)}, {} if told is None else {"tables": told}
    return params, {name: jnp.asarray(compact, dtype), "w": jnp.ones(3)}, {name: jnp.asarray(ids)}, dense, tables


def to_dense(compact, ids, axis):
    rows = np.moveaxis(np.asarray(compact, np.float64), range(axis, axis + ids.ndim), range(ids.ndim))
    dense, ids = np.zeros((12, *rows.shape[ids.ndim :])), np.asarray(ids)
    is_token = (ids >= 0) & (ids < 12)
    np.add.at(dense, ids[is_token], rows[is_token])
    return dense


@functools.cache
def compiled(layout):
    """The clip and the sums of a layout, each compiled once for each shape of ids."""
    told = LAYOUTS[layout][3]
    tables = {} if told is None else {"tables": told}
    clip = row_sparse.clip_by_global_norm(1e-3, **tables)
    return jax.jit(clip.update), jax.jit(functools.partial(row_sparse.sum_over_duplicates, **tables))


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_norm_is_that_of_the_dense_gradient(layout, ids):
    params, grads, token_ids, dense, _ = case(layout, ids)
    clipped, _ = compiled(layout)[0](grads, optax.EmptyState(), params, token_ids=token_ids)
    norm = np.sqrt((dense**2).sum() + 3)
    np.testing.assert_allclose(clipped["w"], 1e-3 / norm, rtol=2e-6)
    name, _, axis, _ = LAYOUTS[layout]
    axis %= params[name].ndim
    np.testing.assert_allclose(to_dense(clipped[name], token_ids[name], axis), dense * 1e-3 / norm, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("padding", [np.nan, np.inf])
def test_padding_may_hold_anything(padding):
    params, grads, token_ids, dense, tables = case("(D, V)", "padding beyond", padding=padding)
    clip = row_sparse.clip_by_global_norm(1e-3, **tables)
    clipped, _ = clip.update(grads, clip.init(params), params, token_ids=token_ids)
    np.testing.assert_allclose(clipped["w"], 1e-3 / np.sqrt((dense**2).sum() + 3), rtol=2e-6)


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_are_those_of_the_dense_gradient(layout, ids):
    params, grads, token_ids, dense, _ = case(layout, ids)
    summed = compiled(layout)[1](grads, token_ids, params)
    name, _, axis, _ = LAYOUTS[layout]
    assert summed[name].shape == grads[name].shape
    np.testing.assert_allclose(to_dense(summed[name], token_ids[name], axis % params[name].ndim), dense, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(summed[name] ** 2), (dense**2).sum(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_in_half_precision(dtype):
    """Sums in float32 before they are squared."""
    params, grads, token_ids, dense, tables = case("(D, V)", "equal", dtype)
    clip = row_sparse.clip_by_global_norm(1e-3, **tables)
    clipped, _ = clip.update(grads, clip.init(params), params, token_ids=token_ids)
    np.testing.assert_allclose(clipped["w"], 1e-3 / np.sqrt((dense**2).sum() + 3), rtol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches_along_any_axis(layout):
    """Two micro-batches of four ids: the mean of the dense gradients, as a step sees it."""
    (params, first, ids, one, tables), (_, second, more, other, _) = case(layout, "padding at V"), case(layout, "distinct")
    stacked, stacked_ids = (jax.tree.map(lambda a, b: jnp.stack([a, b]), *pair) for pair in ((first, second), (ids, more)))
    grads, token_ids = row_sparse.mean_over_micro_batches(stacked, stacked_ids, params, **tables)
    name, shape, axis, _ = LAYOUTS[layout]
    axis %= len(shape)
    assert grads[name].shape == (*shape[:axis], 2, 4, *shape[axis + 1 :])
    np.testing.assert_allclose(to_dense(grads[name], token_ids[name], axis), (one + other) / 2, rtol=1e-6)
    tx = ember(1e-2, optax.sgd(0.1), **tables)
    _, state = tx.update(grads, tx.init(params), params, token_ids=token_ids)
    expected = 1e-3 * ((one + other) / 2) ** 2
    found = optax.tree.get(state, "nu_token")[name]
    np.testing.assert_allclose(found, expected.mean(tuple(range(1, expected.ndim))), rtol=1e-5)


def test_leaves_know_their_axis():
    """No declaration, no parameters: `value_and_grad` has asked already."""
    numbers, params, ids = EmberDimensionNumbers(1), {"anything": jnp.ones((12, 12)), "w": jnp.ones(3)}, jnp.array([3, 7, 3])

    def loss(params):
        rows = row_sparse.lookup(params["anything"], ids, token_axis=1)
        return jnp.sum(jnp.arange(36.0).reshape(3, 12) * rows) + params["w"].sum()

    told = {"anything": numbers, "w": None}
    _, grads = row_sparse.value_and_grad(loss, tables=told)(params, {"anything": ids})
    clipped, _ = row_sparse.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    norm = optax.tree.norm(jax.grad(loss)(params))
    np.testing.assert_allclose(clipped["w"], 1 / norm, rtol=1e-6)
    summed = row_sparse.sum_over_duplicates(grads)
    np.testing.assert_allclose(jnp.zeros((12, 12)) + summed["anything"], jax.grad(loss)(params)["anything"], rtol=1e-6)
