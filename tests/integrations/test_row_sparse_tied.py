"""A table that is tied to the head is refused in every library."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from next_token import TOKENS, D, V, next_token_loss

from ember_optax import row_sparse
from ember_optax.integrations import linen as ember_linen
from ember_optax.integrations import nnx as ember_nnx

IDS = TOKENS[:, :-1]


def tied_nnx():
    graph, state = nnx.split(ember_nnx.Embed(V, D, rngs=nnx.Rngs(0)))

    def loss_fn(state):
        embed = nnx.merge(graph, state)
        return next_token_loss(embed.attend(embed(IDS)))

    return state, loss_fn, "embedding"


def tied_linen():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = ember_linen.Embed(V, D, name="embed")
            return embed.attend(embed(ids))

    params = Model().init(jax.random.key(0), IDS)["params"]["embed"]
    return params, lambda params: next_token_loss(Model().apply({"params": {"embed": params}}, IDS)), "embedding"


def tied_equinox():
    def loss_fn(embed):
        return next_token_loss(jax.vmap(jax.vmap(embed))(IDS) @ embed.weight.T)

    return eqx.nn.Embedding(V, D, key=jax.random.key(0)), loss_fn, "weight"


def tied_haiku():
    def forward(ids):
        table = hk.get_parameter("embeddings", (V, D), init=hk.initializers.RandomNormal(0.1))
        return row_sparse.lookup(table, ids) @ table.T

    model = hk.without_apply_rng(hk.transform(forward))
    return model.init(jax.random.key(0), IDS), lambda params: next_token_loss(model.apply(params, IDS)), "~/embeddings"


@pytest.mark.parametrize(
    ("tied", "reason"),
    [
        (tied_nnx, "it was used as a head"),
        (tied_linen, "it was used as a head"),
        (tied_equinox, "its transpose was asked for"),
        (tied_haiku, "its transpose was asked for"),
    ],
)
def test_a_tied_head_is_refused(tied, reason):
    params, loss_fn, path = tied()
    assert jnp.isfinite(loss_fn(params))
    with pytest.raises(TypeError, match=rf"{reason}.*tied to the head.*cannot be row-sparse"):
        row_sparse.value_and_grad(loss_fn)(params, {path: IDS})
