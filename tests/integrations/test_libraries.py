"""Real models of the libraries that people train with: the right tables, and five steps that lower the loss."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from next_token import TOKENS, D, T, V, assert_falls, needs_nnx_optimizer, next_token_loss, train, train_nnx

from ember_optax import TokenTables, ember, token_tables
from ember_optax._tree.paths import flatten_named


def tables_of(params, **options):
    """Path and token axis of each table found."""
    names, values, _ = flatten_named(token_tables(params, **options), is_leaf=lambda x: x is None)
    return {name: value.token_axis for name, value in zip(names, values, strict=True) if value is not None}


class Layer(nn.Module):
    """A residual block with an embedding of its own, as in models with value embeddings."""

    @nn.compact
    def __call__(self, x, ids):
        x = x + nn.Dense(D)(nn.gelu(nn.Dense(2 * D)(nn.RMSNorm()(x))))
        return x + nn.Embed(V, D, name="value_embed")(ids), None


class LinenModel(nn.Module):
    """Layers under `nn.scan`; the head is tied by `attend` or stands apart."""

    tied: bool

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(V, D, name="embed")
        x = embed(ids) + nn.Embed(T, D, name="pos_embed")(jnp.arange(T))
        layers = nn.scan(Layer, {"params": 0}, split_rngs={"params": True}, length=3, in_axes=nn.broadcast)
        x, _ = layers(name="layers")(x, ids)
        return embed.attend(x) if self.tied else nn.Dense(V, use_bias=False, name="lm_head")(x)


@pytest.mark.parametrize("tied", [True, False])
def test_linen_train_state(tied):
    model = LinenModel(tied)
    params = jax.jit(model.init)(jax.random.key(1), TOKENS[:, :-1])["params"]
    expected = {"embed/embedding": 0, "layers/value_embed/embedding": 1}
    assert tables_of(params) == expected if tied else expected | {"lm_head/kernel": 1}
    state, losses = TrainState.create(apply_fn=model.apply, params=params, tx=ember(3e-3, optax.adamw(3e-3))), []

    @jax.jit
    def step(state):
        loss, grads = jax.value_and_grad(lambda p: next_token_loss(state.apply_fn({"params": p}, TOKENS[:, :-1])))(state.params)
        return state.apply_gradients(grads=grads), loss

    for _ in range(5):
        state, loss = step(state)
        losses.append(float(loss))
    assert_falls(losses)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.wte = nnx.Embed(V, D, rngs=rngs)
        self.wpe = nnx.Embed(T, D, rngs=rngs)
        self.mlp = nnx.Linear(D, D, rngs=rngs)
        self.lm_head = nnx.Linear(D, V, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        x = self.wte(ids) + self.wpe(jnp.arange(ids.shape[1]))
        return self.lm_head(x + nnx.gelu(self.mlp(x)))


@needs_nnx_optimizer
def test_nnx_optimizer():
    model = NnxModel(nnx.Rngs(0))
    assert tables_of(nnx.state(model, nnx.Param)) == {"wte/embedding": 0, "lm_head/kernel": 1}
    optimizer = nnx.Optimizer(model, ember(3e-3, optax.adamw(3e-3)), wrt=nnx.Param)
    assert_falls(train_nnx(model, optimizer))


def test_nnx_functional():
    """What also works with Flax 0.11, where `nnx.Optimizer` and `optax.partition` do not."""
    graph, state = nnx.split(NnxModel(nnx.Rngs(0)), nnx.Param)
    assert tables_of(nnx.to_pure_dict(state)) == {"wte/embedding": 0, "lm_head/kernel": 1}

    def loss_fn(params):
        restored = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(restored, params)
        return next_token_loss(nnx.merge(graph, restored)(TOKENS[:, :-1]))

    assert_falls(train(nnx.to_pure_dict(state), loss_fn, ember(3e-3, optax.adamw(3e-3))))


class EquinoxModel(eqx.Module):
    embed: eqx.nn.Embedding
    pos_embed: jax.Array
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(V, D, key=keys[0])
        self.pos_embed = jnp.zeros((T, D))
        self.mlp = eqx.nn.MLP(D, D, 2 * D, 1, key=keys[1])
        self.head = eqx.nn.Linear(D, V, use_bias=False, key=keys[2])

    def __call__(self, ids):
        x = jax.vmap(self.embed)(ids) + self.pos_embed
        return jax.vmap(self.head)(x + jax.vmap(self.mlp)(x))


def test_equinox():
    """The model is callable and so is every tree of its structure; the head's name says nothing, so it is included."""
    model = EquinoxModel(jax.random.key(0))
    include = ["head/weight"]
    assert tables_of(eqx.filter(model, eqx.is_inexact_array)) == {"embed/weight": 0}
    assert tables_of(eqx.filter(model, eqx.is_inexact_array), include=include) == {"embed/weight": 0, "head/weight": 0}
    tx = ember(3e-3, optax.adamw(3e-3), tables=TokenTables(include=include))
    opt_state, losses = tx.init(eqx.filter(model, eqx.is_inexact_array)), []

    @eqx.filter_jit
    def step(model, opt_state):
        loss, grads = eqx.filter_value_and_grad(lambda m: next_token_loss(jax.vmap(m)(TOKENS[:, :-1])))(model)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state, loss

    for _ in range(5):
        model, opt_state, loss = step(model, opt_state)
        losses.append(float(loss))
    assert_falls(losses)


def test_a_whole_equinox_model_is_refused_with_the_cure():
    with pytest.raises(TypeError, match=r"'mlp/activation' is .*, not an array.*eqx\.filter\(model, eqx\.is_inexact_array\)"):
        ember(3e-3, optax.adamw(3e-3)).init(EquinoxModel(jax.random.key(0)))


def test_haiku():
    def forward(ids):
        x = hk.Embed(V, D, name="token_embed")(ids) + hk.get_parameter("pos_embed", (T, D), init=jnp.zeros)
        return hk.Linear(V, with_bias=False, name="lm_head")(x + hk.nets.MLP([2 * D, D])(x))

    model = hk.without_apply_rng(hk.transform(forward))
    params = jax.jit(model.init)(jax.random.key(0), TOKENS[:, :-1])
    assert tables_of(params) == {"token_embed/embeddings": 0, "lm_head/w": 1}
    assert_falls(train(params, lambda p: next_token_loss(model.apply(p, TOKENS[:, :-1])), ember(3e-3, optax.adamw(3e-3))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
def test_keras():
    keras = pytest.importorskip("keras")
    ids = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(V, D, name="token_embedding")(ids)
    x = keras.layers.Dense(D, activation="gelu", name="mlp")(x)
    model = keras.Model(ids, keras.layers.Dense(V, use_bias=False, name="lm_head")(x))
    params = {variable.path: variable.value for variable in model.trainable_variables}
    assert tables_of(params) == {"token_embedding/embeddings": 0, "lm_head/kernel": 1}

    def loss_fn(params):
        trainable = [params[variable.path] for variable in model.trainable_variables]
        logits, _ = model.stateless_call(trainable, [v.value for v in model.non_trainable_variables], TOKENS[:, :-1])
        return next_token_loss(logits)

    assert_falls(train(params, loss_fn, ember(3e-3, optax.adamw(3e-3))))


@pytest.mark.slow
def test_recurrentgemma():
    """A published language model: Griffin with its recurrent and attention blocks, tied embedding."""
    griffin = pytest.importorskip("recurrentgemma.jax")
    config = griffin.GriffinConfig(
        vocab_size=V,
        width=D,
        mlp_expanded_width=2 * D,
        lru_width=D,
        num_heads=2,
        block_types=(griffin.TemporalBlockType.RECURRENT, griffin.TemporalBlockType.ATTENTION),
        embeddings_scale_by_sqrt_dim=True,
        attention_window_size=T,
        logits_soft_cap=30.0,
        scan_type=griffin.ScanType.LINEAR_NATIVE,
    )
    model = griffin.Griffin(config)
    positions = jnp.broadcast_to(jnp.arange(T), (4, T))
    params = jax.jit(model.init)(jax.random.key(0), TOKENS[:, :-1], positions)["params"]
    assert tables_of(params) == {"embedder/input_embedding": 0}

    def loss_fn(params):
        return next_token_loss(model.apply({"params": params}, TOKENS[:, :-1], positions)[0])

    assert_falls(train(params, loss_fn, ember(3e-3, optax.adamw(3e-3))))
