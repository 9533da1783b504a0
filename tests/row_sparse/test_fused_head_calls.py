"""A fused head that the loss calls several times, inside `jax.lax.scan` over steps, and over micro-batches: the dense step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fused import Model, assert_same, run_clipped, step_with, transformation
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from products import in_turn

from ember_optax import row_sparse
from ember_optax.losses import linear_softmax_cross_entropy

OPTIONS = {"chunk": 8, "soft_cap": 5.0, "z_loss": 0.1, "label_smoothing": 0.1}


class Calls(Model):
    """Predicts the next token, and the one after it from other hidden states (as in multi-token prediction)."""

    def loss(self, params, ids, labels, where, wrap=lambda f: f, **options):
        hidden, options = self.hidden(params, ids), OPTIONS | options | {"token_axis": self.token_axis}

        def of_tokens(head, hidden, labels):
            return linear_softmax_cross_entropy(hidden, head, labels, **options).mean()

        first = wrap(of_tokens)(params["head"], hidden, labels)
        return first + 0.3 * wrap(of_tokens)(params["head"], jnp.sin(hidden[:8]), ((3 * labels + 1) % 33)[:8])


@pytest.mark.parametrize("tied, token_axis", in_turn([False, True], [0, 1]), ids=str)
def test_two_calls(tied, token_axis):
    """Their gradients are added before they are squared."""
    model = Calls(tied=tied, token_axis=token_axis)
    assert_same(run_clipped(model, fused=True, weight_decay=0.1), run_clipped(model, fused=False, weight_decay=0.1), 2e-6)


def test_two_calls_in_checkpoints():
    model = Calls()
    assert_same(
        run_clipped(model, functools.partial(model.loss, wrap=jax.checkpoint), fused=True), run_clipped(model, fused=False), 2e-6
    )


def test_rows_of_padding():
    model = Calls(labels=33)
    loss_fn = functools.partial(model.loss, num_tokens=33)
    assert_same(run_clipped(model, loss_fn, fused=True), run_clipped(model, loss_fn, fused=False), 2e-6)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_call_behind_stop_gradient_adds_nothing(stopped):
    model = Calls()

    def loss_fn(params, ids, labels, where):
        del where
        hidden, head = model.hidden(params, ids), params["head"]
        heads = [jax.lax.stop_gradient(head) if call == stopped else head for call in range(2)]
        losses = [linear_softmax_cross_entropy(hidden, head, labels + call, **OPTIONS).mean() for call, head in enumerate(heads)]
        return sum(losses)

    model = model._replace(labels=30)
    assert_same(run_clipped(model, loss_fn, fused=True), run_clipped(model, loss_fn, fused=False), 2e-6)


def test_branches_that_both_call_it():
    model = Calls()

    def loss_fn(params, ids, labels, where):
        hidden, head = model.hidden(params, ids), params["head"]
        return jax.lax.cond(
            where[1],
            lambda: linear_softmax_cross_entropy(hidden, head, labels, **OPTIONS).mean(),
            lambda: 2 * linear_softmax_cross_entropy(jnp.sin(hidden[:4]), head, labels[:4], **OPTIONS).mean(),
        )

    assert len({bool(model.batch(number)[2][1]) for number in range(3)}) == 2
    assert_same(run_clipped(model, loss_fn, fused=True), run_clipped(model, loss_fn, fused=False), 2e-6)


def in_one_branch(otherwise, model, params, ids, labels, where):
    hidden, head = model.hidden(params, ids), params["head"]
    return jax.lax.cond(
        where[1],
        lambda: linear_softmax_cross_entropy(hidden, head, labels, **OPTIONS).mean(),
        lambda: otherwise(hidden, head, labels),
    )


def test_a_branch_alone_that_calls_it():
    """The other branch does not use the head, whose gradient is zero in those steps."""
    model = Calls()
    loss_fn = functools.partial(in_one_branch, lambda hidden, head, labels: jnp.mean(hidden**2), model)
    assert {bool(model.batch(number)[2][1]) for number in range(3)} == {False, True}
    assert_same(
        run_clipped(model, loss_fn, fused=True, weight_decay=0.1),
        run_clipped(model, loss_fn, fused=False, weight_decay=0.1),
        2e-6,
    )


def test_another_branch_that_uses_the_head_otherwise_is_refused():
    def usual_loss(hidden, head, labels):
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ head.T, labels).mean()

    model = Calls()
    with pytest.raises(
        TypeError, match=r"'head' of shape \(37, 8\) is named in heads. Only .* may use it as a head, .*Call that loss"
    ):
        run_clipped(model, functools.partial(in_one_branch, usual_loss, model), fused=True, steps=1)


def test_micro_batches():
    """Those of one step are calls of one loss: hidden states are kept, and no gradient of the head."""
    model = Calls(tokens=12)

    def loss_fn(params, ids, labels, where):
        del where
        losses = [
            linear_softmax_cross_entropy(model.hidden(params, ids[part]), params["head"], labels[part], **OPTIONS).mean()
            for part in (slice(0, 4), slice(4, 8), slice(8, 12))
        ]
        return sum(losses) / 3

    def whole(params, ids, labels, where):
        del where
        return linear_softmax_cross_entropy(model.hidden(params, ids), params["head"], labels, **OPTIONS).mean()

    assert_same(run_clipped(model, loss_fn, fused=True), run_clipped(model, whole, fused=False), 2e-6)


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["untied", "tied"])
def test_scan_over_steps(tied):
    model = Calls(tied=tied)
    tx = transformation(model, row_sparse.clip_by_global_norm)
    step = step_with(model, tx, fused=True)

    def body(carry, batch):
        params, opt_state, loss = step(*carry, *batch)
        return (params, opt_state), loss

    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(model.batch, range(3)))
    start = model.params(), tx.init(model.params())
    (params, opt_state), losses = jax.jit(lambda start, batches: jax.lax.scan(body, start, batches))(start, batches)
    assert_same((params, opt_state, list(losses)), run_clipped(model, fused=False), 2e-6)


@pytest.mark.parametrize("kind, tied", in_turn([AxisType.Auto, AxisType.Explicit], [False, True]), ids=str)
def test_on_a_mesh(kind, tied):
    """The head is split by tokens, the batch over `data`."""
    model = Calls(64, 8, 16, tied=tied)
    tx = transformation(model, row_sparse.clip_by_global_norm)
    named = {} if kind == AxisType.Explicit else {"token_mesh_axes": "vocab"}
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(kind,) * 2)

    def place(tree, spec):
        return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)

    params = {name: place(leaf, P("vocab") if name == "head" else P()) for name, leaf in model.params().items()}
    step = step_with(model, tx, functools.partial(model.loss, **named), fused=True)
    with jax.set_mesh(mesh):
        opt_state, losses = jax.jit(tx.init)(params), []
        for number in range(2):
            params, opt_state, loss = step(params, opt_state, *place(model.batch(number), P("data")))
            losses.append(loss)
    assert_same((params, opt_state, losses), run_clipped(model, fused=False, steps=2), 2e-6)
    assert np.isfinite(losses[-1])
