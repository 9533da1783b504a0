"""A small Keras model with tables, trained by `OptaxOptimizer` and by hand. Import it after `pytest.importorskip("keras")`."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax

from ember_optax import ember
from ember_optax.integrations.keras import OptaxOptimizer

V, D, T = 24, 8, 6
EMBEDDINGS, HEAD = "token_embedding/embeddings", "lm_head/kernel"
IDS = np.random.default_rng(0).integers(0, V, (80, T))
LABELS = (IDS + 1) % V
TX = ember(1e-2, optax.adamw(1e-3), head_learning_rate=2e-2)
MESH = {"vocabulary": 2, "model": 4}


def make_model(dtype=None, name="mlp"):
    keras.utils.set_random_seed(0)
    ids = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(V, D, name="token_embedding", dtype=dtype)(ids)
    x = keras.layers.Dense(D, activation="gelu", name=name, dtype=dtype)(x)
    return keras.Model(ids, keras.layers.Dense(V, use_bias=False, name="lm_head", dtype=dtype)(x))


def compiled(tx=TX, model=None, compile_options=(), **options):
    model = make_model() if model is None else model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OptaxOptimizer(tx, **options), loss, **dict(compile_options))
    return model


def fit(model, steps, first=0, **options):
    """The losses of `steps` steps of four rows each."""
    rows = slice(4 * first, 4 * (first + steps))
    return model.fit(IDS[rows], LABELS[rows], batch_size=4, shuffle=False, verbose=0, **options).history["loss"]


def loss_of(model, params, ids, labels):
    fixed = [variable.value for variable in model.non_trainable_variables]
    logits, _ = model.stateless_call([params[variable.path] for variable in model.trainable_variables], fixed, ids)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


def by_hand(tx, steps, model=None, of_gradients=lambda grads: grads, batch=4):
    """Parameters and state after `steps` steps of Optax."""
    model = make_model() if model is None else model
    params = {variable.path: variable.value for variable in model.trainable_variables}

    @jax.jit
    def step(params, state, ids, labels):
        grads = of_gradients(jax.grad(lambda params: loss_of(model, params, ids, labels))(params))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for i in range(steps):
        params, state = step(params, state, IDS[batch * i : batch * (i + 1)], LABELS[batch * i : batch * (i + 1)])
    return params, state


def assert_close(ours, theirs, atol=1e-6):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), ours, theirs)


def assert_same(model, other):
    """Every bit of two models and their optimizers."""
    ours, theirs = ([v.numpy() for v in m.variables + m.optimizer.variables] for m in (model, other))
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, two)
