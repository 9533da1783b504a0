"""Lookups in an input table that is split by rows: the numbers of one device, and N x D numbers are sent, never the table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.harness.compiled import collectives
from ember_optax import row_sparse

V, D, SHAPE = 1024, 16, (8, 4)
TABLES = [P("vocab"), P(("data", "vocab")), P("vocab", "data")]


def by_index(table, ids):
    return table[ids]


def example():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, SHAPE)
    ids[1] = ids[0]  # duplicates on different devices
    arrays = rng.standard_normal((V, D)), rng.standard_normal((D, D)), rng.standard_normal((*SHAPE, D))
    return (*(jnp.asarray(array, jnp.float32) for array in arrays), jnp.asarray(ids, jnp.int32))


def loss_fn(table, kernel, weights, ids, get):
    return jnp.sum(jnp.tanh(get(table, ids) @ kernel) * weights)


def gradients(get):
    return jax.value_and_grad(functools.partial(loss_fn, get=get), (0, 1))


WAYS = {
    "index": (by_index, AxisType.Auto),
    "lookup": (row_sparse.lookup, AxisType.Auto),
    "lookup, explicit": (row_sparse.lookup, AxisType.Explicit),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_dense_lookup_sends_the_rows_of_the_batch(table, way):
    """A dense gradient is summed over devices that have the same rows, as that of any parameter, and is sent nowhere else."""
    get, kind = WAYS[way]
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(kind,) * 2)
    specs = table, P(), P("data"), P("data")
    placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(example(), specs, strict=True)]
    out = (NamedSharding(mesh, P()), (placed[0].sharding, placed[1].sharding))
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradients(get), out_shardings=out).lower(*placed).compile()
        found = compiled(*placed)
    wanted = jax.jit(gradients(by_index))(*example())
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max(), rtol=0)
    rows = np.prod(SHAPE) * D
    of_gradient = V * D // 4 if table == P("vocab") else 0
    sent = [collective.elements for collective in collectives(compiled)]
    assert sent and all(elements <= rows or elements <= of_gradient + D * D + 1 for elements in sent), collectives(compiled)
    assert sum(elements > rows for elements in sent) == (of_gradient > 0)


def test_the_count_can_fail():
    """With a product by one-hot rows XLA gathers the rows that a device has over the axis that splits their features too."""
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)
    shapes = [
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))
        for array, spec in zip((example()[0], example()[3]), (P("vocab", "data"), P("data")), strict=True)
    ]
    get = jax.jit(lambda table, ids: jax.nn.one_hot(ids, V) @ table, out_shardings=NamedSharding(mesh, P("data")))
    assert max(collective.elements for collective in collectives(get.lower(*shapes).compile())) == V * D // 4
