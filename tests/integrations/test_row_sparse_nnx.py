"""What NNX does with a module, it also does with the rows of a table."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from next_token import TOKENS, D, V
from steps import split_value_and_grad

from ember_optax import row_sparse
from ember_optax.integrations import nnx as ember_nnx

IDS = TOKENS[:, :-1]


def restored_from_shapes(graph, state):
    """As in examples/lm/training.py: the state in the closure holds no arrays."""
    abstract = nnx.split(nnx.eval_shape(lambda: ember_nnx.Embed(V, D, rngs=nnx.Rngs(0))))[1]
    nnx.replace_by_pure_dict(abstract, nnx.to_pure_dict(state))
    return nnx.merge(graph, abstract)(IDS)


NNX_FLOWS = {
    "variable[...]": lambda graph, state: nnx.merge(graph, state).embedding[...][IDS],
    "split again": lambda graph, state: nnx.merge(*nnx.split(nnx.merge(graph, state)))(IDS),
    "nnx.state": lambda graph, state: nnx.merge(graph, nnx.state(nnx.merge(graph, state), nnx.Param))(IDS),
    "nnx.clone": lambda graph, state: nnx.clone(nnx.merge(graph, state))(IDS),
    "nnx.eval_shape": restored_from_shapes,
    "nnx.jit": lambda graph, state: nnx.jit(lambda model, ids: model(ids))(nnx.merge(graph, state), IDS),
    "nnx.remat": lambda graph, state: nnx.remat(lambda model, ids: model(ids))(nnx.merge(graph, state), IDS),
}


@pytest.mark.parametrize("name", NNX_FLOWS)
def test_nnx_carries_a_row_slice(name):
    graph, state = nnx.split(ember_nnx.Embed(V, D, rngs=nnx.Rngs(0)))

    def loss_fn(state):
        rows = NNX_FLOWS[name](graph, state)
        return jnp.sum(rows**2), rows

    (_, rows), grads = row_sparse.value_and_grad(loss_fn, has_aux=True)(state, {"embedding": IDS})
    expected = nnx.merge(graph, state)(IDS)
    np.testing.assert_array_equal(rows, expected)
    gradient = jnp.zeros((V, D)) + jax.tree.leaves(grads)[0]
    np.testing.assert_allclose(gradient, jnp.zeros((V, D)).at[IDS].add(2 * expected), rtol=1e-6)


@pytest.mark.skipif("out_sharding" not in inspect.signature(nnx.Embed.__call__).parameters, reason="new in Flax 0.12")
@pytest.mark.parametrize("spec", [P("data", None, "model"), P("data", None, None)])
def test_nnx_out_sharding_is_kept(spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    graph, state = nnx.split(ember_nnx.Embed(V, D, rngs=nnx.Rngs(0)))
    with jax.set_mesh(mesh):
        table = jax.device_put(nnx.to_pure_dict(state)["embedding"], NamedSharding(mesh, P(None, "model")))
        ids = jax.device_put(IDS, NamedSharding(mesh, P("data", None)))

        def loss_fn(params):
            filled = jax.tree.map(lambda x: x, state)
            nnx.replace_by_pure_dict(filled, params)
            rows = nnx.merge(graph, filled)(ids, out_sharding=spec)
            return jnp.sum(rows), rows

        (_, expected), _ = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))({"embedding": table})
        step = jax.jit(lambda params: split_value_and_grad(loss_fn, has_aux=True)(params, {"embedding": ids}))
        (_, rows), _, _ = step({"embedding": table})
    assert rows.sharding == expected.sharding == NamedSharding(mesh, spec)
    np.testing.assert_array_equal(rows, expected)
