"""Inside `jax.shard_map`, where each device sees its part of a table only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from layouts import LAYOUTS, SPECS, D, V, make_mesh, table_shape, table_spec

from ember_optax import EmberDimensionNumbers, scale_by_ember, state_partition_specs

STEPS = 10


WHOLE = [scale_by_ember(dimension_numbers=EmberDimensionNumbers(token_axis)) for token_axis in (0, 1)]


def last_update(tx, grads):
    def body(state, g):
        updates, state = tx.update(g, state)
        return state, updates

    return jax.lax.scan(body, tx.init(grads[0]), grads)[1][-1]


@functools.cache
def last_update_on_one_device():
    return np.asarray(jax.jit(functools.partial(last_update, WHOLE[0]))(random_tables()))


def random_tables():
    return jnp.asarray(np.random.default_rng(0).normal(size=(STEPS, V, D)), jnp.float32)


@LAYOUTS
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_inside_shard_map(spec, token_axis):
    """Each device sees its part only; with the mesh axes named, all agree with one device, the guard included."""
    token_mesh, feature_mesh = (x if isinstance(x, tuple) else (x,) if x else () for x in spec)
    numbers = EmberDimensionNumbers(token_axis)
    tx = scale_by_ember(dimension_numbers=numbers, token_mesh_axes=token_mesh, feature_mesh_axes=feature_mesh)
    whole = WHOLE[token_axis]
    whole_update = jax.jit(whole.update)
    shape = table_shape(token_axis)
    grads = np.random.default_rng(0).normal(size=(STEPS, *shape)).astype(np.float32)
    grads[4, -1, -1] = np.nan
    specs = table_spec(spec, token_axis)
    state_specs = state_partition_specs(whole, jax.ShapeDtypeStruct(shape, jnp.float32), specs)
    with jax.set_mesh(make_mesh(AxisType.Auto)):
        step = jax.jit(jax.shard_map(tx.update, in_specs=(specs, state_specs), out_specs=(specs, state_specs)))
        state = expected_state = whole.init(jnp.ones(shape))
        for g in grads:
            updates, state = step(jnp.asarray(g), state)
            expected, expected_state = whole_update(jnp.asarray(g), expected_state)
            np.testing.assert_allclose(updates, expected, rtol=1e-6)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), state, expected_state)
    assert state.total_notfinite == 1


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_scan_inside_shard_map(spec):
    """The state that is made there has the type that the step gives it."""
    token_mesh, feature_mesh = (x if isinstance(x, tuple) else (x,) if x else () for x in spec)
    tx, expected = scale_by_ember(token_mesh_axes=token_mesh, feature_mesh_axes=feature_mesh), last_update_on_one_device()
    with jax.set_mesh(make_mesh(AxisType.Auto)):
        ours = jax.shard_map(functools.partial(last_update, tx), in_specs=P(None, *spec), out_specs=P(*spec))
        np.testing.assert_allclose(jax.jit(ours)(random_tables()), expected, rtol=1e-6)


def test_without_mesh_axes_shard_map_is_wrong():
    """The reason for the arguments, and a check that the test above can fail."""
    g = jnp.asarray(np.random.default_rng(0).normal(size=(V, D)) * np.arange(1, V + 1)[:, None], jnp.float32)

    def first_update(g, tx=scale_by_ember()):  # noqa: B008
        return tx.update(g, tx.init(g))[0]

    with jax.set_mesh(make_mesh(AxisType.Auto)):
        local = jax.jit(jax.shard_map(first_update, in_specs=P("fsdp"), out_specs=P("fsdp")))(g)
    assert np.abs(local - jax.jit(first_update)(g)).max() > 0.1
