"""What the compiled optimizer step sends between eight devices: the vectors that the statistics need, and nothing else."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import LAYOUTS, SPECS, D, V, make_mesh, parts, table_shape, table_spec
from products import in_turn

from benchmarks.harness.compiled import Collective, collectives
from ember_optax import EmberDimensionNumbers, ember, state_shardings

BATCH, LENGTH = 16, 10


def compile_sharded(step, tx, params, param_specs, mesh, *inputs):
    """Compiles `step(params, opt_state, *inputs)` for abstract arguments, donated and with the state's own shardings."""
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), param_specs)
    state_sharding = state_shardings(tx, params, shardings)

    def abstract(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    arguments = jax.tree.map(abstract, (params, jax.eval_shape(tx.init, params)), (shardings, state_sharding))
    compiled = jax.jit(step, donate_argnums=(0, 1), out_shardings=(shardings, state_sharding))
    return compiled.lower(*arguments, *inputs).compile()


@LAYOUTS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_optimizer_step(spec, axis_type, token_axis):
    tx, mesh = ember(1e-2, optax.sgd(1.0), weight_decay=0.1, tables=EmberDimensionNumbers(token_axis)), make_mesh(axis_type)
    table = jax.ShapeDtypeStruct(table_shape(token_axis), jnp.float32)
    grads = jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=NamedSharding(mesh, table_spec(spec, token_axis)))

    def step(params, opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    with jax.set_mesh(mesh):
        compiled = compile_sharded(step, tx, table, table_spec(spec, token_axis), mesh, grads)
    found = collectives(compiled)
    rows, columns = parts(spec)
    vectors = (D // columns if rows > 1 else 0) + (V // rows if columns > 1 else 0)
    assert {collective.operation for collective in found} <= {"all-reduce"}
    sent = sum(collective.elements for collective in found)
    # Scalars: the mean of nu_feature where it is split, and the guard of each split vector.
    assert vectors <= sent <= vectors + 3 * (vectors > 0), found


PARAMS = {
    "embed": {"embedding": jax.ShapeDtypeStruct((V, D), jnp.float32)},
    "mlp": {"kernel": jax.ShapeDtypeStruct((D, D), jnp.float32)},
    "lm_head": {"kernel": jax.ShapeDtypeStruct((D, V), jnp.float32)},
}


def train_step_communication(tx, spec, constrain):
    """Elements sent in a whole train step of a small model with an embedding and a head, by operation."""
    mesh = make_mesh(AxisType.Auto)
    specs = {"embed": {"embedding": P(*spec)}, "mlp": {"kernel": P(None, "tp")}, "lm_head": {"kernel": P(*spec[::-1])}}

    def loss_fn(params, ids):
        x = params["embed"]["embedding"][ids]
        x = x + jnp.tanh(x @ params["mlp"]["kernel"])
        logits = x @ params["lm_head"]["kernel"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, (ids + 1) % V).mean()

    def step(params, opt_state, ids):
        grads = jax.grad(loss_fn)(params, ids)
        if constrain:
            grads = jax.lax.with_sharding_constraint(grads, specs)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32, sharding=NamedSharding(mesh, P("fsdp")))
    with jax.set_mesh(mesh):
        found = collectives(compile_sharded(step, tx, PARAMS, specs, mesh, ids))
    sent = Counter()
    for collective in found:
        sent[collective.operation] += collective.elements
    return sent


@pytest.mark.parametrize("spec, constrain", in_turn([(spec,) for spec in SPECS], [True, False]), ids=str)
def test_whole_train_step(spec, constrain):
    """Against the same step with SGD, whose optimizer sends nothing: the difference is what Ember adds."""
    ours = train_step_communication(ember(1e-2, optax.sgd(1e-2)), spec, constrain)
    added = ours - train_step_communication(optax.sgd(1e-2), spec, constrain)
    rows, columns = parts(spec)
    vectors = (D // columns if rows > 1 else 0) + (V // rows if columns > 1 else 0)
    if constrain:
        assert set(added) <= {"all-reduce"}, added
        assert 2 * vectors <= added.total() <= 2 * (vectors + 3) * (vectors > 0), added
    else:
        # The compiler may take the statistics of gradients that it has split further than the parameters. Still vectors.
        assert added.total() <= 2 * (V + 2 * D + 3), added


def test_the_count_of_collectives_can_fail():
    """A step that gathers the table, and one that sums it over devices, are seen."""
    mesh = make_mesh(AxisType.Auto)
    split, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
    table = jax.ShapeDtypeStruct((V, D), jnp.float32, sharding=split)
    gathered = jax.jit(lambda g: g * 2, out_shardings=whole).lower(table).compile()
    assert collectives(gathered) == [Collective("all-gather", V * D, 4 * V * D)]
    with jax.set_mesh(mesh):
        summed = jax.jit(jax.shard_map(lambda g: jax.lax.psum(g, "fsdp"), in_specs=P("fsdp"), out_specs=P()))
        (found,) = collectives(summed.lower(table).compile())
    assert found == Collective("all-reduce", V * D // 4, V * D)
    assert math.prod(mesh.axis_sizes) == 8
