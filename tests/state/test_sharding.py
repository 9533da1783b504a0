"""Tables sharded over eight devices: the same result as on one, and a state sharded like its table."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import LAYOUTS, SPECS, D, V, make_mesh, table_shape, table_spec

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember, state_partition_specs, state_shardings

STEPS = 10


def train(token_axis, sharding=None, setup=jax.jit):
    """Parameters after ten steps and the types that the state had in them; the state's sharding is left to `setup(tx.init)`."""
    tx = ember(1e-2, optax.sgd(1.0), weight_decay=0.1, tables=EmberDimensionNumbers(token_axis))
    shape = table_shape(token_axis)
    grads = np.random.default_rng(0).normal(size=(STEPS, *shape)).astype(np.float32)
    params, grads = jax.device_put((jnp.ones(shape), list(grads)), sharding)
    # P("fsdp", None) that comes out of a step as P("fsdp") compiles the next one again, whatever the optimizer.
    params, grads = jax.jit(lambda x: jax.tree.map(jnp.copy, x))((params, grads))
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


@LAYOUTS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sharded_step(spec, axis_type, token_axis):
    expected = trained_on_one_device(token_axis)
    with jax.set_mesh(make_mesh(axis_type)) as _:
        sharding = NamedSharding(make_mesh(axis_type), table_spec(spec, token_axis))
        params, types, _ = train(token_axis, sharding)
    assert params.sharding.is_equivalent_to(sharding, 2)
    assert types[0] == types[1], "the state's types change in a step"
    assert len(types) == 2, "traced more than once"
    np.testing.assert_allclose(params, expected, rtol=1e-6)


@LAYOUTS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", SPECS, ids=str)
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


@LAYOUTS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", SPECS, ids=str)
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


PARAMS = {
    "embed": {"embedding": jax.ShapeDtypeStruct((V, D), jnp.float32)},
    "lm_head": {"kernel": jax.ShapeDtypeStruct((D, V), jnp.float32)},
    "mlp": {"kernel": jax.ShapeDtypeStruct((D, D), jnp.float32), "bias": jax.ShapeDtypeStruct((D,), jnp.float32)},
}
PARAM_SPECS = {
    "embed": {"embedding": P("fsdp", "tp")},
    "lm_head": {"kernel": P("tp", "fsdp")},
    "mlp": {"kernel": P(None, "tp"), "bias": P("tp")},
}
TRANSFORMATIONS = {
    "ember": ember(1e-3),
    "weight decay and schedule": ember(optax.cosine_decay_schedule(1e-3, 100), weight_decay=0.1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), ember(1e-3), optax.ema(0.9)),
    "muon": ember(1e-3, optax.contrib.muon(1e-2)),
    "adafactor": ember(1e-3, optax.adafactor(1e-2, min_dim_size_to_factor=8)),
    "inject_hyperparams": optax.inject_hyperparams(ember)(learning_rate=1e-3),
    "MultiSteps": optax.MultiSteps(ember(1e-3), 2),
    "apply_if_finite": optax.apply_if_finite(ember(1e-3), 3),
    "frozen body": optax.partition(
        {"train": ember(1e-3), "freeze": optax.set_to_zero()},
        lambda p: {k: jax.tree.map(lambda _, k=k: "freeze" if k == "mlp" else "train", v) for k, v in p.items()},
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_state_partition_specs(name):
    tx = TRANSFORMATIONS[name]
    specs = state_partition_specs(tx, PARAMS, PARAM_SPECS)
    state = jax.eval_shape(tx.init, PARAMS)
    assert jax.tree.structure(jax.tree.map(lambda _: 0, specs)) == jax.tree.structure(jax.tree.map(lambda _: 0, state))
    jax.tree.map(lambda leaf, spec: len(spec) <= leaf.ndim or pytest.fail(f"{spec} for {leaf}"), state, specs)
    found = optax.tree.get(specs, "ScaleByEmberState")
    assert found.nu_token["embed"]["embedding"] == found.nu_token["lm_head"]["kernel"] == P("fsdp")
    assert found.nu_feature["embed"]["embedding"] == found.nu_feature["lm_head"]["kernel"] == P("tp")
    assert found.count["embed"]["embedding"] == P()
    for moments in ("mu", "acc_grads"):
        for _, tree in optax.tree_utils.tree_get_all_with_path(specs, moments):
            for leaf, spec in PARAM_SPECS["mlp"].items():
                assert tree["mlp"][leaf] in (spec, optax.MaskedNode())
    if name == "adafactor":
        v_row = optax.tree.get(specs, "FactoredState")
        assert {v_row.v_row["mlp"]["kernel"], v_row.v_col["mlp"]["kernel"]} == {P(), P("tp")}
    replicated = state_partition_specs(tx, PARAMS, PARAM_SPECS, replicate_ember=True)
    assert set(jax.tree.leaves(optax.tree.get(replicated, "ScaleByEmberState"))) == {P()}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_state_shardings_spare_the_second_compilation(name):
    tx, mesh = TRANSFORMATIONS[name], make_mesh(AxisType.Auto)
    param_shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), PARAM_SPECS)
    params = jax.device_put(jax.tree.map(lambda p: jnp.ones(p.shape), PARAMS), param_shardings)
    shardings = state_shardings(tx, params, param_shardings)

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(param_shardings, shardings))
    def step(params, opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = jax.jit(tx.init, out_shardings=shardings)(params)
    grads = jax.tree.map(jnp.copy, params)
    for _ in range(3):
        params, opt_state = step(params, opt_state, grads)
    assert step._cache_size() == 1
    token = optax.tree.get(opt_state, "nu_token")["embed"]["embedding"]
    assert token.sharding.spec == P("fsdp")


def test_eager_init_on_one_device():
    table = jax.device_put(jnp.ones((V, D)), jax.devices()[3])
    assert {leaf.devices().pop() for leaf in jax.tree.leaves(scale_by_ember().init(table))} == {jax.devices()[3]}


def test_square_and_stacked_tables():
    params = {"square": jax.ShapeDtypeStruct((D, D), jnp.float32), "stacked": jax.ShapeDtypeStruct((4, V, D), jnp.float32)}
    tables = {"square": EmberDimensionNumbers(1), "stacked": EmberDimensionNumbers(1, (0,))}
    specs = state_partition_specs(ember(1e-3, tables=tables), params, {"square": P("tp", "fsdp"), "stacked": P("a", "b", "c")})
    state = optax.tree.get(specs, "ScaleByEmberState")
    assert (state.nu_token["square"], state.nu_feature["square"]) == (P("fsdp"), P("tp"))
    assert (state.nu_token["stacked"], state.nu_feature["stacked"]) == (P("a", "b"), P("a", "c"))
    assert state.count["stacked"] == P("a")


def test_factored_body():
    """optax.adafactor drops the longer axis first, factors nothing below 128; its vectors follow their own axes all the same."""
    shapes = {"tall": (512, 256), "wide": (256, 512), "square": (256, 256), "small": (64, 32), "bias": (512,)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {name: P(*("fsdp", "tp")[: len(shape)]) for name, shape in shapes.items()}
    tx = optax.adafactor(1e-2)
    found = optax.tree.get(state_partition_specs(tx, params, specs), "FactoredState")
    assert (found.v_row["tall"], found.v_col["tall"]) == (P("tp"), P("fsdp"))
    assert (found.v_row["wide"], found.v_col["wide"]) == (P("fsdp"), P("tp"))
    assert {found.v_row["square"], found.v_col["square"]} == {P("fsdp"), P("tp")}
    assert (found.v["bias"], found.v_row["bias"], found.v_row["small"]) == (P("fsdp"), P(), P())
    assert found.v["small"] == P("fsdp", "tp"), "a second moment that is not factored is as large as its parameter"


@pytest.mark.parametrize("longest", [256, 10**9])
def test_body_with_square_statistics(longest):
    """Shampoo keeps one for each axis, and none for an axis that is too long: neither twice the same mesh axis, nor a failure."""

    def init(params):
        return jax.tree.map(lambda p: [jnp.eye(size) if size <= longest else None for size in p.shape], params)

    body = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    params = {**PARAMS, "wide": jax.ShapeDtypeStruct((64, 512), jnp.float32)}
    tx = ember(1e-3, body)
    specs = state_partition_specs(tx, params, {**PARAM_SPECS, "wide": P("fsdp", "tp")})
    assert jax.tree.structure(specs) == jax.tree.structure(jax.eval_shape(tx.init, params))
    assert set(jax.tree.leaves(specs.inner_states["body"])) <= {P(), P("fsdp"), P("tp")}


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


class TestMistakes:
    params: ClassVar = {"embed": jax.ShapeDtypeStruct((50257, D), jnp.float32)}

    @pytest.mark.parametrize(
        "specs, error, message",
        [
            ({"embed": P("fsdp", None, None)}, ValueError, r"'embed' has 3 entries, but its shape \(50257, 40\) has 2 axes"),
            ({"embed": "fsdp"}, TypeError, r"the spec of 'embed' must be a PartitionSpec, got 'fsdp' of type str"),
            (
                {"embed": P("fdsp")},
                ValueError,
                r"of 'embed' names the mesh axis 'fdsp', but the mesh in use has the axes \('tp', 'fsdp'\)",
            ),
            ({"wte": P()}, ValueError, r"do not have the structure of the parameters \['embed'\]"),
        ],
    )
    def test_specs(self, specs, error, message):
        with jax.set_mesh(make_mesh(AxisType.Auto)), pytest.raises(error, match=message):
            state_partition_specs(ember(1e-3), self.params, specs)

    def test_mesh_axes(self):
        with pytest.raises(TypeError, match=r"token_mesh_axes must be a mesh axis name or a tuple of them, got 3"):
            scale_by_ember(token_mesh_axes=3)
        g = jnp.ones((V, D))
        for argument, name in (("token_mesh_axes", "fdsp"), ("feature_mesh_axes", "tp")):
            tx = scale_by_ember(**{argument: name})
            message = f"{argument} names '{name}', which is no mesh axis that jax.shard_map splits arrays over at this place"
            with jax.set_mesh(make_mesh(AxisType.Auto)), pytest.raises(ValueError, match=message):
                shard = jax.shard_map if name == "fdsp" else lambda f, **_: jax.jit(f)
                shard(lambda g, tx=tx: tx.update(g, tx.init(g))[0], in_specs=P("fsdp"), out_specs=P("fsdp"))(g)

    def test_mesh_axis_named_twice(self):
        for axes in ({"token_mesh_axes": ("tp", "tp")}, {"token_mesh_axes": "tp", "feature_mesh_axes": "tp"}):
            with pytest.raises(ValueError, match="name a mesh axis twice"):
                scale_by_ember(**axes)
        with pytest.raises(TypeError, match=r"token_mesh_axes must be a mesh axis name or a tuple of them, got \('',\)"):
            scale_by_ember(token_mesh_axes="")

    def test_mesh_axis_over_which_the_table_is_whole(self):
        tx = scale_by_ember(token_mesh_axes="tp")
        message = r"gradient of '' is the same along the mesh axes \['tp'\], .* and differs along \['fsdp'\]"
        with jax.set_mesh(make_mesh(AxisType.Auto)), pytest.raises(ValueError, match=message):
            jax.shard_map(lambda g: tx.update(g, tx.init(g))[0], in_specs=P("fsdp"), out_specs=P("fsdp"))(jnp.ones((V, D)))

    def test_explicit_mesh_that_is_not_set(self):
        params = jax.device_put({"embed": jnp.ones((V, D))}, NamedSharding(make_mesh(AxisType.Explicit), P("fsdp")))
        with pytest.raises(ValueError, match=r"jax\.set_mesh"):
            jax.jit(ember(1e-3).init)(params)

    def test_shardings(self):
        mesh, other = make_mesh(AxisType.Auto), jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        with pytest.raises(TypeError, match=r"sharding of 'embed' must be a NamedSharding, got P"):
            state_shardings(ember(1e-3), self.params, P())
        with pytest.raises(ValueError, match=r"axis 0 of 'embed', of size 50257, .* 4 devices .* to 50432, a multiple of 256"):
            state_shardings(ember(1e-3), self.params, NamedSharding(mesh, P("fsdp")))
        two = {"embed": self.params["embed"], "mlp": self.params["embed"]}
        with pytest.raises(ValueError, match="2 different meshes"):
            state_shardings(ember(1e-3), two, {"embed": NamedSharding(mesh, P()), "mlp": NamedSharding(other, P())})
