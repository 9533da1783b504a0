"""keras-hub's GPT-2 and Gemma at toy size under `OptaxOptimizer`, and the layout map of Gemma on 2 x 4 devices."""

import numpy as np
import optax
import pytest

from ember_optax import ember, skipped_batches

keras_hub = pytest.importorskip("keras_hub", reason="needs keras-hub, in an environment of its own", exc_type=ImportError)
import keras  # noqa: E402

from ember_optax.integrations.keras import OptaxOptimizer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
V, T = 64, 8
IDS = np.random.default_rng(0).integers(0, V, (32, T))
INPUTS = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
TABLE = "token_embedding/embeddings"
TX = ember(1e-2, optax.adamw(1e-3))


def gpt2():
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32, "max_sequence_length": T, "dropout": 0.0}
    return keras_hub.models.GPT2CausalLM(keras_hub.models.GPT2Backbone(V, **sizes), preprocessor=None)


def gemma():
    sizes = {
        "num_layers": 2,
        "num_query_heads": 4,
        "num_key_value_heads": 4,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "head_dim": 8,
    }
    return keras_hub.models.GemmaCausalLM(keras_hub.models.GemmaBackbone(V, **sizes), preprocessor=None)


def compiled(model):
    model.compile(OptaxOptimizer(TX), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(model, epochs=1):
    return model.fit(INPUTS, (IDS + 1) % V, batch_size=8, shuffle=False, epochs=epochs, verbose=0).history["loss"]


@pytest.mark.parametrize("make", [gpt2, gemma])
def test_fits_saves_and_goes_on(make, tmp_path):
    """`load_model` does not compile keras-hub's tasks, whatever the optimizer, so the weights restore the state."""
    model = compiled(make())
    losses = fit(model, 3)
    assert losses[-1] < losses[0] - 0.2
    assert skipped_batches(model.optimizer.opt_state) == {TABLE: 0}  # tied
    model.save_weights(tmp_path / "model.weights.h5")
    again = compiled(make())
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "model.weights.h5")
    assert fit(model, 2) == fit(again, 2)


def test_the_layout_map_of_gemma():
    expected = compiled(gemma())
    weights = expected.get_weights()
    mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"], keras.distribution.list_devices("cpu")[:8])
    layout_map = keras_hub.models.GemmaBackbone.get_layout_map(mesh)
    with keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch").scope():
        model = compiled(gemma())
        model.set_weights(weights)
        losses = fit(model, 2)
        state = optax.tree.get(model.optimizer.opt_state, "ScaleByEmberState")
        table = model.optimizer.params[TABLE].sharding.spec
        assert (state.nu_token[TABLE].sharding.spec[0], state.nu_feature[TABLE].sharding.spec[0]) == tuple(table)
    np.testing.assert_allclose(losses, fit(expected, 2), rtol=1e-4)
