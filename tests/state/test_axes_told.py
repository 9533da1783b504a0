"""State is sharded and converted by the axes that Ember took, asked once with the real shapes; names are never confused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from ember_optax import (
    EmberDimensionNumbers,
    ScaleByEmberState,
    check_shapes,
    ember,
    scale_by_ember,
    skipped_batches,
    state_from_adam,
    state_partition_specs,
    token_tables,
)

PARAMS = {"a": jnp.zeros((300, 20)), "b": jnp.zeros((20, 300)), "c": jnp.zeros((20, 20))}


def by_size(params):
    """What a user may write: the axis of 300 is the vocabulary, what has none is the body."""

    def numbers(p):
        return EmberDimensionNumbers(p.shape.index(300)) if 300 in p.shape else None

    return jax.tree.map(numbers, params)


def ember_state(state):
    return optax.tree.get(state, "ScaleByEmberState")


def test_specs_of_a_function_that_looks_at_sizes():
    specs = state_partition_specs(
        ember(1e-3, optax.adamw(1e-3), tables=by_size), PARAMS, {"a": P("v", "d"), "b": P("d", "v"), "c": P()}
    )
    found = ember_state(specs)
    assert (found.nu_token["a"], found.nu_feature["a"]) == (P("v"), P("d"))
    assert (found.nu_token["b"], found.nu_feature["b"]) == (P("v"), P("d"))


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.MultiSteps(tx, 2), lambda tx: optax.chain(optax.clip(1.0), tx)])
def test_conversion_with_a_function_that_looks_at_sizes(wrap):
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) ** 3, jnp.float32), PARAMS)
    adam = optax.adam(1e-3)
    _, adam_state = adam.update(grads, adam.init(PARAMS))
    found = ember_state(state_from_adam(wrap(ember(1e-3, optax.adamw(1e-3), tables=by_size)), PARAMS, adam_state, adam_b2=0.999))
    tx = ember(1e-3, optax.adamw(1e-3), tables=by_size)
    expected = ember_state(tx.update(grads, tx.init(PARAMS), PARAMS)[1])
    for field in ("nu_token", "nu_feature"):
        for name in ("a", "b"):
            np.testing.assert_allclose(getattr(found, field)[name], getattr(expected, field)[name], rtol=2e-5)


def test_a_function_is_asked_with_real_shapes_alone():
    shapes = set()

    def tables(params):
        shapes.update(np.shape(p) for p in jax.tree.leaves(params))
        return token_tables(params)

    params = {"wte": jnp.zeros((300, 20)), "mlp": jnp.zeros((20, 20))}
    tx = ember(1e-3, optax.adamw(1e-3), tables=tables)
    adam_state = optax.adam(1e-3).init(params)
    state_from_adam(tx, params, adam_state, adam_b2=0.999)
    state_partition_specs(tx, params, P())
    # The second initialisation, with a size of its own for each axis, is for the body's state.
    assert (300, 20) in shapes
    specs = state_partition_specs(tx, params, {"wte": P("v"), "mlp": P()})
    assert ember_state(specs).nu_token["wte"] == P("v")


def test_two_embers_that_disagree():
    tx = optax.chain(scale_by_ember(), scale_by_ember(dimension_numbers=EmberDimensionNumbers(1)))
    with pytest.raises(ValueError, match=r"two Embers in tx take 'w' with different axes"):
        state_partition_specs(tx, {"w": jnp.zeros((4, 6))}, P())


# Two leaves of one path: a leading "params" is dropped, and a key may hold a slash.
COLLIDING = [
    {"params": {"w": jnp.ones((8, 4))}, "w": jnp.ones((4, 8))},
    {"a/w": jnp.ones((8, 4)), "a": {"w": jnp.ones((4, 8))}},
]


@pytest.mark.parametrize("params", COLLIDING)
@pytest.mark.parametrize("what", ["init", "ember", "from_adam", "specs", "update"])
def test_paths_that_collide_are_refused(params, what):
    """Each leaf would get the moments, the spec or the ids of the other."""
    numbers = EmberDimensionNumbers()
    tx = scale_by_ember(dimension_numbers=numbers)
    uses = {
        "init": lambda: tx.init(params),
        "ember": lambda: ember(1e-3, optax.adamw(1e-3), tables=numbers).init(params),
        "from_adam": lambda: state_from_adam(optax.adam(1e-3), params, optax.adam(1e-3).init(params)),
        "specs": lambda: state_partition_specs(optax.adam(1e-3), params, P()),
        "update": lambda: tx.update(params, tx.init({"w": jnp.ones((8, 4))})),
    }
    with pytest.raises(ValueError, match=r"paths \['(a/)?w'\] name more than one leaf each.*rename"):
        uses[what]()


@pytest.mark.parametrize(
    "read",
    [
        lambda params: skipped_batches(ScaleByEmberState(params, params, params, params)),
        lambda params: state_from_adam(optax.adam(1e-3), {"w": jnp.ones((8, 4))}, optax.adam(1e-3).init(params)),
    ],
    ids=["of Ember", "of Adam"],
)
@pytest.mark.parametrize("params", COLLIDING)
def test_states_whose_paths_collide_are_refused(params, read):
    with pytest.raises(ValueError, match=r"paths \['(a/)?w'\] name more than one leaf each.*rename"):
        read(params)


def test_check_shapes_refuses_paths_that_collide():
    (_, params) = COLLIDING
    with pytest.raises(ValueError, match=r"paths \['a/w'\] name more than one leaf"):
        check_shapes(params, params)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_moment_that_is_not_finite_is_not_converted(value):
    params = {"wte": jnp.ones((8, 4))}
    state = optax.adam(1e-3).init(params)
    damaged = (state[0]._replace(nu={"wte": state[0].nu["wte"].at[3, 1].set(value)}), *state[1:])
    with pytest.raises(ValueError, match=r"Adam's nu of 'wte' is not finite.*earlier checkpoint"):
        state_from_adam(ember(1e-3, optax.adamw(1e-3)), params, damaged, adam_b2=0.999)


@pytest.mark.parametrize("field", ["nu_token", "nu_feature"])
@pytest.mark.parametrize("compact", [False, True])
def test_a_restored_moment_that_is_not_finite_is_counted(field, compact):
    """Every update would be zero or NaN for ever; `total_notfinite` tells, and `count` does not go up."""
    params = {"wte": jnp.ones((8, 4))}
    tx = ember(1e-3, optax.adamw(1e-3))
    state = tx.init(params)
    inner = ember_state(state)
    damaged = inner._replace(**{field: {"wte": getattr(inner, field)["wte"].at[2].set(jnp.inf)}})
    state = jax.tree.map(
        lambda node: damaged if isinstance(node, type(inner)) else node, state, is_leaf=lambda node: isinstance(node, type(inner))
    )
    token_ids = {"wte": jnp.array([1, 2, 5])} if compact else None
    grads = {"wte": jnp.ones((3, 4))} if compact else params
    for _ in range(2):
        updates, state = jax.jit(tx.update)(grads, state, params, token_ids=token_ids)
        assert not updates["wte"].any()
    found = ember_state(state)
    assert (found.count["wte"], found.total_notfinite["wte"]) == (0, 2)
