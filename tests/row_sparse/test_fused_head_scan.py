"""A fused head inside of `row_sparse.scan` in the loss, over micro-batches: the dense step of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import pytest
from fused import Model, assert_same, run_clipped, step_with, transformation
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax import row_sparse
from ember_optax.losses import linear_softmax_cross_entropy

OPTIONS = {"chunk": 8, "soft_cap": 5.0, "z_loss": 0.1, "label_smoothing": 0.1}
PARTS = 3


class InParts(Model):
    """The loss of the whole batch, in a loop over micro-batches."""

    def mean(self, params, ids, labels, **options):
        options = OPTIONS | options | {"token_axis": self.token_axis}
        return linear_softmax_cross_entropy(self.hidden(params, ids), params["head"], labels, **options).mean()

    def loss(self, params, ids, labels, where):
        del where
        return self.mean(params, ids, labels)

    def scanned(self, params, ids, labels, where, scan=row_sparse.scan, wrap=jax.checkpoint, **options):
        del where
        parts = ids.reshape(PARTS, -1), labels.reshape(PARTS, -1)
        add = wrap(lambda total, part: (total + self.mean(params, *part, **options), None))
        return scan(add, 0.0, parts)[0] / PARTS


def compare(model, loss_fn=None, whole=None, **options):
    found = run_clipped(model, loss_fn or model.scanned, fused=True, **options)
    assert_same(found, run_clipped(model, whole, fused=False, **options), 2e-6)


@pytest.mark.parametrize("tied, token_axis", [(False, 0), (True, 1)], ids=str)
def test_micro_batches(tied, token_axis):
    compare(InParts(tied=tied, token_axis=token_axis), weight_decay=0.1)


def test_without_checkpoint_and_inside_of_jit():
    model = InParts()
    scanned = functools.partial(model.scanned, wrap=jax.jit)
    compare(model, jax.jit(scanned))


@pytest.mark.slow
def test_scans_within_scans_and_calls_beside_them():
    """Every call has other numbers of steps and of tokens."""
    model = InParts()

    def loss_fn(scan, params, ids, labels, where):
        del where

        def inner(total, part):
            return total + model.mean(params, *part), part[0]

        def outer(total, parts):
            (first, second), last = parts
            total, _ = scan(inner, total, (first, second), reverse=True)
            return total + 0.5 * model.mean(params, *last), None

        pairs = ids[:8].reshape(2, 2, 2), labels[:8].reshape(2, 2, 2)
        total, _ = scan(jax.checkpoint(outer), jnp.float32(0), (pairs, (ids[8:].reshape(2, 2), labels[:4].reshape(2, 2))))
        return total + 0.3 * model.mean(params, ids[1:6], labels[1:6])

    compare(model, functools.partial(loss_fn, row_sparse.scan), functools.partial(loss_fn, jax.lax.scan))


@pytest.mark.slow
def test_a_step_with_two_calls_in_a_branch():
    model = InParts()

    def loss_fn(scan, params, ids, labels, where):
        def add(total, part):
            second = linear_softmax_cross_entropy(jnp.sin(model.hidden(params, part[0])), params["head"], part[1], **OPTIONS)
            return total + model.mean(params, *part) + 0.3 * second.sum(), None

        parts = ids.reshape(PARTS, -1), labels.reshape(PARTS, -1)
        return jax.lax.cond(where[1], lambda: scan(add, 0.0, parts)[0], lambda: 2 * model.mean(params, ids, labels))

    assert len({bool(model.batch(number)[2][1]) for number in range(3)}) == 2
    compare(model, functools.partial(loss_fn, row_sparse.scan), functools.partial(loss_fn, jax.lax.scan))


def test_a_scan_over_steps_of_scans():
    model = InParts()
    tx = transformation(model, row_sparse.clip_by_global_norm)

    def body(carry, batch):
        params, opt_state, loss = step_with(model, tx, model.scanned, fused=True)(*carry, *batch)
        return (params, opt_state), loss

    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(model.batch, range(3)))
    start = model.params(), tx.init(model.params())
    (params, opt_state), losses = jax.jit(lambda start, batches: jax.lax.scan(body, start, batches))(start, batches)
    assert_same((params, opt_state, list(losses)), run_clipped(model, fused=False), 2e-6)


def test_a_head_behind_stop_gradient_gets_none():
    model = InParts()

    def stopped(loss_fn, params, *batch):
        return loss_fn(params | {"head": jax.lax.stop_gradient(params["head"])}, *batch)

    compare(model, functools.partial(stopped, model.scanned), functools.partial(stopped, model.loss))


def test_without_fused_heads_it_is_the_scan_of_jax():
    model = InParts()
    of_jax = functools.partial(model.scanned, scan=jax.lax.scan)
    assert_same(run_clipped(model, model.scanned, fused=False), run_clipped(model, of_jax, fused=False), 0)


def on_mesh(mesh, model, head, named, steps):
    """`run` with the head split, and each micro-batch split over `data`."""

    def loss_fn(params, ids, labels, where):
        del where
        add = jax.checkpoint(lambda total, part: (total + model.mean(params, *part, **named), None))
        return row_sparse.scan(add, 0.0, (ids, labels))[0] / PARTS

    def place(tree, spec):
        return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)

    params = {name: place(leaf, head if name == "head" else P()) for name, leaf in model.params().items()}
    tx = transformation(model, row_sparse.clip_by_global_norm)
    with jax.set_mesh(mesh):
        opt_state, losses = jax.jit(tx.init)(params), []
        step = step_with(model, tx, loss_fn, fused=True)
        for number in range(steps):
            batch = place([leaf.reshape(PARTS, -1) for leaf in model.batch(number)], P(None, "data"))
            params, opt_state, loss = step(params, opt_state, *batch)
            losses.append(loss)
    return params, opt_state, losses


SLOW = {"marks": pytest.mark.slow}
ON_A_MESH = [
    pytest.param(P("vocab"), AxisType.Auto, True),
    pytest.param(P("vocab"), AxisType.Explicit, False),
    *(
        pytest.param(head, kind, tied, **SLOW)
        for head in (P(), P(None, "vocab"))
        for kind in (AxisType.Auto, AxisType.Explicit)
        for tied in (False, True)
    ),
]


@pytest.mark.parametrize("head, kind, tied", ON_A_MESH, ids=str)
def test_on_a_mesh(head, kind, tied):
    model = InParts(64, 8, 24, tied=tied)
    named = {"token_mesh_axes": "vocab"} if kind == AxisType.Auto and head == P("vocab") else {}
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(kind,) * 2)
    assert_same(on_mesh(mesh, model, head, named, 2), run_clipped(model, fused=False, steps=2), 2e-6)


@pytest.mark.slow  # the rest of the table: three axes, tokens and features split, both kinds of axes, both dtypes
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("head", [P("vocab", "tp"), P("vocab"), P(("vocab", "tp")), P()], ids=str)
def test_twenty_steps_on_three_axes(head, kind, tied, dtype, tolerance):
    model = InParts(64, 8, 24, tied=tied, dtype=dtype)
    mesh = jax.make_mesh((2, 2, 2), ("data", "vocab", "tp"), axis_types=(kind,) * 3)
    named = {"token_mesh_axes": head[0]} if kind == AxisType.Auto and len(head) else {}
    named = named | {"batch_mesh_axes": "data"} if named else named
    assert_same(on_mesh(mesh, model, head, named, 20), run_clipped(model, fused=False, steps=20), tolerance)


def refused(loss_fn, message):
    model = InParts()
    with pytest.raises(ValueError, match=message):
        gradient = row_sparse.value_and_grad(functools.partial(loss_fn, model), heads="head", tables=model.numbers)
        jax.eval_shape(lambda *batch: gradient(model.params(), {}, *batch)[0], *model.batch(0))


def test_other_loops_are_refused():
    refused(
        lambda model, *batch: model.scanned(*batch, scan=jax.lax.scan),
        r"fused head 'head' inside of 'scan', where one call may run several times: use row_sparse.scan for the loop, call it",
    )
    refused(
        lambda model, *batch: jax.lax.scan(lambda total, _: (total + model.scanned(*batch), None), 0.0, length=2)[0],
        r"fused head 'head' inside of 'scan', where .*: use row_sparse.scan",
    )
    refused(
        lambda model, *batch: jax.lax.fori_loop(0, batch[1][0], lambda _, total: total + model.loss(*batch), 0.0),
        r"fused head 'head' inside of 'while', where .*: use row_sparse.scan",
    )
    refused(
        lambda model, *batch: row_sparse.scan(
            lambda total, number: (total + jax.lax.cond(number > 0, lambda: model.loss(*batch), lambda: 0.0), None),
            0.0,
            jnp.arange(3),
        )[0],
        r"inside of jax.lax.cond in a step of row_sparse.scan: call it in every step, and multiply the losses of a step that",
    )
    with pytest.raises(TypeError, match=r"f must be a function of the carry and of what a step gets, got 3 of type int; pass"):
        row_sparse.scan(3, 0.0, jnp.arange(3))  # pyright: ignore[reportArgumentType]
