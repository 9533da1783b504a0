"""`stochastic_rounding` in a chain: where its updates land, in every kind of step and on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from quickly import fully_compiled
from steps import dense_step, sparse_step

from ember_optax import EmberDimensionNumbers, ember, row_sparse, stochastic_rounding

V, D = 300, 24
ROUNDING = stochastic_rounding(7)


def bits_of(array):
    """So that -0 and NaN are compared, too."""
    return np.asarray(array).view(np.uint16)


def table(dtype=jnp.bfloat16, seed=0, shape=(V, D)):
    return jnp.asarray(0.02 * np.random.default_rng(seed).standard_normal(shape), dtype)


def small_update(seed=1, shape=(V, D), size=1e-5):
    return jnp.asarray(size * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def rounded_step(params, state, updates, **options):
    updates, state = ROUNDING.update(updates, state, params, **options)
    return updates, state


def test_small_updates_are_made_on_average():
    """Rounded to the nearest, updates a hundred times smaller than the last place would all be lost."""
    params, state = {"w": jnp.full((V, D), 0.02, jnp.bfloat16)}, ROUNDING.init({})
    update, start = {"w": jnp.full((V, D), 1e-6)}, jnp.float32(params["w"][0, 0])
    step = jax.jit(dense_step(ROUNDING))
    for _ in range(50):
        params, state = step(params, state, update)
    moved = params["w"].astype(jnp.float32).mean() - start
    assert abs(moved / 5e-5 - 1) < 0.05
    assert (params["w"] == optax.apply_updates(params, jax.tree.map(lambda u: u.astype(jnp.bfloat16), update))["w"]).all()
    assert int(state.count) == 50 and len(jax.tree.leaves(state)) == 1


def test_other_leaves_pass_through():
    """Of 32 bits and of integers; a scalar and a vector of 16 are rounded."""
    params = {"a": table(jnp.float32), "n": jnp.arange(3), "s": jnp.bfloat16(1), "v": jnp.ones(9, jnp.float16)}
    updates = {"a": small_update(), "n": jnp.ones(3, int), "s": jnp.float32(1e-3), "v": jnp.full(9, 1e-4)}
    found, _ = ROUNDING.update(updates, ROUNDING.init(params), params)
    assert found["a"] is updates["a"] and found["n"] is updates["n"]
    assert set(np.unique(found["v"])) <= {np.float32(0), np.float32(2**-10)} and found["s"] in (0, 2**-7)


@pytest.mark.parametrize("axis, dtype", [(0, jnp.bfloat16), (1, jnp.float16), (2, jnp.bfloat16)], ids=str)
def test_rows_are_rounded_as_in_the_whole_table(axis, dtype):
    """Bit for bit, wherever the token axis is; equal ids are added up before, padding is left alone."""
    numbers, features = EmberDimensionNumbers(axis), (3, 4)
    tx = stochastic_rounding(7, tables=numbers)
    rng = np.random.default_rng(0)
    params = jnp.asarray(np.moveaxis(0.02 * rng.standard_normal((V, *features)), 0, axis), dtype)
    ids = jnp.asarray([[5, 299, 17, 5], [-1, 300, 0, 299]])
    rows = rng.standard_normal((2, 4, *features)) * 1e-5
    dense = np.zeros((V, *features))
    kept = np.asarray((ids >= 0) & (ids < V))
    np.add.at(dense, np.asarray(ids)[kept], np.float32(rows)[kept])
    compact = jnp.asarray(np.moveaxis(rows, (0, 1), (axis, axis + 1)), jnp.float32)

    state = tx.init(params)
    whole, _ = jax.jit(dense_step(tx))(params, state, jnp.asarray(np.moveaxis(dense, 0, axis), jnp.float32))
    some, _ = jax.jit(sparse_step(tx, tables=numbers))(params, state, compact, ids)
    np.testing.assert_array_equal(bits_of(some), bits_of(whole))
    assert (whole != params).any()


def test_restart_goes_on_bit_for_bit():
    """With the state of the step before; another seed, step or path rounds differently."""
    params, state, updates = {"w": table()}, ROUNDING.init({}), {"w": small_update()}
    step = jax.jit(dense_step(ROUNDING))
    saved = step(params, state, updates)
    restored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), saved)
    np.testing.assert_array_equal(bits_of(step(*saved, updates)[0]["w"]), bits_of(step(*restored, updates)[0]["w"]))
    first = saved[0]["w"]
    assert (first != step(params, saved[1], updates)[0]["w"]).any()
    assert (first != jax.jit(dense_step(stochastic_rounding(8)))(params, state, updates)[0]["w"]).any()
    assert (first != step({"v": table()}, state, {"v": small_update()})[0]["v"]).any()


@pytest.mark.parametrize(
    "kind, spec", [(AxisType.Auto, P("x")), (AxisType.Auto, P(None, "x")), (AxisType.Explicit, P("x"))], ids=str
)
def test_devices_round_as_one(kind, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    shape = (64, D)
    params, updates = table(shape=shape), small_update(shape=shape)
    ids, compact = jnp.asarray([3, 9, 3, 64]), small_update(shape=(4, D))
    wanted = jax.jit(dense_step(ROUNDING))(params, ROUNDING.init(params), updates)[0]
    wanted_rows = jax.jit(sparse_step(ROUNDING))(params, ROUNDING.init(params), compact, ids)[0]
    with jax.set_mesh(mesh):
        there = [jax.device_put(array, NamedSharding(mesh, spec)) for array in (params, updates)]
        state = ROUNDING.init(there[0])
        found = jax.jit(dense_step(ROUNDING))(there[0], state, there[1])[0]
        compact = jax.device_put(compact, NamedSharding(mesh, P(None, *spec[1:])))
        found_rows = jax.jit(sparse_step(ROUNDING))(there[0], state, compact, jax.device_put(ids, NamedSharding(mesh, P())))[0]
    np.testing.assert_array_equal(bits_of(found), bits_of(wanted))
    np.testing.assert_array_equal(bits_of(found_rows), bits_of(wanted_rows))


WRAPPED = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "injected": lambda tx: optax.chain(ember(1e-3, optax.adamw(1e-3)), optax.inject_hyperparams(stochastic_rounding)(seed=7)),
    "every second step": lambda tx: optax.MultiSteps(tx, 2),
    "masked": lambda tx: optax.masked(tx, {"embedding": True}),
    "only finite": lambda tx: optax.apply_if_finite(tx, 3),
    "partition": lambda tx: optax.partition({"all": tx}, {"embedding": "all"}),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_works_in_the_wrappers_of_optax(name):
    tx = WRAPPED[name](optax.chain(ember(1e-3, optax.adamw(1e-3)), ROUNDING))
    params = {"embedding": table()}
    grads = {"embedding": small_update()}
    plain, once = optax.chain(ember(1e-3, optax.adamw(1e-3)), ROUNDING), dense_step(tx)
    wanted, _ = dense_step(plain)(params, plain.init(params), grads)
    found, state = params, tx.init(params)
    for _ in range(2 if name == "every second step" else 1):
        found, state = jax.jit(once)(found, state, grads)
    assert found["embedding"].dtype == jnp.bfloat16
    close = np.mean(bits_of(found["embedding"]) == bits_of(wanted["embedding"]))
    assert close > 0.999  # compiled as a whole, a sum may differ in its last place


def test_frozen_rows_stay_bit_for_bit():
    """And a table that skips its batch."""
    tx = row_sparse.train_only_rows(optax.chain(ember(1e-3, optax.adamw(1e-3)), ROUNDING), {"embedding": jnp.array([5])})
    params = {"embedding": table().at[3].set(-0.0)}
    found, _ = dense_step(tx)(params, tx.init(params), {"embedding": small_update()})
    frozen = jnp.arange(V) != 5
    np.testing.assert_array_equal(bits_of(found["embedding"][frozen]), bits_of(params["embedding"][frozen]))
    assert (found["embedding"][5] != params["embedding"][5]).any()
    tx = optax.chain(ember(1e-3, optax.adamw(1e-3)), ROUNDING)
    found, _ = dense_step(tx)(params, tx.init(params), {"embedding": small_update().at[0, 0].set(jnp.nan)})
    np.testing.assert_array_equal(found["embedding"], params["embedding"])


def test_lands_in_the_libraries():
    """`nnx.Optimizer` casts back; `eqx.apply_updates` does not, but a cast lands on the same numbers."""
    import equinox as eqx  # noqa: PLC0415
    from flax import nnx  # noqa: PLC0415

    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(table())

    params, updates = {"w": table()}, {"w": small_update()}
    changed, _ = ROUNDING.update(updates, ROUNDING.init(params), params)
    wanted = bits_of(optax.apply_updates(params, changed)["w"])
    model = Model()
    optimizer = nnx.Optimizer(model, optax.chain(ROUNDING), wrt=nnx.Param)
    optimizer.update(model, nnx.State({"w": nnx.Param(updates["w"])}))
    np.testing.assert_array_equal(bits_of(model.w[...]), wanted)
    np.testing.assert_array_equal(bits_of(eqx.apply_updates(params, changed)["w"].astype(jnp.bfloat16)), wanted)
    np.testing.assert_array_equal(bits_of(row_sparse.apply_updates(params, changed, None)["w"]), wanted)


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="before jax 0.10 XLA on CPU writes g^2 to memory")
@pytest.mark.parametrize("shape, axis", [((131_072, 1024), 0), ((1024, 131_072), 1)])
def test_has_no_temporary(shape, axis):
    tx = optax.chain(ember(1e-3, optax.adamw(1e-3), tables=EmberDimensionNumbers(axis)), ROUNDING)
    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    step = jax.jit(dense_step(tx), donate_argnums=(0, 1))
    with fully_compiled():
        memory = step.lower(array, jax.eval_shape(tx.init, array), array).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.01 * array.size * 2


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="older versions were not looked at")
def test_places_along_the_last_axis_are_hashed_once():
    """Apart, in a vector: for every element again it took half as long again."""
    array = jax.ShapeDtypeStruct((4096, 640), jnp.bfloat16)
    step = jax.jit(dense_step(ROUNDING), donate_argnums=(0, 1))
    with fully_compiled():
        memory = step.lower(array, jax.eval_shape(ROUNDING.init, array), array).compile().memory_analysis()
    assert 4 * 640 <= memory.temp_size_in_bytes < 5 * 640


def test_a_schedule_of_seeds_is_refused():
    with pytest.raises(TypeError, match="seed must be one integer"):
        optax.inject_hyperparams(stochastic_rounding)(seed=lambda step: 0.5 * step).init(table())


def test_outside_of_a_guard_that_skips_what_is_not_finite():
    """Inside, its float32 updates of bfloat16 parameters are another dtype than those of a skipped step: `lax.cond` refuses."""
    params = {"wte": jnp.full((8, 4), 0.02, jnp.bfloat16)}
    grads = {"wte": jnp.ones((8, 4), jnp.bfloat16)}
    outside = optax.chain(optax.apply_if_finite(optax.sgd(1e-3), 5), ROUNDING)
    inside = optax.apply_if_finite(optax.chain(optax.sgd(1e-3), ROUNDING), 5)
    with pytest.raises(TypeError, match="cond"):
        inside.update(grads, inside.init(params), params)
    updates, state = outside.update(grads, outside.init(params), params)
    plain = optax.chain(optax.sgd(1e-3), ROUNDING)
    np.testing.assert_array_equal(updates["wte"], plain.update(grads, plain.init(params), params)[0]["wte"])
    skipped, _ = outside.update({"wte": grads["wte"] * jnp.nan}, state, params)
    np.testing.assert_array_equal(optax.apply_updates(params, skipped)["wte"], params["wte"])
