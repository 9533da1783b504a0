"""The small model of the bad inputs, and its good inputs."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember

V, D = 6, 4
TABLE = jnp.ones((V, D))
PARAMS = {"dense": {"kernel": jnp.ones((D, D))}, "embed": {"embedding": TABLE}}
WTE = {"wte": TABLE}
ALL = EmberDimensionNumbers()
TX, SCALE, ADAM = ember(1e-3, optax.adamw(1e-3)), scale_by_ember(), optax.adamw(1e-3)
IDS = jnp.array([1, 3])
TOKEN_IDS = {"embed/embedding": IDS}
COMPACT = {**PARAMS, "embed": {"embedding": jnp.ones((2, D))}}
SPECS = jax.tree.map(lambda _: PartitionSpec(), PARAMS)


@functools.cache
def state(tx=TX, of="PARAMS"):
    return tx.init({"PARAMS": PARAMS, "WTE": WTE}[of])


@functools.cache
def mesh():
    return jax.make_mesh((2, 4), ("tp", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def shardings(*specs):
    return NamedSharding(mesh(), PartitionSpec(*specs))


def row_slice():
    return row_sparse.RowSlice(TABLE[:2], IDS, V)


@functools.cache
def whole_model():
    """An Equinox model with a function in it."""
    import equinox as eqx  # noqa: PLC0415 -- only where it is asked for

    class Model(eqx.Module):
        embedding: eqx.nn.Embedding
        activation: object

    return Model(eqx.nn.Embedding(V, D, key=jax.random.key(0)), jnp.tanh)


def trainable(model):
    import equinox as eqx  # noqa: PLC0415

    return eqx.filter(model, eqx.is_inexact_array)


def each(leaf):
    """The parameters with the same thing in the place of each."""
    return jax.tree.map(lambda _: leaf, PARAMS)


def a_function(x):
    return x
