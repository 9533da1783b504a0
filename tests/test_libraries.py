"""Real models of the libraries that people train with: the right tables, and five steps that lower the loss."""

import functools
import itertools
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from ember_optax import EmberDimensionNumbers, ember, scale_by_ember, token_tables
from ember_optax._paths import flatten_named

V, D, T = 96, 16, 12  # V divides the meshes below
TOKENS = jax.random.randint(jax.random.key(0), (4, T + 1), 0, V)
FLAX_0_12 = tuple(map(int, __import__("flax").__version__.split(".")[:2])) >= (0, 12)


def next_token_loss(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).mean()


def tables_of(params, **options):
    """Path and token axis of each table found."""
    names, values, _ = flatten_named(token_tables(params, **options), is_leaf=lambda x: x is None)
    return {name: value.token_axis for name, value in zip(names, values, strict=True) if value is not None}


def train(params, loss_fn, tx, steps=5):
    @jax.jit
    def step(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = tx.init(params), []
    for _ in range(steps):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    return losses


def assert_falls(losses):
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses


class Layer(nn.Module):
    """A residual block with an embedding of its own, as in models with value embeddings."""

    @nn.compact
    def __call__(self, x, ids):
        x = x + nn.Dense(D)(nn.gelu(nn.Dense(2 * D)(nn.RMSNorm()(x))))
        return x + nn.Embed(V, D, name="value_embed")(ids), None


class LinenModel(nn.Module):
    """Layers under `nn.scan`; the head is tied by `attend` or stands apart."""

    tied: bool

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(V, D, name="embed")
        x = embed(ids) + nn.Embed(T, D, name="pos_embed")(jnp.arange(T))
        layers = nn.scan(Layer, {"params": 0}, split_rngs={"params": True}, length=3, in_axes=nn.broadcast)
        x, _ = layers(name="layers")(x, ids)
        return embed.attend(x) if self.tied else nn.Dense(V, use_bias=False, name="lm_head")(x)


@pytest.mark.parametrize("tied", [True, False])
def test_linen_train_state(tied):
    model = LinenModel(tied)
    params = model.init(jax.random.key(1), TOKENS[:, :-1])["params"]
    expected = {"embed/embedding": 0, "layers/value_embed/embedding": 1}
    assert tables_of(params) == expected if tied else expected | {"lm_head/kernel": 1}
    state, losses = TrainState.create(apply_fn=model.apply, params=params, tx=ember(3e-3)), []

    @jax.jit
    def step(state):
        loss, grads = jax.value_and_grad(lambda p: next_token_loss(state.apply_fn({"params": p}, TOKENS[:, :-1])))(state.params)
        return state.apply_gradients(grads=grads), loss

    for _ in range(5):
        state, loss = step(state)
        losses.append(float(loss))
    assert_falls(losses)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.wte = nnx.Embed(V, D, rngs=rngs)
        self.wpe = nnx.Embed(T, D, rngs=rngs)
        self.mlp = nnx.Linear(D, D, rngs=rngs)
        self.lm_head = nnx.Linear(D, V, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        x = self.wte(ids) + self.wpe(jnp.arange(ids.shape[1]))
        return self.lm_head(x + nnx.gelu(self.mlp(x)))


@pytest.mark.skipif(
    not FLAX_0_12, reason="nnx.Optimizer of Flax 0.11 fails on any optax.partition: tuple indices must be integers"
)
def test_nnx_optimizer():
    model = NnxModel(nnx.Rngs(0))
    assert tables_of(nnx.state(model, nnx.Param)) == {"wte/embedding": 0, "lm_head/kernel": 1}
    optimizer = nnx.Optimizer(model, ember(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: next_token_loss(m(TOKENS[:, :-1])))(model)
        optimizer.update(model, grads)
        return loss

    assert_falls([float(step(model, optimizer)) for _ in range(5)])


def test_nnx_functional():
    """What also works with Flax 0.11, where `nnx.Optimizer` and `optax.partition` do not."""
    graph, state = nnx.split(NnxModel(nnx.Rngs(0)), nnx.Param)
    assert tables_of(nnx.to_pure_dict(state)) == {"wte/embedding": 0, "lm_head/kernel": 1}

    def loss_fn(params):
        restored = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(restored, params)
        return next_token_loss(nnx.merge(graph, restored)(TOKENS[:, :-1]))

    assert_falls(train(nnx.to_pure_dict(state), loss_fn, ember(3e-3)))


class EquinoxModel(eqx.Module):
    embed: eqx.nn.Embedding
    pos_embed: jax.Array
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(V, D, key=keys[0])
        self.pos_embed = jnp.zeros((T, D))
        self.mlp = eqx.nn.MLP(D, D, 2 * D, 1, key=keys[1])
        self.head = eqx.nn.Linear(D, V, use_bias=False, key=keys[2])

    def __call__(self, ids):
        x = jax.vmap(self.embed)(ids) + self.pos_embed
        return jax.vmap(self.head)(x + jax.vmap(self.mlp)(x))


def test_equinox():
    """The model is callable and so is every tree of its structure; the head's name says nothing, so it is included."""
    model = EquinoxModel(jax.random.key(0))
    include = ["head/weight"]
    assert tables_of(eqx.filter(model, eqx.is_inexact_array)) == {"embed/weight": 0}
    assert tables_of(eqx.filter(model, eqx.is_inexact_array), include=include) == {"embed/weight": 0, "head/weight": 0}
    tx = ember(3e-3, tables=functools.partial(token_tables, include=include))
    opt_state, losses = tx.init(eqx.filter(model, eqx.is_inexact_array)), []

    @eqx.filter_jit
    def step(model, opt_state):
        loss, grads = eqx.filter_value_and_grad(lambda m: next_token_loss(jax.vmap(m)(TOKENS[:, :-1])))(model)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state, loss

    for _ in range(5):
        model, opt_state, loss = step(model, opt_state)
        losses.append(float(loss))
    assert_falls(losses)


def test_a_whole_equinox_model_is_refused_with_the_cure():
    with pytest.raises(TypeError, match=r"'mlp/activation' is .*, not an array.*eqx\.filter\(model, eqx\.is_inexact_array\)"):
        ember(3e-3).init(EquinoxModel(jax.random.key(0)))


def test_haiku():
    def forward(ids):
        x = hk.Embed(V, D, name="token_embed")(ids) + hk.get_parameter("pos_embed", (T, D), init=jnp.zeros)
        return hk.Linear(V, with_bias=False, name="lm_head")(x + hk.nets.MLP([2 * D, D])(x))

    model = hk.without_apply_rng(hk.transform(forward))
    params = model.init(jax.random.key(0), TOKENS[:, :-1])
    assert tables_of(params) == {"token_embed/embeddings": 0, "lm_head/w": 1}
    assert_falls(train(params, lambda p: next_token_loss(model.apply(p, TOKENS[:, :-1])), ember(3e-3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
def test_keras():
    keras = pytest.importorskip("keras")
    ids = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(V, D, name="token_embedding")(ids)
    x = keras.layers.Dense(D, activation="gelu", name="mlp")(x)
    model = keras.Model(ids, keras.layers.Dense(V, use_bias=False, name="lm_head")(x))
    params = {variable.path: variable.value for variable in model.trainable_variables}
    assert tables_of(params) == {"token_embedding/embeddings": 0, "lm_head/kernel": 1}

    def loss_fn(params):
        trainable = [params[variable.path] for variable in model.trainable_variables]
        logits, _ = model.stateless_call(trainable, [v.value for v in model.non_trainable_variables], TOKENS[:, :-1])
        return next_token_loss(logits)

    assert_falls(train(params, loss_fn, ember(3e-3)))


def test_recurrentgemma():
    """A published language model: Griffin with its recurrent and attention blocks, tied embedding."""
    griffin = pytest.importorskip("recurrentgemma.jax")
    config = griffin.GriffinConfig(
        vocab_size=V,
        width=D,
        mlp_expanded_width=2 * D,
        lru_width=D,
        num_heads=2,
        block_types=(griffin.TemporalBlockType.RECURRENT, griffin.TemporalBlockType.ATTENTION),
        embeddings_scale_by_sqrt_dim=True,
        attention_window_size=T,
        logits_soft_cap=30.0,
        scan_type=griffin.ScanType.LINEAR_NATIVE,
    )
    model = griffin.Griffin(config)
    positions = jnp.broadcast_to(jnp.arange(T), (4, T))
    params = model.init(jax.random.key(0), TOKENS[:, :-1], positions)["params"]
    assert tables_of(params) == {"embedder/input_embedding": 0}

    def loss_fn(params):
        return next_token_loss(model.apply({"params": params}, TOKENS[:, :-1], positions)[0])

    assert_falls(train(params, loss_fn, ember(3e-3)))


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
    tx = ember(3e-3)

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


@pytest.mark.skipif(
    not FLAX_0_12, reason="nnx.Optimizer of Flax 0.11 fails on any optax.partition: tuple indices must be integers"
)
def test_nnx_annotations_with_a_mesh():
    with jax.set_mesh(mesh_2d()):
        model = annotated_nnx_model()
        optimizer = nnx.Optimizer(model, ember(3e-3), wrt=nnx.Param)
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

        @nnx.jit
        def step(model, optimizer):
            loss, grads = nnx.value_and_grad(lambda m: next_token_loss(m(TOKENS[:, :-1])))(model)
            optimizer.update(model, grads)
            return loss

        assert_falls([float(step(model, optimizer)) for _ in range(3)])


def test_nnx_annotations_without_a_mesh():
    """Names alone, no devices: the state's variables carry the names of the axes that they have."""
    params = {
        "embed": {"embedding": nnx.Param(jnp.ones((V, D)), out_sharding=("fsdp", "tp"), eager_sharding=False)},
        "mlp": {"kernel": nnx.Param(jnp.ones((D, D)), out_sharding=("tp", None), eager_sharding=False)},
    }
    tx = ember(3e-3)
    opt_state = tx.init(params)
    state = optax.tree.get(opt_state, "ScaleByEmberState")
    names = {field: getattr(state, field)["embed"]["embedding"].get_metadata()["out_sharding"] for field in state._fields}
    assert names == {"count": (), "nu_token": ("fsdp",), "nu_feature": ("tp",), "total_notfinite": ()}
    for _ in range(2):
        updates, opt_state = tx.update(params, opt_state, params)
    assert jax.tree.structure(opt_state) == jax.tree.structure(tx.init(params))
    assert updates["embed"]["embedding"].get_metadata()["out_sharding"] == ("fsdp", "tp")


class TestRecipes:
    """The recipes of docs/recipes.md do what they say."""

    def test_explicit_dimension_numbers_with_boxes(self):
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

    def test_a_box_emptied_by_a_mask(self):
        """`optax.masked` with a mask of the parameters' own structure leaves boxes with nothing in them."""
        params = {name: nn.Partitioned(jnp.ones((V, D)), names=("fsdp", "tp")) for name in ("wte", "frozen")}
        mask = {"wte": jax.tree.map(lambda _: True, params["wte"]), "frozen": jax.tree.map(lambda _: False, params["frozen"])}
        tx = optax.masked(scale_by_ember(), mask)
        updates, state = tx.update(params, tx.init(params), params)
        assert updates["frozen"].value is params["frozen"].value
        assert optax.tree.get(state, "nu_token")["wte"].names == ("fsdp",)
