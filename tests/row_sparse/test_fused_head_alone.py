"""A model that is a fused head alone: inside of transformations of JAX, behind casts and clips, with Optax's others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fused import Model, assert_same

from ember_optax import EmberDimensionNumbers, ember, row_sparse, skipped_batches, stochastic_rounding
from ember_optax.losses import linear_softmax_cross_entropy


def head_loss(table, hidden, labels):
    return linear_softmax_cross_entropy(hidden, table, labels, chunk=16).mean()


TABLE = EmberDimensionNumbers()
DATA = Model(64, 16, 24)


def applied(loss_fn=head_loss, tx=None, table=None, **options):
    """One fused step of a model whose only parameter is the head."""
    tx = ember(1e-2, optax.adamw(1e-2), tables=TABLE) if tx is None else tx
    table = DATA.params()["head"] if table is None else table
    hidden, labels = DATA.hidden(DATA.params(), DATA.batch(0)[0]), DATA.batch(0)[1]

    def step(table, state):
        loss, grads = row_sparse.value_and_grad(loss_fn, heads="", **options)(table, None, hidden, labels)
        updates, state = tx.update(grads, state, table)
        return optax.apply_updates(table, updates), state, loss

    return jax.jit(step)(table, tx.init(table))


@functools.cache
def usual(tx=None):
    """What the cases compare with, computed once."""
    return applied(tx=tx)


TWICE = ember(2e-2, optax.adamw(2e-2), tables=TABLE)


def with_checkpoint(table, hidden, labels):
    return jax.checkpoint(head_loss)(table, hidden, labels)


def under_jit(table, hidden, labels):
    return jax.jit(head_loss)(table, hidden, labels)


def with_cast(table, hidden, labels):
    """As of a whole parameter tree, to the dtype that it has; the head's rows are cast chunk by chunk."""
    table = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, table)
    return head_loss(table, hidden, labels)


def with_branches(table, hidden, labels):
    return jax.lax.cond(hidden.sum() < 1e9, lambda: head_loss(table, hidden, labels), lambda: jnp.float32(0))


@pytest.mark.parametrize("loss_fn", [with_checkpoint, under_jit, with_cast, with_branches])
def test_within_transformations_of_jax(loss_fn):
    assert_same(applied(loss_fn), usual())


def behind_a_stop(table, hidden, labels):
    return head_loss(jax.lax.stop_gradient(table), hidden, labels)


def test_a_head_behind_stop_gradient_gets_none():
    table, state, _ = applied(behind_a_stop)
    np.testing.assert_array_equal(table, DATA.params()["head"])
    assert skipped_batches(state) == {"": 0}


@jax.custom_vjp
def turned(tree):
    return tree


turned.defvjp(
    lambda tree: (tree, None),
    lambda _, tree: (jax.tree.map(lambda g: g if g.dtype == jax.dtypes.float0 else -g, tree),),
)


def test_a_head_behind_a_gradient_of_its_own_skips():
    """What that does to the head's gradient is not known."""
    table, state, _ = applied(lambda table, hidden, labels: head_loss(turned(table), hidden, labels))
    np.testing.assert_array_equal(table, DATA.params()["head"])
    assert skipped_batches(state) == {"": 1}


def test_a_second_derivative_is_refused():
    def penalty(table, hidden, labels):
        return jnp.sum(jax.grad(lambda hidden: head_loss(table, hidden, labels))(hidden) ** 2)

    with pytest.raises(TypeError, match=r"was differentiated again, .*: leave the head out of heads"):
        applied(penalty)


def test_two_casts_are_refused():
    with pytest.raises(TypeError, match=r"was cast to bfloat16 and then to float32, .*: cast it once, or"):
        applied(lambda table, *batch: head_loss(table.astype(jnp.bfloat16).astype(jnp.float32), *batch))


def test_a_cast_to_the_dtype_of_products():
    """To bfloat16, by a method or in a whole tree: as in the dense loss, but the gradient is not rounded to 16 bits."""
    hidden, labels = DATA.hidden(DATA.params(), DATA.batch(0)[0]), DATA.batch(0)[1]

    def cast(table, hidden, labels):
        assert table.dtype == jnp.float32
        return head_loss(table.astype(jnp.bfloat16), hidden.astype(jnp.bfloat16), labels)

    dense = jax.value_and_grad(cast)(DATA.params()["head"], hidden, labels)
    value, grads = row_sparse.value_and_grad(cast, heads="")(DATA.params()["head"], None, hidden, labels)
    np.testing.assert_allclose(value, dense[0], rtol=1e-6)
    squares = jnp.sum(dense[1].astype(jnp.float32) ** 2)
    np.testing.assert_allclose(grads.squared_norm, squares, rtol=1e-2)


def test_has_aux_and_other_arguments():
    def loss_fn(table, hidden, labels):
        return head_loss(table, hidden, labels), {"tokens": labels.size}

    hidden, labels = DATA.hidden(DATA.params(), DATA.batch(0)[0]), DATA.batch(0)[1]
    (loss, aux), grads = row_sparse.value_and_grad(loss_fn, has_aux=True, heads=[""])(DATA.params()["head"], None, hidden, labels)
    assert aux == {"tokens": 24} and grads.shape == (64, 16)
    np.testing.assert_allclose(loss, head_loss(DATA.params()["head"], hidden, labels), rtol=1e-6)


@pytest.mark.parametrize(
    "scale", [lambda u: 2.0 * u, lambda u: u * jnp.float32(2), lambda u: np.float32(2) * u, lambda u: -(u / -0.5)]
)
def test_is_linear(scale):
    """Gradients and updates may be multiplied by numbers of any kind, on both sides."""
    doubled = optax.stateless(lambda updates, params: jax.tree.map(scale, updates))
    twice = applied(tx=optax.chain(ember(1e-2, optax.adamw(1e-2), tables=TABLE), doubled))[0]
    assert_same(twice, usual(TWICE)[0])
    (_, state, _), (_, once, _) = applied(tx=optax.chain(doubled, ember(1e-2, optax.adamw(1e-2), tables=TABLE))), usual()
    assert_same(optax.tree.get(state, "nu_token"), 4 * optax.tree.get(once, "nu_token"))


def test_schedules_and_injected_hyperparameters():
    schedule = optax.inject_hyperparams(ember, static_args=("tables",))(
        optax.linear_schedule(1e-2, 1e-3, 3), optax.adamw(1e-2), tables=TABLE
    )
    assert_same(applied(tx=schedule)[0], usual()[0])
    assert_same(
        applied(tx=ember(optax.constant_schedule(1e-2), optax.adamw(optax.constant_schedule(1e-2)), tables=TABLE))[0],
        usual()[0],
    )


@pytest.mark.parametrize("token_axis", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_stochastic_rounding(token_axis):
    """Rounded as the float32 updates are in a dense step, but for sums that differ in their last place."""

    def loss(table, hidden, labels):
        return linear_softmax_cross_entropy(hidden, table, labels, token_axis=token_axis, chunk=16).mean()

    numbers = EmberDimensionNumbers(token_axis)
    table = (0.02 * DATA.params()["head"]).astype(jnp.bfloat16)
    table = table.T if token_axis else table
    tx, rounding = ember(1e-4, optax.adamw(1e-4), tables=numbers), stochastic_rounding(3)
    found, _, _ = applied(loss, optax.chain(tx, rounding), table, tables=numbers)
    exact, _, _ = applied(loss, tx, table.astype(jnp.float32), tables=numbers)
    update, _ = rounding.update(exact - table.astype(jnp.float32), rounding.init(table), table)
    wanted = optax.apply_updates(table, update)
    assert found.dtype == jnp.bfloat16 and (found != table).any()
    assert np.mean(np.asarray(found == wanted)) > 0.99
    nearest, _, _ = applied(loss, tx, table, tables=numbers)
    assert (found != nearest).any()


def test_a_clip_by_another_norm_would_differ():
    """The norm of the fused head enters that of all others."""
    grads = {"a": jnp.ones(3), "head": None}
    hidden, labels = DATA.hidden(DATA.params(), DATA.batch(0)[0]), DATA.batch(0)[1]
    _, grads["head"] = row_sparse.value_and_grad(head_loss, heads="")(DATA.params()["head"], None, hidden, labels)
    dense = jax.grad(head_loss)(DATA.params()["head"], hidden, labels)
    clipped, _ = row_sparse.clip_by_global_norm(0.1).update(grads, optax.EmptyState())
    wanted, _ = optax.clip_by_global_norm(0.1).update({"a": jnp.ones(3), "head": dense}, optax.EmptyState())
    np.testing.assert_allclose(clipped["a"], wanted["a"], rtol=1e-6)
    np.testing.assert_allclose(clipped["head"].squared_norm, jnp.sum(wanted["head"] ** 2), rtol=1e-5)
    kept, _ = row_sparse.clip_by_global_norm(1e6).update(grads, optax.EmptyState())
    np.testing.assert_array_equal(kept["a"], 1.0)
    assert kept["head"].factor == 1.0


def test_the_clip_adds_equal_ids_up():
    rows, ids, params = jnp.ones((3, 2)), {"w": jnp.array([5, 1, 5])}, {"w": jnp.zeros((8, 2))}
    clipped, _ = row_sparse.clip_by_global_norm(1.0).update({"w": rows}, optax.EmptyState(), params, token_ids=ids)
    np.testing.assert_allclose(clipped["w"], rows / np.sqrt(10), rtol=1e-6)
