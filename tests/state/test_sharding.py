"""Tables sharded over eight devices: the same result as on one, and a state sharded like its table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import SPECS, D, V, make_mesh, table_shape, table_spec

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember, state_shardings
from ember_optax._math.mesh import spec_of

STEPS = 10
# Every pair of two of the three; the rest are slow.
EVERY_PAIR = pytest.mark.parametrize(
    "spec, axis_type, token_axis",
    [
        pytest.param(spec, axis_type, token_axis, marks=() if (i + j + token_axis) % 2 else pytest.mark.slow)
        for i, spec in enumerate(SPECS)
        for j, axis_type in enumerate([AxisType.Auto, AxisType.Explicit])
        for token_axis in (0, 1)
    ],
    ids=str,
)


def as_from_a_step(sharding):
    """As a step returns it: P("fsdp", None) comes out as P("fsdp") on automatic axes, and would compile again."""
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return sharding if explicit else NamedSharding(sharding.mesh, spec_of(sharding.spec))


def train(token_axis, sharding=None, setup=jax.jit):
    """Parameters after ten steps and the types that the state had in them; the state's sharding is left to `setup(tx.init)`."""
    tx = ember(1e-2, optax.sgd(1.0), weight_decay=0.1, tables=EmberDimensionNumbers(token_axis))
    shape = table_shape(token_axis)
    grads = np.random.default_rng(0).normal(size=(STEPS, *shape)).astype(np.float32)
    params, grads = jax.device_put((jnp.ones(shape), list(grads)), sharding and as_from_a_step(sharding))
    types = []

    @jax.jit
    def step(params, opt_state, g):
        types.append(jax.tree.map(jax.typeof, opt_state))
        updates, opt_state = tx.update(g, opt_state, params)
        types.append(jax.tree.map(jax.typeof, opt_state))
        return optax.apply_updates(params, updates), opt_state

    opt_state = setup(tx.init)(params)
    for g in grads:
        params, opt_state = step(params, opt_state, g)
    return params, types, step._cache_size()


@functools.cache
def trained_on_one_device(token_axis):
    return np.asarray(train(token_axis)[0])


@EVERY_PAIR
def test_sharded_step(spec, axis_type, token_axis):
    expected = trained_on_one_device(token_axis)
    with jax.set_mesh(make_mesh(axis_type)) as _:
        sharding = NamedSharding(make_mesh(axis_type), table_spec(spec, token_axis))
        params, types, _ = train(token_axis, sharding)
    assert params.sharding.is_equivalent_to(sharding, 2)
    assert types[0] == types[1], "the state's types change in a step"
    assert len(types) == 2, "traced more than once"
    np.testing.assert_allclose(params, expected, rtol=1e-6)


@EVERY_PAIR
def test_eager_init_puts_the_state_where_the_table_is(spec, axis_type, token_axis):
    """Outside of `jax.jit` and without `jax.set_mesh`, as `optax.adamw` allows it, and without a second compilation."""
    sharding = NamedSharding(make_mesh(axis_type), table_spec(spec, token_axis))
    expected = trained_on_one_device(token_axis)
    params, _, compilations = train(token_axis, sharding, setup=lambda init: init)
    np.testing.assert_allclose(params, expected, rtol=1e-6)
    assert compilations == 1
    state = scale_by_ember(dimension_numbers=EmberDimensionNumbers(token_axis)).init(params)
    token, feature = (NamedSharding(sharding.mesh, P(entry)) for entry in spec)
    assert state.nu_token.sharding.is_equivalent_to(token, 1)
    assert state.nu_feature.sharding.is_equivalent_to(feature, 1)
    assert state.count.sharding.is_equivalent_to(NamedSharding(sharding.mesh, P()), 0)


@EVERY_PAIR
def test_scan_over_steps(spec, axis_type, token_axis):
    """All steps in one `lax.scan`, its carry donated."""
    tx, mesh = ember(1e-2, optax.sgd(1.0), weight_decay=0.1, tables=EmberDimensionNumbers(token_axis)), make_mesh(axis_type)
    shape, spec = table_shape(token_axis), table_spec(spec, token_axis)
    grads = np.random.default_rng(0).normal(size=(STEPS, *shape)).astype(np.float32)

    def body(carry, g):
        params, opt_state = carry
        updates, opt_state = tx.update(g, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones(shape), NamedSharding(mesh, spec))
        grads = jax.device_put(grads, NamedSharding(mesh, P(None, *spec)))
        carry = params, jax.jit(tx.init, out_shardings=state_shardings(tx, params, NamedSharding(mesh, spec)))(params)
        scan = jax.jit(lambda carry, grads: jax.lax.scan(body, carry, grads)[0], donate_argnums=0)
        (params, _), donated = scan(carry, grads), carry[0]
    assert donated.is_deleted()
    np.testing.assert_allclose(params, trained_on_one_device(token_axis), rtol=1e-6)


def test_eager_init_on_one_device():
    table = jax.device_put(jnp.ones((V, D)), jax.devices()[3])
    assert {leaf.devices().pop() for leaf in jax.tree.leaves(scale_by_ember().init(table))} == {jax.devices()[3]}
