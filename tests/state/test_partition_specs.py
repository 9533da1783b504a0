"""The state's partition specs follow from those of the parameters, whatever stands around Ember and in the body."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import D, V, make_mesh
from steps import dense_step

from ember_optax import EmberDimensionNumbers, ember, state_partition_specs, state_shardings

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
    "ember": ember(1e-3, optax.adamw(1e-3)),
    "weight decay and schedule": ember(
        optax.cosine_decay_schedule(1e-3, 100), optax.adamw(optax.cosine_decay_schedule(1e-3, 100)), weight_decay=0.1
    ),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), ember(1e-3, optax.adamw(1e-3)), optax.ema(0.9)),
    "two rates": ember(1e-3, optax.adamw(1e-3), head_learning_rate=optax.linear_schedule(1e-3, 1e-4, 9)),
    "muon": ember(1e-3, optax.contrib.muon(1e-2)),
    "adafactor": ember(1e-3, optax.adafactor(1e-2, min_dim_size_to_factor=8)),
    "inject_hyperparams": optax.inject_hyperparams(ember)(learning_rate=1e-3, body=optax.adamw(1e-3)),
    "MultiSteps": optax.MultiSteps(ember(1e-3, optax.adamw(1e-3)), 2),
    "apply_if_finite": optax.apply_if_finite(ember(1e-3, optax.adamw(1e-3)), 3),
    "frozen body": optax.partition(
        {"train": ember(1e-3, optax.adamw(1e-3)), "freeze": optax.set_to_zero()},
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

    step = jax.jit(dense_step(tx), donate_argnums=(0, 1), out_shardings=(param_shardings, shardings))
    opt_state = jax.jit(tx.init, out_shardings=shardings)(params)
    grads = jax.tree.map(jnp.copy, params)
    for _ in range(3):
        params, opt_state = step(params, opt_state, grads)
    assert step._cache_size() == 1
    token = optax.tree.get(opt_state, "nu_token")["embed"]["embedding"]
    assert token.sharding.spec == P("fsdp")


def test_square_and_stacked_tables():
    params = {"square": jax.ShapeDtypeStruct((D, D), jnp.float32), "stacked": jax.ShapeDtypeStruct((4, V, D), jnp.float32)}
    tables = {"square": EmberDimensionNumbers(1), "stacked": EmberDimensionNumbers(1, (0,))}
    specs = state_partition_specs(
        ember(1e-3, optax.adamw(1e-3), tables=tables), params, {"square": P("tp", "fsdp"), "stacked": P("a", "b", "c")}
    )
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
