"""`OptaxOptimizer` is built once for its variables, and refuses the rest by name."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

keras = pytest.importorskip("keras")
from keras_model import EMBEDDINGS, HEAD, IDS, LABELS, TX, D, assert_close, by_hand, compiled, fit, loss_of, make_model  # noqa: E402

from ember_optax.integrations.keras import OptaxOptimizer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.slow
def test_built_again_for_the_same_variables():
    model = compiled()
    fit(model, 2)
    count = len(model.optimizer.variables)
    model.optimizer.build(model.trainable_variables)
    model.compile(model.optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, 2, first=2)
    assert len(model.optimizer.variables) == count
    assert_close(model.optimizer.params, by_hand(TX, 4)[0])


def test_frozen_layers_are_left_out():
    model = make_model()
    model.get_layer("mlp").trainable = False
    fit(compiled(model=model), 1)
    assert set(model.optimizer.params) == {EMBEDDINGS, HEAD}


@pytest.mark.slow
def test_variables_that_their_gradients_overwrite():
    """As the scales of float8 layers are: Keras assigns them, and the transformation does not see them."""
    model = make_model()
    bias = model.get_layer("mlp").bias
    bias.overwrite_with_gradient = True
    params = {v.path: v.value for v in model.trainable_variables}
    grads = jax.grad(lambda params: loss_of(model, params, IDS[:4], LABELS[:4]))(params)
    fit(compiled(model=model), 1)
    np.testing.assert_allclose(bias.numpy(), grads["mlp/bias"], rtol=1e-5)
    assert set(model.optimizer.params) == {EMBEDDINGS, "mlp/kernel", HEAD}


def test_built_for_other_variables():
    model = compiled()
    fit(model, 1)
    model.get_layer("mlp").trainable = False
    with pytest.raises(ValueError, match=r"built for other variables; mlp/bias, mlp/kernel differ: make a new optimizer"):
        model.optimizer.build(model.trainable_variables)


def test_built_inside_jit():
    model = make_model()
    with pytest.raises(ValueError, match=r"outside of jax\.jit: call optimizer\.build"):
        jax.jit(lambda: OptaxOptimizer(TX).build([TracedVariable(model.trainable_variables[0])]))()


class TracedVariable:
    def __init__(self, variable):
        self.path, self.value = variable.path, jnp.asarray(variable.value) * jnp.ones(())


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: OptaxOptimizer(optax.adam), TypeError, "tx must be an optax.GradientTransformation"),
        (lambda: OptaxOptimizer(TX, weight_decay=0.1), ValueError, "weight_decay=0.1 would be that of Keras"),
        (lambda: OptaxOptimizer(TX).opt_state, ValueError, r"no state yet: call optimizer.build"),
        (lambda: OptaxOptimizer(TX).exclude_from_weight_decay(var_names=["bias"]), ValueError, "give it a `mask`"),
    ],
)
def test_what_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_variable_without_a_gradient():
    optimizer, variables = OptaxOptimizer(TX), make_model().trainable_variables
    grads = [None, *(v.value for v in variables[1:])]
    with warnings.catch_warnings(), pytest.raises(ValueError, match=f"no gradient for {EMBEDDINGS}"):
        warnings.simplefilter("ignore")  # Keras warns of it too
        optimizer.apply(grads, variables)


def test_two_variables_of_one_path():
    layers = [keras.layers.Dense(D, name="same") for _ in range(2)]
    variables = [v for layer in layers for v in (layer.build((None, D)), *layer.trainable_variables)[1:]]
    with pytest.raises(ValueError, match=r"same/kernel, same/bias name more than one variable"):
        OptaxOptimizer(optax.sgd(1e-3)).build(variables)


def test_another_backend(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="the backend is 'torch': set the environment variable KERAS_BACKEND=jax"):
        OptaxOptimizer(TX)
