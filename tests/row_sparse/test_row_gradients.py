"""Compact gradients are the gradients, whatever the model does with its table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_model import IDS, D, T, V, body, make_params, plain_loss
from steps import split_value_and_grad, to_dense

from ember_optax import row_sparse

EMBED = "embed/embedding"


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


@pytest.mark.parametrize("loss_fn", [plain_loss, several_lookups, under_remat, in_bfloat16, per_example])
def test_compact_gradients_are_the_gradients(loss_fn):
    params = make_params()
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params, IDS)
    found, compact, token_ids = jax.jit(split_value_and_grad(loss_fn))(params, {EMBED: IDS}, IDS)
    ids = token_ids[EMBED]
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
    _, compact, token_ids = jax.jit(split_value_and_grad(plain_loss))(params, {EMBED: ids}, ids)
    assert compact["embed"]["embedding"].shape == (V, D)  # never more rows than the table has
    grads = jax.jit(jax.grad(plain_loss))(params, ids)
    dense = to_dense(compact["embed"]["embedding"], token_ids[EMBED], (V, D))
    np.testing.assert_allclose(dense, grads["embed"]["embedding"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch", [5, 6])
def test_as_many_ids_as_rows_give_the_dense_gradient(batch):
    """So that whoever forgets the ids then is still right."""
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 40, (batch, 10)))
    assert batch > 5 or ids.size == V
    params = make_params()
    _, compact, token_ids = jax.jit(split_value_and_grad(plain_loss))(params, {EMBED: ids}, ids)
    np.testing.assert_array_equal(token_ids[EMBED], jnp.arange(V))
    grads = jax.jit(jax.grad(plain_loss))(params, ids)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-7), compact, grads)


def test_auxiliary_output_and_keyword_arguments():
    def loss_fn(params, *, ids):
        return plain_loss(params, ids), {"tokens": ids.size}

    value_and_grad = jax.jit(split_value_and_grad(loss_fn, has_aux=True))
    (loss, aux), _, _ = value_and_grad(make_params(), {EMBED: IDS}, ids=IDS)
    assert aux["tokens"] == IDS.size
    np.testing.assert_allclose(loss, jax.jit(plain_loss)(make_params(), IDS), rtol=1e-6)


def test_ids_may_be_a_tree_like_the_parameters():
    """None for dense leaves, or nothing at all."""
    params = make_params()
    for token_ids in ({"embed": {"embedding": IDS}, "layers": None, "lm_head": {"kernel": None}}, {"embed": {"embedding": IDS}}):
        _, _, found = jax.eval_shape(split_value_and_grad(plain_loss), params, token_ids, IDS)
        assert list(found) == [EMBED]
