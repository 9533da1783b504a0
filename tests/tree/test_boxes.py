"""Sharding metadata around parameters (Linen's boxes, NNX's annotations): each state vector carries the names of its own axes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from next_token import TOKENS, D, V, assert_falls, needs_nnx_optimizer, next_token_loss, train_nnx

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember
from ember_optax._tree.paths import flatten_named


class BoxedModel(nn.Module):
    """Sharding names on the parameters: `nn.with_partitioning` or logical names, here mapped to the mesh's by a rule."""

    wrap: object

    @nn.compact
    def __call__(self, ids):
        normal = nn.initializers.normal(0.1)
        x = nn.Embed(V, D, embedding_init=self.wrap(normal, ("vocab", "embed")), name="embed")(ids)
        x = nn.Dense(D, kernel_init=self.wrap(normal, ("embed", "mlp")), name="mlp")(x)
        return nn.Dense(V, use_bias=False, kernel_init=self.wrap(normal, ("embed", "vocab")), name="lm_head")(x)


AXES = {"vocab": "fsdp", "embed": "tp", "mlp": None}


def mesh_2d():
    return jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def spec_names(tree):
    names, leaves, _ = flatten_named(tree, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    return {name: tuple(leaf) for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, jax.sharding.PartitionSpec)}


@pytest.mark.parametrize("logical", [False, True])
def test_linen_boxes(logical):
    """Flax's recipe: eval_shape, get_partition_spec, jit with out_shardings; then two updates that keep the shardings."""
    mesh = mesh_2d()
    wrap = nn.with_logical_partitioning if logical else nn.with_partitioning
    model = BoxedModel(wrap if logical else lambda f, names: wrap(f, tuple(AXES[name] for name in names)))
    tx = ember(3e-3, optax.adamw(3e-3))

    def init():
        params = model.init(jax.random.key(0), TOKENS[:, :-1])["params"]
        return params, tx.init(params)

    specs = nn.get_partition_spec(jax.eval_shape(init))
    if logical:
        specs = nn.logical_to_mesh(specs, tuple(AXES.items()))
    found = spec_names(specs[1])
    state = "inner_states/ember/inner_state/0"
    assert found[f"{state}/nu_token/embed/embedding"] == ("fsdp",)
    assert found[f"{state}/nu_feature/embed/embedding"] == ("tp",)
    assert found[f"{state}/nu_token/lm_head/kernel"] == ("fsdp",)
    assert found[f"{state}/nu_feature/lm_head/kernel"] == ("tp",)
    assert found[f"{state}/count/embed/embedding"] == ()
    assert found["inner_states/body/inner_state/0/mu/mlp/kernel"] == ("tp", None)
    shardings = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), specs)
    with jax.set_mesh(mesh):
        params, opt_state = jax.jit(init, out_shardings=shardings)()

        @functools.partial(jax.jit, out_shardings=(*shardings, None))
        def step(params, opt_state):
            def loss_fn(params):
                return next_token_loss(model.apply({"params": params}, TOKENS[:, :-1]))

            loss, grads = jax.value_and_grad(loss_fn)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        losses = []
        for _ in range(3):
            params, opt_state, loss = step(params, opt_state)
            losses.append(float(loss))
    assert_falls(losses)
    nu_token = nn.unbox(optax.tree.get(opt_state, "nu_token"))["embed"]["embedding"]
    assert nu_token.sharding.spec == jax.sharding.PartitionSpec("fsdp")
    assert jax.tree.structure(opt_state) == jax.tree.structure(jax.eval_shape(tx.init, params))


def annotated_nnx_model():
    normal = nnx.initializers.normal(0.1)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(V, D, embedding_init=nnx.with_partitioning(normal, ("fsdp", "tp")), rngs=rngs)
            self.mlp = nnx.Linear(D, D, kernel_init=nnx.with_partitioning(normal, ("tp", None)), rngs=rngs)
            head_init = nnx.with_partitioning(normal, ("tp", "fsdp"))
            self.lm_head = nnx.Linear(D, V, use_bias=False, kernel_init=head_init, rngs=rngs)

        def __call__(self, ids):
            return self.lm_head(nnx.gelu(self.mlp(self.embed(ids))))

    return Model(nnx.Rngs(0))


@needs_nnx_optimizer
def test_nnx_annotations_with_a_mesh():
    with jax.set_mesh(mesh_2d()):
        model = annotated_nnx_model()
        optimizer = nnx.Optimizer(model, ember(3e-3, optax.adamw(3e-3)), wrt=nnx.Param)
        specs = nnx.get_partition_spec(nnx.state(optimizer))
        found = {
            path: tuple(leaf.get_value() if hasattr(leaf, "get_value") else leaf.value)
            for path, leaf in nnx.to_flat_state(specs)
            if "nu_token" in map(str, path) or "nu_feature" in map(str, path)
        }
        assert {path[-3:]: spec for path, spec in found.items()} == {
            ("nu_token", "embed", "embedding"): ("fsdp",),
            ("nu_token", "lm_head", "kernel"): ("fsdp",),
            ("nu_feature", "embed", "embedding"): ("tp",),
            ("nu_feature", "lm_head", "kernel"): ("tp",),
        }
        assert_falls(train_nnx(model, optimizer, steps=3))


def test_nnx_annotations_without_a_mesh():
    """Names alone, no devices: the state's variables carry the names of the axes that they have."""
    params = {
        "embed": {"embedding": nnx.Param(jnp.ones((V, D)), out_sharding=("fsdp", "tp"), eager_sharding=False)},
        "mlp": {"kernel": nnx.Param(jnp.ones((D, D)), out_sharding=("tp", None), eager_sharding=False)},
    }
    tx = ember(3e-3, optax.adamw(3e-3))
    opt_state = tx.init(params)
    state = optax.tree.get(opt_state, "ScaleByEmberState")
    names = {field: getattr(state, field)["embed"]["embedding"].get_metadata()["out_sharding"] for field in state._fields}
    assert names == {"count": (), "nu_token": ("fsdp",), "nu_feature": ("tp",), "total_notfinite": ()}
    for _ in range(2):
        updates, opt_state = tx.update(params, opt_state, params)
    assert jax.tree.structure(opt_state) == jax.tree.structure(tx.init(params))
    assert updates["embed"]["embedding"].get_metadata()["out_sharding"] == ("fsdp", "tp")


def test_parameters_that_are_wrapped_where_gradients_are_not():
    """Found by their names: a decay that reads the parameters is the same."""
    table = jnp.arange(1.0, 1 + V * D).reshape(V, D)
    grads = {"wte": table, "wpe_embed": table[:9]}
    tx = ember(1e-2, optax.adamw(1e-2), weight_decay=0.5, tables=EmberDimensionNumbers())
    plain, _ = tx.update(grads, tx.init(grads), grads)
    wrapped, _ = tx.update(grads, tx.init(grads), {"wte": table, "wpe_embed": {"value": table[:9]}})
    jax.tree.map(np.testing.assert_array_equal, plain, wrapped)


@pytest.mark.parametrize(
    "box",
    [
        lambda table: nn.Partitioned(table, names=("fsdp",)),
        lambda table: nnx.Param(table, out_sharding=("fsdp",), eager_sharding=False),
    ],
    ids=["linen", "nnx"],
)
def test_fewer_names_than_axes(box):
    """The axes at the end have none."""
    state = optax.tree.get(ember(3e-3, optax.adamw(3e-3)).init({"wte": box(jnp.ones((V, D)))}), "ScaleByEmberState")
    token, feature = state.nu_token["wte"], state.nu_feature["wte"]
    if isinstance(token, nn.Partitioned):
        assert (token.names, feature.names) == (("fsdp",), ())
    else:
        assert (token.get_metadata()["out_sharding"], feature.get_metadata()["out_sharding"]) == (("fsdp",), ())


def test_explicit_dimension_numbers_with_boxes():
    box = nn.Partitioned(jnp.ones((D, V)), names=("tp", "fsdp"))
    tx = ember(3e-3, optax.sgd(0.1), tables={"out": EmberDimensionNumbers(1), "mlp": None})
    params = {"out": box, "mlp": jnp.ones((D, D))}
    updates, state = tx.update(params, tx.init(params), params)
    assert optax.tree.get(state, "nu_token")["out"].names == ("fsdp",)
    stacked = nn.Partitioned(jnp.ones((V, 3, D)), names=("fsdp", "layers", "tp"))
    tx = ember(3e-3, optax.sgd(0.1), tables=EmberDimensionNumbers(0, (1,)))
    state = optax.tree.get(tx.init({"wte": stacked}), "ScaleByEmberState")
    assert state.nu_token["wte"].names == ("fsdp", "layers")
    assert state.nu_feature["wte"].names == ("layers", "tp")
    assert updates["out"].names == ("tp", "fsdp")


def test_a_box_emptied_by_a_mask():
    """`optax.masked` with a mask of the parameters' own structure leaves boxes with nothing in them."""
    params = {name: nn.Partitioned(jnp.ones((V, D)), names=("fsdp", "tp")) for name in ("wte", "frozen")}
    mask = {"wte": jax.tree.map(lambda _: True, params["wte"]), "frozen": jax.tree.map(lambda _: False, params["frozen"])}
    tx = optax.masked(scale_by_ember(), mask)
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["frozen"].value is params["frozen"].value
    assert optax.tree.get(state, "nu_token")["wte"].names == ("fsdp",)
