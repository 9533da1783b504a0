"""Models of Haliax: each vector of the state carries the names of its own axes, in layouts, checkpoints and vocabularies."""

import functools
import warnings

import equinox as eqx
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from ember_optax import (
    EmberDimensionNumbers,
    check_shapes,
    checksums,
    ember,
    geometry,
    row_sparse,
    scale_by_ember,
    skipped_batches,
    state_from_adam,
    state_shardings,
    token_tables,
    vocab,
)
from ember_optax._tree.boxes import is_box
from ember_optax._tree.paths import flatten_named

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import haliax as hax
        import haliax.nn as hnn
except ImportError as error:  # haliax 1.3 uses names that newer versions of jax do not have
    pytest.skip(f"haliax cannot be imported: {error}", allow_module_level=True)

from ember_optax.integrations.haliax import Embedding

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:haliax")
V, D, T = 32, 16, 6
VOCAB, EMBED, MLP, POS, BATCH = (
    hax.Axis(name, size) for name, size in (("vocab", V), ("embed", D), ("mlp", 24), ("position", T), ("batch", 4))
)
TOKENS = hax.named(np.random.default_rng(0).integers(0, V, (4, T)), ("batch", "position"))
MAPPING = {"vocab": "model", "embed": "data"}
TX = ember(1e-2, optax.adamw(1e-2))


class Model(eqx.Module):
    token_embeddings: hnn.Embedding
    up: hnn.Linear
    down: hnn.Linear
    lm_head: hnn.Linear | None

    @staticmethod
    def init(tied=False):
        keys = jax.random.split(jax.random.key(0), 4)
        return Model(
            hnn.Embedding.init(VOCAB, EMBED, key=keys[0]),
            hnn.Linear.init(EMBED, MLP, key=keys[1]),
            hnn.Linear.init(MLP, EMBED, key=keys[2]),
            None if tied else hnn.Linear.init(EMBED, VOCAB, key=keys[3], use_bias=False),
        )

    def __call__(self, ids):
        x = self.token_embeddings.embed(ids)
        return self.head(x + self.down(hax.nn.gelu(self.up(x))))

    def head(self, x):
        return self.token_embeddings.unembed(x) if self.lm_head is None else self.lm_head(x)


def next_token_loss(logits):
    """Of the token itself: it is as good a task as any."""
    logits = logits.rearrange(("batch", "position", "vocab")).array
    return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS.array).mean()


def loss_fn(model):
    return next_token_loss(model(TOKENS))


def step(params, opt_state, tx=TX):
    loss, grads = eqx.filter_value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return eqx.apply_updates(params, updates), opt_state, loss


def trained(params, opt_state, steps, run):
    losses = []
    for _ in range(steps):
        params, opt_state, loss = run(params, opt_state)
        losses.append(float(loss))
    return params, opt_state, losses


def mesh_of(devices):
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((devices // 2, 2), ("model", "data"), axis_types=types, devices=jax.devices()[:devices])


def ember_state(opt_state):
    return optax.tree.get(opt_state, "ScaleByEmberState")


def axes_of(tree):
    """The names of the axes of each box in a tree."""
    names, boxes, _ = flatten_named(tree)
    return {name: tuple(axis.name for axis in box.axes) for name, box in zip(names, boxes, strict=True) if is_box(box)}


def assert_close(ours, theirs, rtol=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6), ours, theirs)


@functools.cache
def on_one_device(tied=False, steps=4):
    params = Model.init(tied)
    return trained(params, TX.init(params), steps, eqx.filter_jit(step))


def test_each_field_carries_the_names_of_its_axes():
    state = ember_state(TX.init(Model.init()))
    tables = ("token_embeddings/weight", "lm_head/weight")
    assert axes_of(state.nu_token) == dict.fromkeys(tables, ("vocab",))
    assert axes_of(state.nu_feature) == dict.fromkeys(tables, ("embed",))
    assert axes_of(state.count) == axes_of(state.total_notfinite) == dict.fromkeys(tables, ())
    assert all(box.array.shape == tuple(axis.size for axis in box.axes) for box in jax.tree.leaves(state, is_leaf=is_box))


SHAPES = {
    "features of two axes": ((("vocab", 8), ("heads", 2), ("size", 3)), ("vocab",), ("heads", "size")),
    "tokens last": ((("embed", 4), ("vocab", 8)), ("vocab",), ("embed",)),
    "stacked": ((("layers", 2), ("vocab", 8), ("embed", 4)), ("layers", "vocab"), ("layers", "embed")),
    "square": ((("vocab", 4), ("embed", 4)), ("vocab",), ("embed",)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_axes_of_other_tables(shape):
    axes, of_tokens, of_features = SHAPES[shape]
    names = [name for name, _ in axes]
    numbers = EmberDimensionNumbers(names.index("vocab"), (0,) if shape == "stacked" else ())
    params = {"table": hax.ones([hax.Axis(*axis) for axis in axes])}
    tx = scale_by_ember(dimension_numbers=numbers)
    _, state = tx.update(params, tx.init(params), params)
    assert axes_of(state.nu_token)["table"] == of_tokens and axes_of(state.nu_feature)["table"] == of_features
    assert all(box.array.shape == tuple(axis.size for axis in box.axes) for box in jax.tree.leaves(state, is_leaf=is_box))


def test_what_a_filter_leaves_empty_is_no_parameter():
    params = {"wte": hax.ones((VOCAB, EMBED)), "ids": hax.arange(POS)}
    filtered = eqx.filter(params, eqx.is_inexact_array)
    assert filtered["ids"].array is None
    state = TX.init(filtered)
    TX.update(filtered, state, filtered)
    assert axes_of(ember_state(state).nu_token) == {"wte": ("vocab",)}


@pytest.mark.parametrize("tied", [False, True])
def test_the_finder(tied):
    names, values, _ = flatten_named(token_tables(Model.init(tied)), is_leaf=lambda x: x is None)
    found = {name: value.token_axis for name, value in zip(names, values, strict=True) if value is not None}
    assert found == ({"token_embeddings/weight": 0} | ({} if tied else {"lm_head/weight": 0}))


@pytest.mark.parametrize("tied", [False, True])
def test_sharded_by_names(tied):
    """As Levanter does it: `hax.shard` and `hax.named_jit` with a mapping from axes to the mesh."""
    with jax.set_mesh(mesh_of(8)):
        params = hax.shard(Model.init(tied), MAPPING)
        opt_state = hax.named_jit(TX.init, axis_resources=MAPPING)(params)
        hax.shard(opt_state, MAPPING)
        state = ember_state(opt_state)
        assert state.nu_token.token_embeddings.weight.array.sharding.spec == jax.P("model")
        assert state.nu_feature.token_embeddings.weight.array.sharding.spec == jax.P("data")
        run = hax.named_jit(step, axis_resources=MAPPING)
        params, opt_state, losses = trained(params, opt_state, 4, run)
        assert ember_state(opt_state).nu_token.token_embeddings.weight.array.sharding.spec == jax.P("model")
    expected = on_one_device(tied)
    assert_close(params, expected[0])
    np.testing.assert_allclose(losses, expected[2], rtol=1e-5)
    assert losses[-1] < losses[0]


def test_state_shardings_are_those_of_the_names():
    with jax.set_mesh(mesh_of(8)):
        params = hax.shard(Model.init(), MAPPING)
        placed = hax.partitioning.infer_resource_partitions(params, MAPPING)
        shardings = state_shardings(TX, params, placed)
        ours = jax.jit(TX.init, out_shardings=shardings)(params)
        theirs = hax.named_jit(TX.init, axis_resources=MAPPING)(params)
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), ours, theirs)
    assert jax.tree.all(same), same


@pytest.mark.parametrize("devices", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_saved_and_restored(devices, tmp_path):
    """On the same devices, or on fewer: goes on as if nothing had happened."""
    before, state, _ = on_one_device(steps=2)
    with jax.set_mesh(mesh_of(8)):
        params = hax.shard(Model.init(), MAPPING)
        opt_state = hax.named_jit(TX.init, axis_resources=MAPPING)(params)
        params, opt_state, _ = trained(params, opt_state, 2, hax.named_jit(step, axis_resources=MAPPING))
    assert_close((params, opt_state), (before, state))
    saved = checksums((params, opt_state))
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.StandardSave({"params": params, "opt_state": opt_state}))
    handler = ocp.StandardCheckpointHandler()
    with jax.set_mesh(mesh_of(devices)), ocp.CheckpointManager(tmp_path, item_handlers=handler) as manager:
        abstract = jax.eval_shape(lambda: {"params": Model.init(), "opt_state": TX.init(Model.init())})
        check_shapes(manager.item_metadata(1).tree, abstract)
        placed = hax.partitioning.infer_resource_partitions(abstract["params"], MAPPING, preserve_existing_shardings=False)
        shardings = {"params": spread(placed, abstract["params"]), "opt_state": state_shardings(TX, abstract["params"], placed)}
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        restored = manager.restore(1, args=ocp.args.StandardRestore(target))
        params, opt_state = restored["params"], restored["opt_state"]
        assert checksums((params, opt_state)) == saved
        assert ember_state(opt_state).nu_token.lm_head.weight.array.sharding.spec == jax.P("model")
        params, opt_state, _ = trained(params, opt_state, 2, hax.named_jit(step, axis_resources=MAPPING))
    assert_close((params, opt_state), on_one_device()[:2])


def spread(shardings, params):
    """One sharding for each array, in the parameters' own boxes."""
    return jax.tree.map(lambda sharding, part: jax.tree.map(lambda _: sharding, part), shardings, params)


@pytest.mark.parametrize("wrap", [optax.MultiSteps, lambda tx, _: optax.chain(optax.clip_by_global_norm(1.0), tx)])
def test_wrapped(wrap):
    tx = wrap(TX, 2)
    with jax.set_mesh(mesh_of(8)):
        params = hax.shard(Model.init(), MAPPING)
        opt_state = hax.named_jit(tx.init, axis_resources=MAPPING)(params)
        _, opt_state, _ = hax.named_jit(functools.partial(step, tx=tx), axis_resources=MAPPING)(params, opt_state)
        hax.shard(opt_state, MAPPING)


@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_that_grows_and_is_pruned(tied):
    params, opt_state, _ = on_one_device(tied)
    grown = vocab.resize(TX, params, opt_state, V + 8)
    for tree in grown[:2]:
        boxes = [box for box in jax.tree.leaves(tree, is_leaf=is_box) if is_box(box)]
        assert all(box.array.shape == tuple(axis.size for axis in box.axes) for box in boxes)
    assert grown.params.token_embeddings.weight.resolve_axis("vocab").size == V + 8
    assert ember_state(grown.opt_state).nu_token.token_embeddings.weight.axes == (hax.Axis("vocab", V + 8),)
    np.testing.assert_array_equal(grown.params.token_embeddings.weight.array[:V], params.token_embeddings.weight.array)
    # Haliax looks rows up along the module's own axis, which has to have the new size in parameters and state.
    assert grown.params.token_embeddings.Vocab == hax.Axis("vocab", V + 8)
    params, opt_state, losses = trained(grown.params, grown.opt_state, 3, eqx.filter_jit(step))
    assert losses[-1] < losses[0]
    back = vocab.take(TX, params, opt_state, np.arange(V))
    assert jax.tree.structure(back[:2]) == jax.tree.structure(on_one_device(tied)[:2])
    trained(back.params, back.opt_state, 1, eqx.filter_jit(step))


def test_a_module_keeps_the_axis_that_one_of_its_arrays_keeps():
    class Two(eqx.Module):
        users: hnn.Embedding
        items: hnn.Embedding
        both: hax.Axis = eqx.field(static=True)

    model = Two(*(hnn.Embedding.init(VOCAB, EMBED, key=jax.random.key(i)) for i in range(2)), VOCAB)
    grown = vocab.resize(None, model, None, V + 1, tables=EmberDimensionNumbers(), names=["items/.*"]).params
    assert (grown.users.Vocab, grown.both, grown.items.Vocab) == (VOCAB, VOCAB, hax.Axis("vocab", V + 1))


def test_a_vocabulary_that_grows_on_a_mesh():
    expected = vocab.resize(TX, *on_one_device()[:2], V + 8)
    with jax.set_mesh(mesh_of(8)):
        put = hax.shard(on_one_device()[:2], MAPPING)
        grown = vocab.resize(TX, *put, V + 8)
        assert grown.params.token_embeddings.weight.array.sharding.spec == jax.P("model", "data")
        assert ember_state(grown.opt_state).nu_token.lm_head.weight.array.sharding.spec == jax.P("model")
    assert_close(grown[:2], expected[:2])


@pytest.mark.parametrize("layer", ["the project's", "Haliax's own, read through `.array`"])
def test_row_sparse_steps(layer):
    params, opt_state, _ = on_one_device()

    def sparse_loss(model):
        if layer != "the project's":
            rows = hax.named(model.token_embeddings.weight.array[TOKENS.array], ("batch", "position", "embed"))
            return next_token_loss(model.head(rows + model.down(hax.nn.gelu(model.up(rows)))))
        table = Embedding(**vars(model.token_embeddings))
        return next_token_loss(eqx.tree_at(lambda model: model.token_embeddings, model, table)(TOKENS))

    @eqx.filter_jit
    def sparse_step(params, opt_state):
        ids = {"token_embeddings/weight": TOKENS.array}
        loss, grads = row_sparse.value_and_grad(sparse_loss)(params, ids)
        updates, opt_state = TX.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    ours, expected = sparse_step(params, opt_state), eqx.filter_jit(step)(params, opt_state)
    assert_close(ours, expected)


def test_the_layer():
    """With a whole table it is Haliax's; with rows it looks up, and refuses to be a tied head."""
    key = jax.random.key(0)
    ours, theirs = (of.init(VOCAB, (EMBED, MLP), key=key, init_scale=2.0) for of in (Embedding, hnn.Embedding))
    assert isinstance(ours, Embedding) and ours.Vocab == VOCAB
    np.testing.assert_array_equal(ours(TOKENS).array, theirs(TOKENS).array)
    assert ours.unembed(ours(TOKENS)).axes == theirs.unembed(theirs(TOKENS)).axes

    def of_rows(model):
        looked_up = model.embed(TOKENS)
        assert looked_up.axes == theirs(TOKENS).axes
        return hax.sum(looked_up * theirs(TOKENS)).scalar()

    ids = {"weight": TOKENS.array}
    loss, _ = row_sparse.value_and_grad(of_rows, tables=EmberDimensionNumbers())(ours, ids)
    np.testing.assert_allclose(loss, hax.sum(theirs(TOKENS) ** 2).scalar(), rtol=1e-5)
    with pytest.raises(TypeError, match=r"attend|whole|every row"):
        row_sparse.value_and_grad(lambda model: hax.sum(model.unembed(theirs(TOKENS))).scalar(), tables=EmberDimensionNumbers())(
            ours, ids
        )


@pytest.mark.slow
def test_report_conversion_and_counts():
    params, opt_state, _ = on_one_device()
    metrics = geometry.report(params, params, opt_state, spectral=False)
    assert metrics["geometry/token_embeddings/weight/steps"] == 4
    assert {"median_row_step", "mean_row_norm"} <= {name.split("/")[-1] for name in metrics if "lm_head/weight" in name}
    assert skipped_batches(opt_state) == {"token_embeddings/weight": 0, "lm_head/weight": 0}
    adam = optax.adamw(1e-2)
    _, adam_state = jax.jit(adam.update)(params, adam.init(params), params)
    converted = state_from_adam(TX, params, adam_state, adam_b2=0.999)
    _, expected = jax.jit(TX.update)(params, TX.init(params), params)
    assert_close(ember_state(converted), ember_state(expected))
