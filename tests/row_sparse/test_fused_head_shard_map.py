"""A fused head inside of the caller's own `jax.shard_map`: steps are those of one device, the head is whole or split by tokens.

A device of the 2 x 4 mesh has 16 rows of 64. The gradient of a chunk is summed for `N = 24` hidden states, and hidden states are
gathered for `FEW = 8`.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fused import Model, assert_same
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from products import in_turn

from ember_optax import EmberDimensionNumbers, row_sparse, scale_by_ember, stochastic_rounding
from ember_optax._math.mesh import as_varying, gathered_over, varying_axes
from ember_optax.losses import linear_softmax_cross_entropy

V, D, N, FEW = 64, 16, 24, 8
ALL_OPTIONS = (("chunk", 4), ("soft_cap", 5.0), ("z_loss", 0.1), ("label_smoothing", 0.1))
PADDED = (("chunk", 4), ("num_tokens", 37))


def model_with(tied=False, token_axis=0, options=(("chunk", 4),), tokens=N, **others):
    return Model(V, D, tokens, token_axis, tied, options=options, masked=True, labels=37, **others)


def transformation(model, clip, split=(), *last):
    """Ember for the head, whose tokens are split over the mesh axes `split`, and plain steps for the rest."""
    ember = scale_by_ember(dimension_numbers=EmberDimensionNumbers(model.token_axis), token_mesh_axes=split)
    kinds = {name: "head" if name == "head" else "rest" for name in model.params()}
    parts = optax.partition({"head": ember, "rest": optax.identity()}, kinds)
    return optax.chain(clip(0.5), parts, optax.scale(-1e-2), *last)


def loss_of(model, batch_axes=(), split=(), micro_batches=1):
    """The loss of the whole batch, from the part of one device."""

    def losses(params, ids, labels, where):
        table, axis = (params["head"], model.token_axis) if model.tied else (params["embed"], 0)
        rows = row_sparse.lookup(table, ids, token_axis=axis)
        rows = jax.lax.psum(rows, split) if model.tied and split else rows
        options = dict(model.options) | {"token_axis": model.token_axis, "token_mesh_axes": split or None}
        hidden = jnp.tanh(rows @ params["body"])
        return linear_softmax_cross_entropy(hidden, params["head"], labels, where=where, **options).sum()

    def loss(params, ids, labels, where):
        count = jnp.sum(where)
        if micro_batches > 1:
            body = jax.checkpoint(lambda total, batch: (total + losses(params, *batch), None))
            batches = [array.reshape(micro_batches, -1) for array in (ids, labels, where)]
            total = row_sparse.scan(body, 0.0 * count, batches)[0]  # a zero that has the type of a sum
        else:
            total = losses(params, ids, labels, where)
        return jax.lax.psum(total, batch_axes) / jax.lax.psum(count, batch_axes) if batch_axes else total / count

    return loss


def step_of(model, tx, split=(), *, heads, loss=None, **options):
    loss = loss or loss_of(model, split=split, **options)

    def step(params, opt_state, ids, labels, where):
        if heads:
            looked_up = {"head": ids} if model.tied else {}
            if looked_up and split:
                looked_up = row_sparse.local_token_ids(looked_up, params, split, tables=model.numbers)
                ids = looked_up["head"]
            gradient = row_sparse.value_and_grad(loss, heads="head", tables=model.numbers)
            value, grads = gradient(params, looked_up, ids, labels, where)
        else:
            value, grads = jax.value_and_grad(loss)(params, ids, labels, where)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return step


def steps_taken(step, model, tx, steps):
    params, losses = model.params(), []
    opt_state = tx.init(params)
    for number in range(steps):
        params, opt_state, loss = step(params, opt_state, *model.batch(number))
        losses.append(float(loss))
    return params, opt_state, losses


@functools.cache
def dense(model, steps):
    tx = transformation(model, optax.clip_by_global_norm)
    return steps_taken(jax.jit(step_of(model, tx, heads=False)), model, tx, steps)


def parted(model, mesh, *last, manual=None, **options):
    """The step inside of `jax.shard_map`, the transformation whose state it takes, and the shardings of its arguments.

    `manual` are the axes of the mesh that `jax.shard_map` names; None for all.
    """
    manual = manual or mesh.axis_names
    split = ("vocab",) if "vocab" in manual else ()
    batch_axes = tuple(name for name in manual if name not in split)
    tx, whole = (transformation(model, row_sparse.clip_by_global_norm, axes, *last) for axes in (split, ()))
    head = P(*[None] * model.token_axis, split or None)
    of_params = {name: head if name == "head" else P() for name in model.params()}
    shapes = jax.eval_shape(lambda: whole.init(model.params()))
    of_state = jax.tree.map(lambda leaf: P(split or None) if leaf.shape == (V,) else P(), shapes)
    step = step_of(model, tx, split, heads=True, batch_axes=batch_axes, **options)
    specs = of_params, of_state, *[P(batch_axes)] * 3
    of_part = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(of_params, of_state, P()), axis_names=set(manual))
    step = jax.jit(of_part)
    return step, whole, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def mesh_of(shape=(2, 4), kind=AxisType.Auto):
    names = {1: ("data",), 2: ("data", "vocab"), 3: ("data", "fsdp", "vocab")}[len(shape)]
    return jax.make_mesh(shape, names, axis_types=kind if isinstance(kind, tuple) else (kind,) * len(shape))


def compare(model, steps=3, shape=(2, 4), kind=AxisType.Auto, **options):
    step, whole, shardings = parted(model, mesh_of(shape, kind), **options)
    found = steps_taken(lambda *arrays: step(*jax.device_put(arrays, shardings)), model, whole, steps)
    assert_same(found, dense(model, steps), 2e-6)


@pytest.mark.parametrize("shape, tied, tokens", in_turn([((2, 4),), ((8,),)], [False, True], [N, FEW]), ids=str)
def test_steps_are_those_of_one_device(tied, shape, tokens):
    """Behind a clip by the global norm, with a mask and all options of the loss."""
    compare(model_with(tied, options=ALL_OPTIONS, tokens=tokens), shape=shape)


@pytest.mark.parametrize("shape", [(2, 4), (8,)], ids=str)
def test_rows_of_padding(shape):
    """Of a (D, V) head, which is looked up too; some devices have nothing else."""
    compare(model_with(True, token_axis=1, options=PADDED), shape=shape)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)], ids=str)
def test_an_axis_of_one_device(shape):
    """By the types of JAX arrays differ along it."""
    compare(model_with(True), shape=shape)


def test_micro_batches():
    """In a scan with `jax.checkpoint`, on a mesh with explicit axes around `jax.shard_map`."""
    compare(model_with(), kind=AxisType.Explicit, micro_batches=3)


@pytest.mark.parametrize("manual", [("data",), ("vocab",)], ids=str)
def test_some_axes_of_the_mesh(manual):
    """The others are automatic."""
    compare(model_with(True), manual=manual)


def test_explicit_axes_outside_of_shard_map_are_refused():
    with pytest.raises(ValueError, match=r"heads names \['head'\] .* leave out the explicit mesh axes \['vocab'\]: name them"):
        compare(model_with(), 1, kind=(AxisType.Auto, AxisType.Explicit), manual=("data",))


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_loss_may_type_the_parameters_as_different(micro_batches):
    """JAX then adds up the gradient of the head's link too."""
    model = model_with(True)
    whole_batch = loss_of(model, ("data",), ("vocab",), micro_batches)

    def loss(params, *batch):
        return whole_batch(jax.tree.map(lambda leaf: as_varying(leaf, {"data"} - varying_axes(leaf)), params), *batch)

    compare(model, loss=loss)


def gathers_hidden_states(params, ids, labels, where):
    rows = row_sparse.lookup(params["head"], ids)
    arrays = jnp.tanh(rows @ params["body"]), labels, where
    hidden, labels, where = (gathered_over(("data",), array, 0) for array in arrays)
    return linear_softmax_cross_entropy(hidden, params["head"], labels, where=where, chunk=4).sum() / where.sum()


def test_ids_may_differ_along_more_axes_than_hidden_states():
    compare(model_with(True), shape=(8,), loss=gathers_hidden_states)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("tokens", [48, 16])
@pytest.mark.parametrize("token_axis", [0, 1])
@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (2, 2, 2), (8,)], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_twenty_steps(tied, shape, token_axis, tokens, micro_batches):
    compare(model_with(tied, token_axis, ALL_OPTIONS, tokens), 20, shape, micro_batches=micro_batches)


def test_stochastic_rounding_has_the_bits_of_the_whole_table():
    model = model_with(dtype=jnp.bfloat16, tokens=FEW)
    step, whole, _ = parted(model, mesh_of(), stochastic_rounding(3))
    tx = transformation(model, row_sparse.clip_by_global_norm, (), stochastic_rounding(3))
    one_device = jax.jit(step_of(model, tx, heads=True))
    found, expected = (steps_taken(run, model, whole, 1)[0]["head"] for run in (step, one_device))
    assert (expected != model.params()["head"]).any()
    assert np.mean(np.asarray(found == expected)) > 0.99


def test_in_loops_the_gradient_is_summed_and_the_new_rows_are_gathered():
    """Over `data` alone, as with automatic axes."""
    model = model_with()
    step, whole, _ = parted(model, mesh_of())
    start = jax.eval_shape(lambda: (model.params(), whole.init(model.params()), *model.batch(0)))
    text = step.lower(*start).compile().as_text()
    find = re.compile(r"= [\w(]+(\[[\d,]*\])\S* .*?(all-\w+|reduce-scatter|collective-permute)(?:-start)?\(")
    in_loops, everywhere = ([" ".join(one) for one in find.findall(of)] for of in (text[: text.index("\nENTRY ")], text))
    assert sorted(in_loops) == [f"[2,{D}] reduce-scatter", f"[4,{D}] all-gather"]
    assert [one for one in everywhere if f",{D}] all-gather" in one] == [f"[4,{D}] all-gather"]


def refused(match, check_vma=True, split=("vocab",), of_ember=("vocab",), **options):
    model, mesh = model_with(), mesh_of()
    whole = transformation(model, row_sparse.clip_by_global_norm)
    tx = transformation(model, row_sparse.clip_by_global_norm, of_ember)
    step = step_of(model, tx, split, heads=True, batch_axes=("data",), **options)
    of_params = {name: P("vocab") if name == "head" else P() for name in model.params()}
    of_state = jax.tree.map(lambda _: P(), jax.eval_shape(lambda: whole.init(model.params())))
    specs = of_params, of_state, *[P("data")] * 3
    of_part = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(of_params, of_state, P()), check_vma=check_vma)
    with pytest.raises(ValueError, match=match):
        jax.jit(of_part)(model.params(), whole.init(model.params()), *model.batch(0))


def test_without_types_it_is_refused():
    """Nothing would tell that the batch is split, and nothing would add up the gradients of the devices."""
    refused(
        r"heads names 'head' inside of jax.shard_map\(check_vma=False\) .* use jax.shard_map without check_vma", check_vma=False
    )


def test_a_head_that_is_split_unknown_to_the_loss_is_refused():
    refused(r"heads names 'head', which differs along the mesh axes \['vocab'\] .* names \[\]: name the axes", split=())


def test_a_head_that_is_split_unknown_to_ember_is_refused():
    refused(r"fused head 'head' is split over \['vocab'\] .* pass token_mesh_axes=\('vocab',\)", of_ember=())


def test_a_branch_that_differs_between_devices_is_refused():
    """Devices in one branch would wait forever for those in the other."""

    def loss(params, ids, labels, where):
        of_part = loss_of(model_with(), split=("vocab",))
        total = jax.lax.cond(where[1], lambda: of_part(params, ids, labels, where), lambda: 0.0 * jnp.sum(where))
        return jax.lax.pmean(total, "data")

    refused(
        r"'head' inside of jax.lax.cond, whose predicate differs .* multiply the losses that do not count with zero", loss=loss
    )


def test_a_step_is_not_differentiated():
    step, whole, _ = parted(model := model_with(), mesh_of())
    with pytest.raises(TypeError, match=r"was differentiated again, .*: leave the head out of heads"):
        jax.grad(lambda params: step(params, whole.init(params), *model.batch(0))[2])(model.params())
