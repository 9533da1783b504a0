"""A head that is split by tokens over a mesh: the loss and its gradients are those of one device, in every layout."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunked_loss import example
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from products import in_turn

from ember_optax._math import sums_in_parts
from ember_optax.losses import linear_softmax_cross_entropy

V, D, SHAPE = 64, 8, (8, 4)
ALL_OPTIONS = {"soft_cap": 5.0, "z_loss": 0.1, "label_smoothing": 0.1}
MESHES = {"8 x 1": (8, 1), "4 x 2": (4, 2), "2 x 4": (2, 4), "1 x 8": (1, 8)}


def mesh_of(shape=(2, 4), kind=AxisType.Auto, names=("data", "vocab")):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def place(mesh, arrays, specs):
    return [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=True)]


def weighted(hidden, table, labels, weights, **options):
    losses = linear_softmax_cross_entropy(hidden, table, labels, **options)
    return jnp.sum(losses * weights), losses


@functools.cache
def gradients(**options):
    return jax.jit(jax.grad(functools.partial(weighted, **options), (0, 1), has_aux=True))


def assert_same(found, wanted, tolerance=1e-6):
    leaves = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)] for tree in (found, wanted))
    for ours, theirs in zip(*leaves, strict=True):
        assert np.isfinite(ours).all() and np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


PADDED = ALL_OPTIONS | {"num_tokens": 37}


@pytest.mark.parametrize("mesh, options, token_axis", in_turn([*MESHES], [{}, PADDED], [0, 1]), ids=str)
def test_automatic_axes(mesh, options, token_axis):
    """Some devices have nothing but rows of padding."""
    hidden, table, labels, weights = example(V, D, SHAPE, token_axis)
    arrays, options = (
        (hidden, table, labels % options.get("num_tokens", V), weights),
        {"token_axis": token_axis, "chunk": 8} | options,
    )
    wanted = gradients(**options)(*arrays)
    mesh = mesh_of(MESHES[mesh])
    rows = P("vocab") if token_axis == 0 else P(None, "vocab")
    placed = place(mesh, arrays, (P("data"), rows, P("data"), P("data")))
    assert_same(gradients(token_mesh_axes="vocab", **options)(*placed), wanted)


@pytest.mark.parametrize(
    "hidden, table",
    [
        (P("data"), P("vocab")),
        (P("data", "seq"), P("vocab")),
        (P(None, "seq"), P(("vocab", "data"))),
        (P("vocab"), P("vocab")),
        (P(None, None, "seq"), P("vocab")),
        (P("data"), P("vocab", "seq")),
        (P(), P("vocab", "seq")),
    ],
    ids=str,
)
def test_explicit_axes(hidden, table):
    """The types show the layout."""
    arrays = example(V, D, SHAPE)
    wanted = gradients(chunk=8, z_loss=0.01)(*arrays)
    mesh = mesh_of((2, 2, 2), AxisType.Explicit, ("data", "seq", "vocab"))
    of_labels = P(*hidden[:2])
    placed = place(mesh, arrays, (hidden, table, of_labels, of_labels))
    (of_hidden, of_table), losses = gradients(chunk=8, z_loss=0.01)(*placed)
    assert_same(((of_hidden, of_table), losses), wanted, 2e-6)
    for array, like in ((of_hidden, placed[0]), (of_table, placed[1]), (losses, placed[2])):
        assert jax.typeof(array).sharding.spec == jax.typeof(like).sharding.spec


@pytest.mark.parametrize("num_tokens, token_axis, checked", in_turn([V, 37], [0, 1], [True, False]))
def test_manual_axes(num_tokens, token_axis, checked):
    """In the caller's own `jax.shard_map`, differentiated from outside."""
    hidden, table, labels, weights = example(V, D, SHAPE, token_axis)
    arrays, options = (hidden, table, labels % num_tokens, weights), {"token_axis": token_axis, "chunk": 8, **ALL_OPTIONS}
    wanted = gradients(num_tokens=num_tokens, **options)(*arrays)
    rows, batch = P("vocab") if token_axis == 0 else P(None, "vocab"), P("data")

    def losses(hidden, table, labels):
        return linear_softmax_cross_entropy(hidden, table, labels, num_tokens=num_tokens, token_mesh_axes="vocab", **options)

    def total(hidden, table, labels, weights):
        split = jax.shard_map(losses, mesh=mesh_of(), in_specs=(batch, rows, batch), out_specs=batch, check_vma=checked)
        found = split(hidden, table, labels)
        return jnp.sum(found * weights), found

    assert_same(jax.jit(jax.grad(total, (0, 1), has_aux=True))(*arrays), wanted)


def test_manual_axes_differentiated_inside():
    """Each device has the whole gradient of its rows, and of its hidden states."""
    arrays = example(V, D, SHAPE)
    wanted = gradients(chunk=8)(*arrays)

    def of_part(hidden, table, labels, weights):
        return jax.grad(functools.partial(weighted, chunk=8, token_mesh_axes="vocab"), (0, 1), has_aux=True)(
            hidden, table, labels, weights
        )

    rows, batch = P("vocab"), P("data")
    split = jax.shard_map(of_part, mesh=mesh_of(), in_specs=(batch, rows, batch, batch), out_specs=((batch, rows), batch))
    assert_same(jax.jit(split)(*arrays), wanted)


@pytest.mark.parametrize("names", [("data", "vocab"), ("data", "vocab", "tp")], ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_in_half_precision(dtype, names):
    """With a third axis XLA on CPU would abort this process."""
    arrays = example(V, D, SHAPE, dtype=dtype)
    wanted = gradients(chunk=8)(*example(V, D, SHAPE))
    mesh = mesh_of((2, 4) if len(names) == 2 else (2, 2, 2), names=names)
    placed = place(mesh, arrays, (P("data"), P("vocab", *names[2:]), P("data"), P("data")))
    assert_same(gradients(chunk=8, token_mesh_axes="vocab", batch_mesh_axes="data")(*placed), wanted, 2e-2)


@pytest.mark.parametrize("numbers", [32, 50], ids=["four parts of four tokens", "three parts of five or six"])
def test_hidden_states_in_parts(numbers, monkeypatch):
    """Large hidden states of 16 bits are summed in parts, which saves memory and changes no bit."""
    hidden, table, labels, weights = example(V, D, SHAPE, dtype=jnp.bfloat16)
    placed = place(mesh_of(), (hidden, table, labels, weights.at[2].set(0.0)), (P("data"), P("vocab"), P("data"), P("data")))
    found, barriers = [], []
    for most in (numbers, 1 << 23):
        monkeypatch.setattr(sums_in_parts, "PART", most)
        gradient = jax.jit(jax.grad(functools.partial(weighted, chunk=8, token_mesh_axes="vocab"), (0, 1), has_aux=True))
        found.append(gradient(*placed))
        barriers.append(gradient.lower(*placed).as_text().count("optimization_barrier"))
    assert barriers[0] > barriers[1]
    for of_parts, whole in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(of_parts.astype(jnp.float32), whole.astype(jnp.float32))


def test_masked_tokens_add_exactly_zero():
    hidden, table, labels, weights = example(V, D, SHAPE)
    counts = jnp.arange(32).reshape(SHAPE) % 3 > 0

    def total(hidden, table, **options):
        losses = linear_softmax_cross_entropy(hidden, table, jnp.where(counts, labels, -100), chunk=8, **options)
        return jnp.sum(jnp.where(counts, losses * weights, 0.0))

    spoilt = jnp.where(counts[..., None], hidden, jnp.nan)
    with jax.set_mesh(mesh_of()):
        of_hidden, of_table = jax.jit(jax.grad(functools.partial(total, token_mesh_axes="vocab"), (0, 1)))(spoilt, table)
    assert not of_hidden[~counts].any()
    assert_same((of_hidden, of_table), jax.jit(jax.grad(total, (0, 1)))(hidden, table))


def test_hidden_states_that_the_mesh_does_not_divide():
    arrays = example(V, D, (3,))
    with jax.set_mesh(mesh_of()):
        assert_same(gradients(chunk=8, token_mesh_axes="vocab")(*arrays), gradients(chunk=8)(*arrays))


def test_a_head_that_is_not_traced_shows_its_layout():
    arrays = example(V, D, SHAPE)
    placed = place(mesh_of(), arrays, (P("data"), P("vocab"), P("data"), P("data")))
    jaxpr = str(jax.make_jaxpr(lambda hidden: linear_softmax_cross_entropy(hidden, *placed[1:3], chunk=8))(placed[0]))
    assert "shard_map" in jaxpr and "pmax" in jaxpr


def refused(call, message, error=ValueError, kind=AxisType.Auto):
    with jax.set_mesh(mesh_of(kind=kind)), pytest.raises(error, match=message):
        call()


HIDDEN, TABLE, LABELS, _ = example(V, D, SHAPE)


def loss(hidden=HIDDEN, table=TABLE, labels=LABELS, token_mesh_axes="vocab", **options):
    return linear_softmax_cross_entropy(hidden, table, labels, token_mesh_axes=token_mesh_axes, **options)


ROWS, BATCH = P("vocab"), P("data")


def in_shard_map(table=ROWS, hidden=BATCH, axes=("data", "vocab"), shift=False, **options):
    def call(hidden, table, labels):
        labels = labels + jax.lax.axis_index("vocab") if shift else labels
        return loss(hidden, table, labels, **options)

    labels = P(*hidden[:1])
    return lambda: jax.shard_map(call, in_specs=(hidden, table, labels), out_specs=labels, axis_names=set(axes))(
        HIDDEN, TABLE, LABELS
    )


def test_wrong_axes_are_refused():
    refused(lambda: loss(token_mesh_axes="rows"), r"name \['rows'\], but the mesh has the axes \['data', 'vocab'\]: name its")
    refused(lambda: loss(token_mesh_axes=3), r"token_mesh_axes must be a mesh axis name or a tuple of them, got 3", TypeError)
    refused(lambda: loss(batch_mesh_axes=3), r"batch_mesh_axes must be a mesh axis name or a tuple of them, got 3", TypeError)
    refused(lambda: loss(batch_mesh_axes="vocab"), r"\['vocab'\] are in token_mesh_axes and in batch_mesh_axes: one mesh axis")
    refused(
        lambda: loss(table=TABLE[:50]), r"are 4 devices, but the table of shape \(50, 8\) has 50 tokens: pad it to 52 rows, and"
    )
    refused(in_shard_map(table=P()), r"names \['vocab'\], along which the table is the same on all devices: split the table")
    refused(in_shard_map(hidden=P("vocab")), r"hidden states differ along \['vocab'\], .*all_gather\(..., to='invarying'\)")
    refused(
        in_shard_map(table=P(), axes=["data"]), r"\['vocab'\] are not axes of the jax.shard_map around the loss: name them in its"
    )
    refused(in_shard_map(shift=True), r"labels differ along \['vocab'\], which token_mesh_axes says to split the vocabulary")
    refused(in_shard_map(batch_mesh_axes="data"), r"batch_mesh_axes names \['data'\] inside of jax.shard_map, .*: leave it out")
    with pytest.raises(
        ValueError, match=r"name \['vocab'\], but the mesh has the axes \[\]: name its axes, and call the loss inside"
    ):
        loss()


def test_labels_of_other_hidden_states_are_refused():
    """On two axes of one size, shapes alone would not show it."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "seq", "vocab"), axis_types=(AxisType.Auto,) * 3)
    specs = P("data"), P("vocab"), P("seq")
    with pytest.raises(
        ValueError, match=r"hidden states are split over \['data'\], but labels over \['seq'\]: give both the same"
    ):
        jax.eval_shape(jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P(("data", "seq"))), HIDDEN, TABLE, LABELS)


def test_an_axis_that_the_type_contradicts_is_refused():
    mesh = mesh_of(kind=AxisType.Explicit)
    arrays = place(mesh, (HIDDEN, TABLE, LABELS), (P("data"), P(), P("data")))
    refused(
        lambda: loss(*arrays),
        r"names \['vocab'\], but by its type .* is split over \[\]: leave .* out, or",
        kind=AxisType.Explicit,
    )


def sent(text):
    """The shapes that each collective of a program sends, in loops over chunks and outside of them."""
    loops, entry = text[: text.index("\nENTRY ")], text[text.index("\nENTRY ") :]
    find = re.compile(r"= (.*?) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(")
    return [sorted(f"{kind} {re.sub(r'{[^}]*}', '', shape)}" for shape, kind in find.findall(part)) for part in (loops, entry)]


def test_nothing_is_sent_for_each_chunk():
    """The logsumexp and the label's logit take two sums over N numbers and a maximum, the gradients one sum each."""
    mesh = mesh_of()
    specs = (P("data"), P("vocab"), P("data"), P("data"))
    shapes = [
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))
        for array, spec in zip(example(V, D, SHAPE), specs, strict=True)
    ]
    out = tuple(NamedSharding(mesh, spec) for spec in specs[:2]), NamedSharding(mesh, P("data"))
    step = jax.jit(gradients(chunk=8, token_mesh_axes="vocab").__wrapped__, out_shardings=out)
    in_loops, once = sent(step.lower(*shapes).compile().as_text())
    assert in_loops == []
    assert once == ["all-reduce f32[16,8]", "all-reduce f32[16,8]", "all-reduce f32[16]", "all-reduce f32[2,16]"]
