"""An Adam run that goes on with Ember: the converted state is the one that Ember would have had."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import make_mesh

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember, state_from_adam, state_shardings

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 100)
TABLES = {
    "embed": {"embedding": EmberDimensionNumbers()},
    "lm_head": {"kernel": EmberDimensionNumbers(1)},
    "codebooks": EmberDimensionNumbers(1, (0,)),
    "per_layer": EmberDimensionNumbers(),
    "square": EmberDimensionNumbers(1),
    "bias": EmberDimensionNumbers(),
    "mlp": {"kernel": None},
}
SHAPES = {
    "embed": {"embedding": (24, 8)},
    "lm_head": {"kernel": (8, 24)},
    "codebooks": (3, 16, 8),
    "per_layer": (24, 2, 4),
    "square": (16, 16),
    "bias": (24,),
    "mlp": {"kernel": (8, 8)},
}


def normal(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), dtype), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def run(tx, steps, state=None, first=0):
    """States of `tx` on gradients that depend on the step alone; parameters stay as they are."""
    params, state = normal(0), tx.init(normal(0)) if state is None else state
    update = jax.jit(tx.update)
    for step in range(first, first + steps):
        _, state = update(normal(step + 1), state, params)
    return state


def assert_close(ours, theirs, rtol=1e-6):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == jax.tree.map(lambda x: (x.shape, x.dtype), theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7 * np.max(np.abs(b))), ours, theirs)


BODIES = {"adamw": optax.adamw(SCHEDULE), "sgd": optax.sgd(SCHEDULE)}


@pytest.mark.parametrize("body", BODIES)
def test_as_if_ember_had_seen_the_gradients(body):
    tx = ember(SCHEDULE, BODIES[body], tables=TABLES)
    converted = state_from_adam(tx, normal(0), run(optax.adamw(SCHEDULE), 7), adam_b2=0.999)
    assert_close(converted, run(tx, 7))
    assert_close(run(tx, 3, converted, first=7), run(tx, 10))


def test_any_transformation_around_ember_and_adam():
    tx = optax.chain(
        optax.clip_by_global_norm(1e9),
        optax.inject_hyperparams(ember, static_args="tables")(SCHEDULE, optax.adamw(SCHEDULE), tables=TABLES),
    )
    adam = optax.chain(optax.clip_by_global_norm(1e9), optax.inject_hyperparams(optax.adamw)(SCHEDULE))
    converted, expected = state_from_adam(tx, normal(0), run(adam, 7)), run(tx, 7)
    for name in ("ScaleByEmberState", "ScaleByAdamState"):
        # 1 - b2 of an optax.adam with injected hyperparameters is 1.3e-5 off.
        assert_close(optax.tree.get(converted, name), optax.tree.get(expected, name), rtol=3e-5)
    (_, rate), *_ = optax.tree_utils.tree_get_all_with_path(run(tx, 1, converted, first=7), "learning_rate")
    assert rate == SCHEDULE(7)


def test_adam_that_was_split_over_the_parameters():
    adam = optax.partition(
        {"tables": optax.adamw(SCHEDULE), "body": optax.adamw(1e-3)},
        lambda params: {
            name: jax.tree.map(lambda _, name=name: "body" if name == "mlp" else "tables", params[name]) for name in params
        },
    )
    tx = ember(SCHEDULE, optax.adamw(SCHEDULE), tables=TABLES)
    assert_close(state_from_adam(tx, normal(0), run(adam, 7), adam_b2=0.999), run(tx, 7))


def test_other_decay_rates():
    """The bias-corrected moment carries over: with a constant gradient it is its square at every step."""
    g = normal(3)
    adam, tx = optax.adam(1e-3, b2=0.9), scale_by_ember(b2=0.99, dimension_numbers={**TABLES, "mlp": EmberDimensionNumbers()})

    def after_five_steps(tx):
        return jax.jit(lambda g: jax.lax.fori_loop(0, 5, lambda _, state: tx.update(g, state)[1], tx.init(g)))(g)

    ours, expected = state_from_adam(tx, g, after_five_steps(adam), adam_b2=0.9), after_five_steps(tx)
    assert_close(ours, expected, rtol=3e-5)  # optax.adam's own 1 - b2^t is less accurate


def injected(factory):
    return optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)


def convert(tx, adam_state, **options):
    return state_from_adam(tx, normal(0), adam_state, **options)


def first_step(tx, state):
    """The root mean square of the next update of each table, in units of the learning rate."""
    updates, _ = jax.jit(tx.update)(normal(9), state, normal(0))
    updates.pop("mlp")
    return jax.tree.map(lambda u: float(jnp.sqrt(jnp.mean(u * u))), updates)


BY_TABLE = {"tables": ("embed", "lm_head"), "others": ("codebooks", "per_layer", "square", "bias", "mlp")}
B2 = {
    "injected": lambda b2: injected(optax.adamw)(1e-3, b2=b2),
    "injected in a chain": lambda b2: optax.chain(optax.clip(9.0), injected(optax.adam)(1e-3, b2=b2)),
    "injected around a chain": lambda b2: injected(lambda rate, b2: optax.chain(optax.trace(0.0), optax.adam(rate, b2=b2)))(
        1e-3, b2
    ),
    "injected twice": lambda b2: injected(lambda rate, b2: injected(optax.adam)(rate, b2=b2))(1e-3, b2),
    "injected for some": lambda b2: optax.partition(
        {"tables": injected(optax.adam)(1e-3, b2=b2), "others": injected(optax.adamw)(1e-3, b2=b2)},
        lambda params: {
            name: jax.tree.map(lambda _, name=name: "tables" if name in BY_TABLE["tables"] else "others", part)
            for name, part in params.items()
        },
    ),
}


@pytest.mark.parametrize(("made_by", "b2"), [(made_by, 0.95) for made_by in B2] + [("given", 0.95), ("given", 0.99)])
def test_the_first_step_has_the_size_that_the_rate_says(made_by, b2):
    """With another `b2` than Adam had it was 0.16 of it, in silence."""
    adam = B2.get(made_by, lambda b2: optax.adam(1e-3, b2=b2))(b2)
    tx = scale_by_ember(dimension_numbers={**TABLES, "mlp": EmberDimensionNumbers()})
    converted = convert(tx, run(adam, 10), **({"adam_b2": b2} if made_by == "given" else {}))
    for size in jax.tree.leaves(first_step(tx, converted)):
        assert 0.7 < size < 1.4


@pytest.mark.parametrize(
    "make",
    [
        lambda b2: ember(1.0, optax.adamw(1e-3), b2=b2, tables=TABLES),
        lambda b2: optax.MultiSteps(ember(1.0, optax.adamw(1e-3), b2=b2, tables=TABLES), 1),
        lambda b2: optax.inject_hyperparams(ember, static_args="tables", hyperparam_dtype=jnp.float32)(
            1.0, optax.adamw(1e-3), b2=b2, tables=TABLES
        ),
    ],
    ids=["ember", "in MultiSteps", "injected"],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_ember_tells_its_own_decay_rate(make, jitted):
    tx = make(0.9)
    work = jax.jit(convert, static_argnums=0) if jitted else convert
    converted = work(tx, run(optax.adam(1e-3, b2=0.95), 10), adam_b2=0.95)
    for size in jax.tree.leaves(first_step(tx, converted)):
        assert 0.7 < size < 1.4


def test_before_the_first_step_and_in_low_precision():
    tx = ember(1e-3, optax.adamw(1e-3), tables=TABLES)
    assert_close(state_from_adam(tx, normal(0), optax.adam(1e-3).init(normal(0)), adam_b2=0.999), tx.init(normal(0)))
    params = normal(0, jnp.bfloat16)
    adam = optax.adam(1e-3)
    _, state = adam.update(normal(1, jnp.bfloat16), adam.init(params))
    converted = state_from_adam(tx, params, state, adam_b2=0.999)
    assert optax.tree.get(converted, "nu_token")["embed"]["embedding"].dtype == jnp.float32
    expected = jnp.mean(optax.tree.get(state, "nu")["embed"]["embedding"].astype(jnp.float32), 1)
    np.testing.assert_allclose(optax.tree.get(converted, "nu_token")["embed"]["embedding"], expected, rtol=1e-6)


def test_on_a_mesh():
    """Jitted with the state's shardings, a table's moments never lie whole on a device."""
    mesh = make_mesh(AxisType.Auto)
    params = {"embed": {"embedding": jnp.ones((24, 8))}, "mlp": {"kernel": jnp.ones((8, 8))}}
    shardings = {
        "embed": {"embedding": NamedSharding(mesh, P("fsdp", "tp"))},
        "mlp": {"kernel": NamedSharding(mesh, P(None, "tp"))},
    }
    params = jax.device_put(params, shardings)
    adam, tx = optax.adamw(1e-3), ember(1e-3, optax.adamw(1e-3))
    adam_state = jax.jit(adam.init, out_shardings=state_shardings(adam, params, shardings))(params)
    _, adam_state = jax.jit(adam.update)(params, adam_state, params)
    wanted = state_shardings(tx, params, shardings)
    converted = jax.jit(lambda p, s: state_from_adam(tx, p, s, adam_b2=0.999), out_shardings=wanted)(params, adam_state)
    _, expected = jax.jit(tx.update)(params, tx.init(params), params)
    assert_close(converted, expected)
    assert optax.tree.get(converted, "nu_token")["embed"]["embedding"].sharding.spec == P("fsdp")


class TestMistakes:
    def test_no_adam(self):
        with pytest.raises(ValueError, match=r"adam_state holds no optax\.ScaleByAdamState with moments"):
            state_from_adam(ember(1e-3, optax.adamw(1e-3), tables=TABLES), normal(0), optax.sgd(1e-3, 0.9).init(normal(0)))

    def test_another_vocabulary(self):
        smaller = {**normal(0), "embed": {"embedding": jnp.ones((16, 8))}}
        with pytest.raises(ValueError, match=r"nu of 'embed/embedding' has shape \(16, 8\), but the parameter has \(24, 8\)"):
            state_from_adam(
                ember(1e-3, optax.adamw(1e-3), tables=TABLES), normal(0), optax.adam(1e-3).init(smaller), adam_b2=0.999
            )

    def test_another_model(self):
        with pytest.raises(ValueError, match=r"no moments of 'bias'; it has those of \['embed/embedding'\]"):
            state_from_adam(
                scale_by_ember(), {"bias": jnp.ones(3)}, optax.adam(1e-3).init({"embed": {"embedding": jnp.ones((24, 8))}})
            )

    def test_decay_rate(self):
        with pytest.raises(ValueError, match=r"^adam_b2 must be in \[0, 1\), got 1.5"):
            convert(ember(1e-3, optax.adamw(1e-3), tables=TABLES), optax.adam(1e-3).init(normal(0)), adam_b2=1.5)

    @pytest.mark.parametrize(
        "adam",
        [
            optax.adamw(1e-3),
            optax.inject_hyperparams(optax.adamw, static_args="b2")(1e-3),
            optax.chain(optax.inject_hyperparams(optax.sgd)(1e-3), optax.adam(1e-3)),
        ],
        ids=["adamw", "b2 is static", "another's hyperparameters"],
    )
    def test_an_unknown_decay_rate_is_asked_for(self, adam):
        with pytest.raises(TypeError, match=r"^adam_b2 is missing: .* 'bias' were made.*Pass adam_b2=0\.999"):
            convert(ember(1e-3, optax.adamw(1e-3), tables=TABLES), adam.init(normal(0)))

    def test_two_decay_rates(self):
        adam = injected(optax.adam)(1e-3, b2=0.95)
        with pytest.raises(
            ValueError, match=r"adam_b2 is 0.999, but the Adam state keeps b2=0.9[45]\d* of 'bias': leave adam_b2 out"
        ):
            convert(ember(1e-3, optax.adamw(1e-3), tables=TABLES), adam.init(normal(0)), adam_b2=0.999)
