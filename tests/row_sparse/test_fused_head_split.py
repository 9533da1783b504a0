"""A fused head that is split by tokens: steps are those of one device, and nothing of the table's size is sent in a loop.

A device of the 2 x 4 mesh has 16 rows of 64. The gradient of a chunk is summed for `N = 24` hidden states, and hidden states are
gathered for `FEW = 8`.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fused import Model, assert_same, dense_step, fused_step, run, transformation
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from products import in_turn

from ember_optax import row_sparse, state_shardings, stochastic_rounding
from ember_optax.losses import linear_softmax_cross_entropy

V, D, N, FEW = 64, 16, 24, 8
ALL_OPTIONS = (("chunk", 4), ("soft_cap", 5.0), ("z_loss", 0.1), ("label_smoothing", 0.1))


def model_with(tied=False, token_axis=0, options=(("chunk", 4),), size=V, tokens=N, **others):
    """A model, and the same one with a head that is split over `vocab`."""
    model = Model(size, D, tokens, token_axis, tied, options=options, **others)
    return model, model._replace(options=(*options, ("token_mesh_axes", "vocab")))


def mesh_of(shape=(2, 4), kind=AxisType.Auto):
    names = ("data", "vocab") if len(shape) == 2 else ("data", "fsdp", "vocab")
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def run_split(model, tx, steps, mesh, head, steps_of=fused_step):
    """`run` on a mesh, with the head and the batch split."""
    of_params = {name: NamedSharding(mesh, head if name == "head" else P()) for name in model.params()}
    shardings = of_params, state_shardings(tx, jax.eval_shape(model.params), of_params)
    params, losses = jax.device_put(model.params(), of_params), []
    state = jax.device_put(tx.init(model.params()), shardings[1])
    step = steps_of(model, tx, lookups=model.tied)
    step = jax.jit(step.__wrapped__, out_shardings=(*shardings, None))
    with jax.set_mesh(mesh):
        for number in range(steps):
            given = jax.device_put(model.batch(number), NamedSharding(mesh, P("data")))
            params, state, loss = step(params, state, *given)
            losses.append(float(loss))
    return params, state, losses


def compare(models, steps=4, shape=(2, 4), head=None, **options):
    """Fused steps on eight devices against dense steps on one, behind clips by the global norm."""
    whole, split = models
    clipped, tx = (transformation(whole, clip, **options) for clip in (optax.clip_by_global_norm, row_sparse.clip_by_global_norm))
    head = (P("vocab") if whole.token_axis == 0 else P(None, "vocab")) if head is None else head
    found = run_split(split, tx, steps, mesh_of(shape), head)
    assert_same(found, run(lambda _: dense_step(whole, clipped), whole, clipped, steps), 2e-6)


@pytest.mark.parametrize("shape", [(2, 4), (1, 8), pytest.param((8, 1), marks=pytest.mark.slow)], ids=str)
def test_untied(shape):
    compare(model_with(), shape=shape)


@pytest.mark.parametrize("tokens", [40, pytest.param(FEW, marks=pytest.mark.slow)])
def test_two_axes_split_the_hidden_states(tokens):
    """Each of four devices steps its own share of the 32 rows that they have in common."""
    compare(model_with(tokens=tokens), steps=2, shape=(2, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4)], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_twenty_steps(tied, shape):
    compare(model_with(tied, options=ALL_OPTIONS), steps=20, shape=shape, weight_decay=0.1)


@pytest.mark.parametrize("token_axis, tokens", in_turn([0, 1], [N, FEW]))
def test_tied(token_axis, tokens):
    """With a mask, all options of the loss, and weight decay."""
    compare(model_with(True, token_axis, ALL_OPTIONS, masked=True, tokens=tokens), weight_decay=0.1)


@pytest.mark.parametrize("tokens", [pytest.param(N, marks=pytest.mark.slow), FEW])
def test_rows_that_devices_cannot_share_equally(tokens):
    """The last chunk of a device has one row for two devices."""
    compare(model_with(size=V + 4, tokens=tokens))


class TwoCalls(Model):
    """The loss of half of the tokens, and three times that of the other half."""

    def loss(self, params, ids, labels, where):
        half = self.tokens // 2
        hidden = self.hidden(params, ids)
        losses = [
            linear_softmax_cross_entropy(hidden[part], params["head"], labels[part], **dict(self.options))
            for part in (slice(half), slice(half, None))
        ]
        return losses[0].mean() + 3.0 * losses[1].mean()


@pytest.mark.parametrize("tokens", [N, pytest.param(FEW, marks=pytest.mark.slow)])
def test_two_calls(tokens):
    """Their gradients are added before they are squared."""
    compare(tuple(TwoCalls(*model) for model in model_with(tokens=tokens)), steps=2)


EXPLICIT = [(P("vocab"), N), (P("vocab"), FEW), (P(), N), (P(None, "vocab"), N), (P(("vocab", "data")), N)]


@pytest.mark.parametrize("head, tokens, tied", in_turn(EXPLICIT, [False, True]), ids=str)
def test_explicit_axes(tied, head, tokens):
    """The types show the layout; a head that is whole or split by features works too."""
    whole = model_with(tied, options=ALL_OPTIONS, tokens=tokens)[0]
    tx = transformation(whole, row_sparse.clip_by_global_norm)
    found = run_split(whole, tx, 3, mesh_of(kind=AxisType.Explicit), head)
    clipped = transformation(whole, optax.clip_by_global_norm)
    assert_same(found, run(lambda _: dense_step(whole, clipped), whole, clipped, 3), 2e-6)


def test_rows_of_padding():
    """Some devices have nothing else; weight decay reaches them as in a dense step."""
    compare(model_with(options=(("chunk", 4), ("num_tokens", 37)), labels=37), weight_decay=0.1)


def test_split_over_all_axes():
    """The hidden states are gathered then, and no chunk is summed over devices."""
    whole, split = model_with(tied=True, options=(("chunk", 4),))
    split = split._replace(options=(("chunk", 4), ("token_mesh_axes", ("vocab", "data"))))
    compare((whole, split), head=P(("vocab", "data")))


@pytest.mark.parametrize("tokens", [FEW, pytest.param(N, marks=pytest.mark.slow)])
def test_stochastic_rounding_is_that_of_one_device(tokens):
    """The bits of a row are those of its token.

    The gradient of `N` tokens is summed over devices in bfloat16, as in a dense step, which is no nearer to one device.
    """
    whole, split = model_with(tied=True, token_axis=1, dtype=jnp.bfloat16, tokens=tokens)
    tx = optax.chain(transformation(whole), stochastic_rounding(3))
    found = run_split(split, tx, 1, mesh_of(), P(None, "vocab"))[0]["head"]
    one_device = run(lambda _: fused_step(whole, tx), whole, tx, 1)[0]["head"]
    dense = run_split(split, tx, 1, mesh_of(), P(None, "vocab"), lambda model, tx, lookups: dense_step(model, tx))[0]["head"]
    assert (one_device != whole.params()["head"]).any()
    same, of_dense = (np.mean(np.asarray(head == one_device)) for head in (found, dense))
    assert same > of_dense
    assert tokens == N or same > 0.99


def sent(model, head):
    """The shapes that each collective of a step sends, in loops over chunks and outside of them."""
    tx, mesh = transformation(model), mesh_of()
    of_params = {name: NamedSharding(mesh, head if name == "head" else P()) for name in model.params()}
    shardings = of_params, state_shardings(tx, jax.eval_shape(model.params), of_params)
    shapes = jax.eval_shape(lambda: (model.params(), tx.init(model.params())))
    start = jax.tree.map(lambda of, sharding: jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=sharding), shapes, shardings)
    given = [
        jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=NamedSharding(mesh, P("data")))
        for of in jax.eval_shape(lambda: model.batch(0))
    ]
    step = fused_step(model, tx, lookups=model.tied)
    step = jax.jit(step.__wrapped__, donate_argnums=(0, 1), out_shardings=(*shardings, None))
    with jax.set_mesh(mesh):
        text = step.lower(*start, *given).compile().as_text()
    find = re.compile(r"= [\w(]+(\[[\d,]*\])\S* .*?(all-\w+|reduce-scatter|collective-permute)(?:-start)?\(")
    loops = text[: text.index("\nENTRY ")]
    return sorted(" ".join(found) for found in find.findall(loops)), sorted(" ".join(found) for found in find.findall(text))


def test_in_loops_the_gradient_is_summed_and_the_new_rows_are_gathered():
    """Over `data` alone. Each of two devices steps half of a chunk."""
    in_loops, everywhere = sent(model_with()[1], P("vocab"))
    assert in_loops == [f"[2,{D}] reduce-scatter", f"[4,{D}] all-gather"]
    assert [one for one in everywhere if f",{D}] all-gather" in one] == [f"[4,{D}] all-gather"]


def test_in_loops_the_new_rows_are_gathered_if_hidden_states_are_fewer():
    """The hidden states are gathered once."""
    in_loops, everywhere = sent(model_with(tokens=FEW)[1], P("vocab"))
    assert in_loops == [f"[4,{D}] all-gather"]
    assert [one for one in everywhere if f",{D}] all-gather" in one] == [f"[4,{D}] all-gather", f"[{FEW},{D}] all-gather"]
    assert not any("scatter" in one for one in everywhere)


def test_nothing_is_sent_in_loops_if_all_axes_split_the_head():
    _, split = model_with(options=(("chunk", 4),))
    split = split._replace(options=(("chunk", 4), ("token_mesh_axes", ("vocab", "data"))))
    assert sent(split, P(("vocab", "data")))[0] == []
