"""`OptaxOptimizer` under `compile` and `fit` of Keras: the step of Optax, saved, laid out and driven as Keras drives its own."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import ember, geometry, scale_by_ember, skipped_batches, stochastic_rounding

keras = pytest.importorskip("keras")
from ember_optax.integrations.keras import OptaxOptimizer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
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


def pulled_to_the_first():
    """A pull to the parameters that it began with."""

    def update_fn(updates, state, params):
        return jax.tree.map(lambda u, first, p: u + 0.1 * (first - p), updates, state, params), state

    return optax.GradientTransformation(lambda params: params, update_fn)


BODIES = {
    "adamw": lambda: TX,
    "schedules": lambda: ember(optax.linear_schedule(0.0, 1e-2, 10), optax.adamw(optax.linear_schedule(0.0, 1e-3, 10))),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.1), ember(1e-2, optax.sgd(1e-2, momentum=0.9))),
    "accumulation of Optax": lambda: optax.MultiSteps(TX, 2),
    "no table": lambda: optax.adam(1e-2),
    "schedule-free": lambda: optax.contrib.schedule_free_sgd(1e-2),
    "a state that is the parameters": lambda: optax.chain(TX, pulled_to_the_first()),
    "keys of jax.random": lambda: optax.chain(optax.add_noise(1e-3, 0.5, jax.random.key(0)), TX),
}


@pytest.mark.parametrize("tx", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in BODIES if name != "adamw")])
def test_twenty_steps_are_those_of_optax(tx):
    tx = BODIES[tx]()
    model = compiled(tx)
    fit(model, 20)
    expected = by_hand(tx, 20)
    assert_close(model.optimizer.params, expected[0])
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    plain = [
        jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, s) for s in (model.optimizer.opt_state, expected[1])
    ]
    assert_close(*plain)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": False}, {"steps_per_execution": 2}])
def test_ways_to_run(how):
    model = compiled(compile_options=how)
    fit(model, 4)
    assert_close(model.optimizer.params, by_hand(TX, 4)[0])


@pytest.mark.slow
def test_what_the_functions_of_ember_read():
    model = compiled()
    fit(model, 3)
    optimizer = model.optimizer
    assert skipped_batches(optimizer.opt_state) == {EMBEDDINGS: 0, HEAD: 0}
    metrics = geometry.report(optimizer.params, optimizer.params, optimizer.opt_state, spectral=False)
    assert metrics[f"geometry/{EMBEDDINGS}/steps"] == 3
    sizes = sum(int(np.prod(v.shape)) for v in optimizer.variables if "nu_token" in v.path or "nu_feature" in v.path)
    assert sizes == 2 * (V + D)


@pytest.mark.slow
def test_a_state_can_be_replaced():
    model, other = compiled(), compiled()
    fit(model, 3)
    other.optimizer.build(other.trainable_variables)
    other.set_weights(model.get_weights())
    other.optimizer.set_opt_state(model.optimizer.opt_state)
    for m in (model, other):
        fit(m, 2, first=3)
    assert_close(model.optimizer.params, other.optimizer.params, atol=0)
    with pytest.raises(ValueError, match=r"structure of tx\.init"):
        other.optimizer.set_opt_state(optax.adam(1e-3).init(other.optimizer.params))


# Saving.


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


# Rates, clipping, accumulation, averages: what Keras does around the step.


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


# Precision.


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


# Layouts.


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


# Steps of one's own.


@pytest.mark.slow
def test_a_stateless_step_of_ones_own():
    model = make_model()
    optimizer = OptaxOptimizer(TX)
    optimizer.build(model.trainable_variables)

    @jax.jit
    def step(trainable, of_optimizer, ids, labels):
        params = dict(zip([v.path for v in model.trainable_variables], trainable, strict=True))
        grads = jax.grad(lambda params: loss_of(model, params, ids, labels))(params)
        return optimizer.stateless_apply(of_optimizer, [grads[v.path] for v in model.trainable_variables], trainable)

    trainable, of_optimizer = [v.value for v in model.trainable_variables], [v.value for v in optimizer.variables]
    for i in range(4):
        trainable, of_optimizer = step(trainable, of_optimizer, IDS[4 * i : 4 * i + 4], LABELS[4 * i : 4 * i + 4])
    expected = by_hand(TX, 4)[0]
    assert_close(trainable, [expected[v.path] for v in model.trainable_variables])


@pytest.mark.slow
def test_a_train_step_of_ones_own():
    class Twice(keras.Model):
        """Takes each batch twice."""

        def train_step(self, state, data):
            _, state = super().train_step(state, data)
            return super().train_step(state, data)

    inner = make_model()
    model = compiled(model=Twice(inner.inputs, inner.outputs))
    fit(model, 1)
    expected = compiled()
    fit(expected, 1)
    fit(expected, 1)
    assert_close(model.optimizer.params, expected.optimizer.params)


@pytest.mark.slow
def test_a_step_that_applies_gradients_at_once():
    model = make_model()
    params = {v.path: v.value for v in model.trainable_variables}
    grads = jax.grad(lambda params: loss_of(model, params, IDS[:4], LABELS[:4]))(params)
    optimizer = OptaxOptimizer(TX)
    optimizer.apply([grads[v.path] for v in model.trainable_variables], model.trainable_variables)
    assert_close(optimizer.params, by_hand(TX, 1)[0])


@pytest.mark.slow
def test_several_optimizers_of_keras():
    """One of ours for the tables, one of Keras for the rest."""
    tables, rest = OptaxOptimizer(optax.chain(scale_by_ember(), optax.scale(-1e-2))), keras.optimizers.SGD(0.1)
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    model = make_model()
    of_tables = lambda variable: variable.path in (EMBEDDINGS, HEAD)  # noqa: E731
    model.compile(
        keras.optimizers.MultiOptimizer(lambda variable: tables if of_tables(variable) else rest),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = [fit(model, 1)[0] for _ in range(3)]
    assert losses[-1] < losses[0]
    assert set(tables.params) == {EMBEDDINGS, HEAD}


# More than one build, and what is refused.


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
