"""The pattern of MaxText: Linen layers with logical axes, a scan over layers, `TrainState`, layouts by rules, micro-batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState

from ember_optax import checksums, ember, geometry, skipped_batches

V, D, LAYERS = 64, 16, 3
RULES = [("vocab", "tensor"), ("embed", "fsdp"), ("mlp", "tensor"), ("layers", None), ("batch", "fsdp")]
TOKENS = np.random.default_rng(0).integers(0, V, (8, 8))
RATE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 20)


def with_axes(init, *names):
    return nn.with_logical_partitioning(init, names)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        kernel = self.param("kernel", with_axes(nn.initializers.normal(0.1), "embed", "mlp"), (D, D))
        return x + jnp.tanh(x @ kernel), None


class Decoder(nn.Module):
    tied: bool

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(V, D, embedding_init=with_axes(nn.initializers.normal(0.1), "vocab", "embed"), name="token_embedder")
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = scanned(name="layers")(embed(tokens), None)
        if self.tied:
            return embed.attend(x)
        head = with_axes(nn.initializers.normal(0.1), "embed", "vocab")
        return nn.Dense(V, use_bias=False, kernel_init=head, name="logits_dense")(x)


def make(tied=False, tx=None):
    """The model, and the function that makes its state."""
    model = Decoder(tied)
    tx = ember(lambda step: 10 * RATE(step), optax.adamw(RATE)) if tx is None else tx

    def init(key):
        return TrainState.create(apply_fn=model.apply, params=model.init(key, TOKENS)["params"], tx=tx)

    return init


def step(state, tokens):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def laid_out(init, mesh):
    """The state on a mesh, and the step that keeps it there."""
    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(abstract), mesh, RULES)
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    data = jax.NamedSharding(mesh, jax.P("fsdp"))
    return state, jax.jit(step, in_shardings=(shardings, data), out_shardings=(shardings, None)), shardings


def run(state, step, steps):
    losses = []
    for _ in range(steps):
        state, loss = step(state, TOKENS)
        losses.append(float(loss))
    return state, losses


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_trains_saves_and_goes_on(tied, mesh, tmp_path):
    init = make(tied)
    state, on_mesh, shardings = laid_out(init, mesh)
    of_tables = optax.tree.get(state.opt_state, "ScaleByEmberState")
    for name in ["token_embedder"] + ([] if tied else ["logits_dense"]):
        assert jax.tree.leaves(of_tables.nu_token[name])[0].sharding.spec == jax.P("tensor")
        assert jax.tree.leaves(of_tables.nu_feature[name])[0].sharding.spec == jax.P("fsdp")
    state, losses = run(state, on_mesh, 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"params": state.params, "opt_state": state.opt_state})
    state, more = run(state, on_mesh, 3)
    expected, on_one = run(init(jax.random.key(0)), jax.jit(step), 6)
    np.testing.assert_allclose(losses + more, on_one, rtol=1e-5)
    assert on_one[-1] < on_one[1]

    def placed(sharding, box):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), box)

    target = jax.tree.map(placed, shardings, jax.eval_shape(init, jax.random.key(0)))
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(tmp_path / "state", {"params": target.params, "opt_state": target.opt_state})
    fresh, on_mesh, _ = laid_out(init, mesh)
    resumed, again = run(fresh.replace(step=3, **saved), on_mesh, 3)
    assert again == more
    assert checksums(resumed.params) == checksums(state.params)
    report = geometry.report(expected.params, opt_state=expected.opt_state, spectral=False)
    assert any("token_embedder" in name for name in report)
    assert set(skipped_batches(expected).values()) == {0}


@pytest.mark.slow
def test_micro_batches(mesh):
    """Two halves of a batch are a batch."""
    tx = optax.MultiSteps(ember(1e-2, optax.sgd(0.1)), 2)
    state, on_mesh, _ = laid_out(make(tx=tx), mesh)
    for half in (TOKENS[:4], TOKENS[4:]):
        state, _ = on_mesh(state, half)
    expected, _ = run(make(tx=ember(1e-2, optax.sgd(0.1)))(jax.random.key(0)), jax.jit(step), 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, expected.params)
