"""A model with `OptaxOptimizer` is saved and loaded with its state, bit for bit."""

import numpy as np
import optax
import pytest

keras = pytest.importorskip("keras")
from keras_model import TX, D, assert_same, compiled, fit  # noqa: E402

from ember_optax.integrations.keras import OptaxOptimizer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


OPTIONS = [{"use_ema": True}, {"gradient_accumulation_steps": 2}, {"learning_rate": 0.5}]


@pytest.mark.parametrize("options", [{}, *(pytest.param(of, marks=pytest.mark.slow) for of in OPTIONS)])
def test_saved_and_loaded_with_the_model(options, tmp_path):
    model = compiled(**options)
    fit(model, 3)
    model.save(tmp_path / "model.keras")
    loaded, again = (keras.saving.load_model(tmp_path / "model.keras", custom_objects={"tx": TX}) for _ in range(2))
    assert_same(model, loaded)
    if "use_ema" in options:  # Keras donates a buffer twice if the same model is fitted again, whatever its optimizer
        model = again
    assert fit(model, 5, first=3) == fit(loaded, 5, first=3)
    assert_same(model, loaded)


def test_a_model_without_its_transformation_is_told_what_to_pass(tmp_path):
    model = compiled()
    fit(model, 1)
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"custom_objects=\{'tx': tx\}"):
        keras.saving.load_model(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras", compile=False).count_params() == model.count_params()


@pytest.mark.slow
def test_weights_alone_restore_the_state_too(tmp_path):
    model, other = compiled(), compiled()
    fit(model, 3)
    model.save_weights(tmp_path / "model.weights.h5")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same(model, other)


def test_the_order_of_the_file_does_not_depend_on_names_that_keras_counts_up(tmp_path):
    """Layers called dense_9 and dense_10 would change places in a dictionary that is sorted by name."""

    def stack(first, second):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((D,))
        return keras.Model(inputs, keras.layers.Dense(D, name=second)(keras.layers.Dense(D, name=first)(inputs)))

    saved, loaded = (stack(*names) for names in (("dense_8", "dense_9"), ("dense_9", "dense_10")))
    inputs = np.random.default_rng(1).standard_normal((8, D))
    for model in (saved, loaded):
        model.compile(OptaxOptimizer(optax.adam(1e-2)), "mse")
        model.optimizer.build(model.trainable_variables)
    saved.fit(inputs, inputs, verbose=0)
    saved.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    for of_file, of_model in (("dense_8", "dense_9"), ("dense_9", "dense_10")):
        before, after = saved.optimizer.opt_state[0].mu, loaded.optimizer.opt_state[0].mu
        np.testing.assert_array_equal(before[f"{of_file}/kernel"], after[f"{of_model}/kernel"])
