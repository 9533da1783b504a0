"""`OptaxOptimizer` under `compile`, `fit` and train steps of one's own: the step of Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import ember, geometry, scale_by_ember, skipped_batches

keras = pytest.importorskip("keras")
from keras_model import EMBEDDINGS, HEAD, IDS, LABELS, TX, D, V, assert_close, by_hand, compiled, fit, loss_of, make_model  # noqa: E402

from ember_optax.integrations.keras import OptaxOptimizer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


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
