"""Row-sparse steps of models in Flax NNX and Linen, Equinox and Haiku are the dense steps of the same models."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from next_token import TOKENS, D, V, assert_falls, next_token_loss
from steps import dense_train_step, losses_of, sparse_train_step

from ember_optax import ember, row_sparse
from ember_optax.integrations import linen as ember_linen
from ember_optax.integrations import nnx as ember_nnx

IDS = TOKENS[:, :-1]


def nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = ember_nnx.Embed(V, D, rngs=rngs)
            self.lm_head = nnx.Linear(D, V, use_bias=False, rngs=rngs)

        def __call__(self, ids):
            return self.lm_head(jnp.tanh(self.embed(ids)))

    graph, state = nnx.split(Model(nnx.Rngs(0)))

    def loss_fn(params):
        filled = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(filled, params)
        return next_token_loss(nnx.merge(graph, filled)(IDS))

    return nnx.to_pure_dict(state), loss_fn, "embed/embedding"


def nnx_state():
    """The `nnx.State` itself as parameters: its leaves are boxed in `Param`."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = ember_nnx.Embed(V, D, dtype=jnp.float32, rngs=rngs)
            self.lm_head = nnx.Linear(D, V, use_bias=False, rngs=rngs)

    graph, state = nnx.split(Model(nnx.Rngs(0)))

    def loss_fn(state):
        model = nnx.merge(graph, state)
        return next_token_loss(model.lm_head(jnp.tanh(model.embed(IDS))))

    return state, loss_fn, "embed/embedding"


def linen_model(partitioned=False):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids):
            init = nn.initializers.normal(0.1)
            init = nn.with_partitioning(init, ("vocab", "embed")) if partitioned else init
            embed = nn.remat(ember_linen.Embed)(V, D, embedding_init=init, name="embed")
            return nn.Dense(V, use_bias=False, name="lm_head")(jnp.tanh(embed(ids)))

    model = Model()
    params = jax.jit(model.init)(jax.random.key(0), IDS)["params"]
    return params, lambda params: next_token_loss(model.apply({"params": params}, IDS)), "embed/embedding"


def equinox_model():
    """The library's own layer: it indexes its weight. In `eqx.combine` the tree that has a leaf there comes first."""

    class Model(eqx.Module):
        embed: eqx.nn.Embedding
        lm_head: eqx.nn.Linear

        def __call__(self, ids):
            return jax.vmap(jax.vmap(lambda i: self.lm_head(jnp.tanh(self.embed(i)))))(ids)

    keys = jax.random.split(jax.random.key(0))
    model = Model(eqx.nn.Embedding(V, D, key=keys[0]), eqx.nn.Linear(D, V, use_bias=False, key=keys[1]))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params: next_token_loss(eqx.combine(static, params)(IDS)), "embed/weight"


def haiku_model():
    """`hk.get_parameter` asks for the shape of the whole table, which a `RowSlice` has."""

    def forward(ids):
        table = hk.get_parameter("embeddings", (V, D), init=hk.initializers.RandomNormal(0.1))
        return hk.Linear(V, with_bias=False, name="lm_head")(jnp.tanh(row_sparse.lookup(table, ids)))

    model = hk.without_apply_rng(hk.transform(forward))
    params = jax.jit(model.init)(jax.random.key(0), IDS)
    return params, lambda params: next_token_loss(model.apply(params, IDS)), "~/embeddings"


MODELS = {
    "nnx": nnx_model,
    "nnx.State": nnx_state,
    "linen": linen_model,
    "linen, boxed": lambda: linen_model(partitioned=True),
    "equinox": equinox_model,
    "haiku": haiku_model,
}


@pytest.mark.parametrize("name", MODELS)
def test_row_sparse_training_is_dense_training(name):
    params, loss_fn, path = MODELS[name]()
    tx = ember(1e-2, optax.adamw(1e-2))

    sparse = functools.partial(sparse_train_step(tx, loss_fn), token_ids={path: IDS})
    state = jax.jit(tx.init)(params)
    (dense_losses, expected), (losses, found) = (
        losses_of(jax.jit(step), params, state) for step in (dense_train_step(tx, loss_fn), sparse)
    )
    assert_falls(losses)
    np.testing.assert_allclose(losses, dense_losses, rtol=1e-6)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, expected_leaf in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-6, atol=1e-6)


def test_embed_layers_are_those_of_flax():
    layer, own = nnx.Embed(V, D, rngs=nnx.Rngs(0)), ember_nnx.Embed(V, D, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(own(IDS), layer(IDS))
    np.testing.assert_array_equal(own.attend(jnp.ones(D)), layer.attend(jnp.ones(D)))
    half = ember_nnx.Embed(V, D, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(IDS).dtype == jnp.bfloat16
    variables = nn.Embed(V, D).init(jax.random.key(0), IDS)
    assert jax.tree.structure(ember_linen.Embed(V, D).init(jax.random.key(0), IDS)) == jax.tree.structure(variables)
    np.testing.assert_array_equal(ember_linen.Embed(V, D).apply(variables, IDS), nn.Embed(V, D).apply(variables, IDS))
    attend = [cls(V, D).apply(variables, jnp.ones(D), method="attend") for cls in (nn.Embed, ember_linen.Embed)]
    np.testing.assert_array_equal(*attend)


def squares_nnx(cls):
    graph, state = nnx.split(cls(V, D, rngs=nnx.Rngs(0)))

    def loss_fn(params):
        filled = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(filled, params)
        return jnp.sum(nnx.merge(graph, filled)(IDS) ** 2)

    return nnx.to_pure_dict(state), loss_fn


def squares_linen(cls):
    params = cls(V, D).init(jax.random.key(0), IDS)["params"]
    return params, lambda params: jnp.sum(cls(V, D).apply({"params": params}, IDS) ** 2)


@pytest.mark.parametrize(
    ("squares", "own", "of_flax"), [(squares_nnx, ember_nnx.Embed, nnx.Embed), (squares_linen, ember_linen.Embed, nn.Embed)]
)
def test_gradients_of_embed_layers_are_those_of_flax(squares, own, of_flax):
    params, loss_fn = squares(own)
    expected = jax.grad(squares(of_flax)[1])(params)["embedding"]
    np.testing.assert_array_equal(jax.grad(loss_fn)(params)["embedding"], expected)
    _, grads = row_sparse.value_and_grad(loss_fn)(params, {"embedding": IDS})
    found = jnp.zeros((V, D)) + grads["embedding"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def half_nnx():
    graph, state = nnx.split(ember_nnx.Embed(V, D, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    return state, lambda state: nnx.merge(graph, state)(IDS)


def half_linen():
    model = ember_linen.Embed(V, D, dtype=jnp.bfloat16)
    return model.init(jax.random.key(0), IDS)["params"], lambda params: model.apply({"params": params}, IDS)


@pytest.mark.parametrize("half", [half_nnx, half_linen])
def test_a_compute_dtype_is_kept(half):
    params, rows_of = half()

    def loss_fn(params):
        rows = rows_of(params)
        return jnp.sum(rows.astype(jnp.float32)), rows

    (_, rows), grads = row_sparse.value_and_grad(loss_fn, has_aux=True)(params, {"embedding": IDS})
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows, rows_of(params))
    assert jax.tree.leaves(grads)[0].dtype == jnp.float32
