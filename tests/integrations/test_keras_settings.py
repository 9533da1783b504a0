"""What Keras does around the step: rates, clipping, accumulation, averages, precision, layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import skipped_batches, stochastic_rounding

keras = pytest.importorskip("keras")
from keras_model import EMBEDDINGS, HEAD, IDS, LABELS, MESH, TX, assert_close, assert_same, by_hand, compiled, fit, make_model  # noqa: E402

from ember_optax.integrations.keras import OptaxOptimizer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.slow
def test_the_learning_rate_of_keras_is_a_factor():
    model = compiled(learning_rate=0.5)
    fit(model, 5)
    assert_close(model.optimizer.params, by_hand(optax.chain(TX, optax.scale(0.5)), 5)[0])


@pytest.mark.slow
def test_a_schedule_of_keras():
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.0)
    model = compiled(learning_rate=schedule)
    fit(model, 5)
    halved = optax.chain(TX, optax.scale_by_schedule(lambda count: 1.0 - count / 10))
    assert_close(model.optimizer.params, by_hand(halved, 5)[0])


def test_callbacks_change_the_rate():
    """And read the state, which the epoch's end has written back."""
    model, seen = compiled(), []
    report = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((logs["learning_rate"], skipped_batches(model.optimizer.opt_state)[HEAD]))
    )
    history = model.fit(
        *(IDS[:4], LABELS[:4]),
        verbose=0,
        epochs=3,
        callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch), report],
    )
    assert history.history["learning_rate"] == [1.0, 0.5, 0.25]
    assert [count for _, count in seen] == [0, 0, 0]
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=0, min_delta=100.0)
    model.fit(IDS[:4], LABELS[:4], verbose=0, epochs=2, callbacks=[plateau])
    assert float(model.optimizer.learning_rate) == 0.125


@pytest.mark.slow
def test_accumulation_of_keras():
    """The mean of two batches of two is a batch of four."""
    model = compiled(gradient_accumulation_steps=2)
    model.fit(IDS[:24], LABELS[:24], batch_size=2, shuffle=False, verbose=0)
    params, state = by_hand(TX, 6)
    assert_close(model.optimizer.params, params, atol=3e-6)
    assert_close(model.optimizer.opt_state, state)


CLIPS = {
    "global_clipnorm": lambda grads: optax.clip_by_global_norm(0.1).update(grads, optax.EmptyState())[0],
    "clipvalue": lambda grads: jax.tree.map(lambda g: jnp.clip(g, -0.1, 0.1), grads),
    "clipnorm": lambda grads: jax.tree.map(lambda g: g * jnp.minimum(1.0, 0.1 / jnp.linalg.norm(g)), grads),
}


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_of_keras(clip):
    model = compiled(**{clip: 0.1})
    fit(model, 4)
    assert_close(model.optimizer.params, by_hand(TX, 4, of_gradients=CLIPS[clip])[0])


@pytest.mark.slow
def test_averages_of_keras():
    model = compiled(use_ema=True, ema_momentum=0.5)
    fit(model, 3)
    params = by_hand(TX, 1)[0]
    average = params
    for steps in (2, 3):
        params = by_hand(TX, steps)[0]
        average = {path: (average[path] + params[path]) / 2 for path in params}
    assert_close(model.optimizer.params, average)  # Keras puts them into the model at the end of fit


@pytest.mark.slow
def test_constraints_of_keras():
    model = make_model()
    model.get_layer("mlp").kernel.constraint = keras.constraints.NonNeg()
    fit(compiled(model=model), 2)
    assert float(model.get_layer("mlp").kernel.numpy().min()) == 0.0


@pytest.mark.slow
def test_mixed_float16_scales_the_loss():
    """A step whose scaled loss overflows changes nothing but the scale, neither in Ember nor in the body."""
    model = compiled(model=make_model(dtype="mixed_float16"), compile_options={"auto_scale_loss": False})
    model.optimizer = keras.optimizers.LossScaleOptimizer(model.optimizer, initial_scale=2.0**40)
    before = model.get_weights()
    fit(model, 1)
    scaling = model.optimizer
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert int(optax.tree.get(scaling.inner_optimizer.opt_state, "ScaleByAdamState").count) == 0
    assert skipped_batches(scaling.inner_optimizer.opt_state) == {EMBEDDINGS: 0, HEAD: 0}
    scaling.dynamic_scale.assign(2.0**8)
    fit(model, 4)
    assert_close(scaling.inner_optimizer.params, by_hand(TX, 4, model=make_model(dtype="mixed_float16"))[0], atol=1e-3)


@pytest.mark.slow
def test_keras_itself_wraps_the_optimizer_for_float16(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled()
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        fit(model, 2)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"tx": TX})
        assert fit(model, 2, first=2) == fit(loaded, 2, first=2)
        assert_same(model, loaded)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.slow
def test_sixteen_bit_variables(tmp_path):
    tx = optax.chain(TX, stochastic_rounding(0))
    model = compiled(tx, model=make_model(dtype="bfloat16"))
    fit(model, 4)
    assert_close(model.optimizer.params, by_hand(tx, 4, model=make_model(dtype="bfloat16"))[0], atol=0)
    model.save(tmp_path / "model.keras")
    assert_same(model, keras.saving.load_model(tmp_path / "model.keras", custom_objects={"tx": tx}))
    with pytest.raises(ValueError, match=r"learning_rate must be 1\.0 with stochastic_rounding"):
        model.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"learning_rate must be 1\.0 with stochastic_rounding"):
        OptaxOptimizer(tx, learning_rate=0.5).build(model.trainable_variables)


def distribution_of(name):
    devices = keras.distribution.list_devices("cpu")[:8]
    if name == "DataParallel":
        return keras.distribution.DataParallel(devices=devices)
    mesh = keras.distribution.DeviceMesh(tuple(MESH.values()), list(MESH), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[EMBEDDINGS] = ("vocabulary", "model")
    layouts[HEAD] = ("model", "vocabulary")
    layouts["mlp/kernel"] = (None, "model")
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="vocabulary")


@pytest.mark.parametrize("name", ["ModelParallel", pytest.param("DataParallel", marks=pytest.mark.slow)])
def test_layouts_of_keras(name, tmp_path):
    """On 2 x 4 devices each vector of the state is split like its axis of the table, before and after the steps."""
    distribution = distribution_of(name)
    with distribution.scope():
        model = compiled()
        model.optimizer.build(model.trainable_variables)
        split = {"vocabulary": "vocabulary", "model": "model"} if name == "ModelParallel" else {"vocabulary": None, "model": None}
        for steps in (0, 4):
            if steps:
                model.fit(IDS[:32], LABELS[:32], batch_size=8, shuffle=False, verbose=0)
            state = optax.tree.get(model.optimizer.opt_state, "ScaleByEmberState")
            for path in (EMBEDDINGS, HEAD):
                assert_split(state.nu_token[path], split["vocabulary"])
                assert_split(state.nu_feature[path], split["model"])
            adam = optax.tree.get(model.optimizer.opt_state, "ScaleByAdamState")
            assert_split(adam.mu["mlp/kernel"], None, split["model"])
        assert_close(model.optimizer.params, by_hand(TX, 4, batch=8)[0], atol=3e-6)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"tx": TX})
        assert_same(model, loaded)
        assert_split(optax.tree.get(loaded.optimizer.opt_state, "ScaleByEmberState").nu_token[HEAD], split["vocabulary"])
    on_one = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"tx": TX})
    np.testing.assert_allclose(fit(on_one, 2, first=10), fit(loaded, 2, first=10), rtol=1e-5)


def assert_split(array, *spec):
    mesh = array.sharding.mesh
    assert array.sharding.is_equivalent_to(jax.NamedSharding(mesh, jax.P(*spec)), array.ndim), array.sharding
