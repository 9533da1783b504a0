"""Tables sharded over eight devices: the same result, and as little communication as the two vectors need."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ember_optax import EmberDimensionNumbers, ember

V, D, STEPS = 64, 32, 10
# Of a (V, D) table; a (D, V) table takes the two entries in the other order.
SPECS = [(None, None), ("fsdp", None), (None, "tp"), ("fsdp", "tp"), (("tp", "fsdp"), None)]
LAYOUTS = pytest.mark.parametrize("token_axis", [0, 1])


def make_mesh(axis_type):
    return jax.make_mesh((2, 4), ("tp", "fsdp"), axis_types=(axis_type,) * 2)


def train(token_axis, sharding=None):
    """Parameters after ten steps and the compiled step; `init` and steps are jitted, the state is left to the compiler."""
    tx = ember(1e-2, optax.sgd(1.0), weight_decay=0.1, tables=EmberDimensionNumbers(token_axis))
    shape = (V, D) if token_axis == 0 else (D, V)
    grads = np.random.default_rng(0).normal(size=(STEPS, *shape)).astype(np.float32)
    params, grads = jax.device_put((jnp.ones(shape), list(grads)), sharding)
    types = []

    @jax.jit
    def step(params, opt_state, g):
        types.append(jax.tree.map(jax.typeof, opt_state))
        updates, opt_state = tx.update(g, opt_state, params)
        types.append(jax.tree.map(jax.typeof, opt_state))
        return optax.apply_updates(params, updates), opt_state

    opt_state = jax.jit(tx.init)(params)
    for g in grads:
        params, opt_state = step(params, opt_state, g)
    return params, types, step.lower(params, opt_state, grads[0]).compile()


def collectives(compiled):
    """(operation, elements) of every collective in the optimized program."""
    pattern = r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    found = []
    for shapes, operation in re.findall(pattern, compiled.as_text()):
        sizes = [math.prod(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)]
        found.append((operation, sum(sizes)))
    return found


@LAYOUTS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sharded_step(spec, axis_type, token_axis):
    expected, _, _ = train(token_axis)
    with jax.set_mesh(make_mesh(axis_type)) as _:
        sharding = NamedSharding(make_mesh(axis_type), PartitionSpec(*(spec if token_axis == 0 else spec[::-1])))
        params, types, compiled = train(token_axis, sharding)
        assert params.sharding.is_equivalent_to(sharding, 2)
        assert types[0] == types[1], "the state's types change in a step"
        assert len(types) == 2, "traced more than once"
    np.testing.assert_allclose(params, expected, rtol=1e-6)
    rows, columns = (math.prod({"tp": 2, "fsdp": 4}[a] for a in ([x] if isinstance(x, str) else x or [])) for x in spec)
    vectors = (D // columns if rows > 1 else 0) + (V // rows if columns > 1 else 0)
    found = collectives(compiled)
    assert {operation for operation, _ in found} <= {"all-reduce"}
    assert sum(size for _, size in found) <= vectors + 2, found  # two scalars may ride along
    assert (sum(size for _, size in found) >= vectors) and (vectors > 0 or not found), found
