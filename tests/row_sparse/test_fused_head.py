"""A step with a fused head is the dense step: parameters, state and losses, whatever the layout and the options."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fused import Model, assert_same, dense_step, fused_step, run, transformation
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from x64 import enable_x64

from ember_optax import EmberDimensionNumbers, ember, row_sparse, skipped_batches, stochastic_rounding
from ember_optax.losses import linear_softmax_cross_entropy

ALL_OPTIONS = (("chunk", 8), ("soft_cap", 5.0), ("z_loss", 0.1), ("label_smoothing", 0.1))
UNTIED = Model()
TIED = Model(tied=True, token_axis=1, options=ALL_OPTIONS, masked=True)


def compare(model, steps, **options):
    """With a clip by the true norm, which all gradients of these steps exceed."""
    clipped, tx = (transformation(model, clip, **options) for clip in (optax.clip_by_global_norm, row_sparse.clip_by_global_norm))
    dense, fused = dense_step(model, clipped), fused_step(model, tx, lookups=model.tied)
    assert_same(run(lambda _: fused, model, tx, steps), run(lambda _: dense, model, clipped, steps))


def test_untied_head():
    compare(UNTIED, steps=5)


def test_tied_table():
    """With a mask, all options of the loss, weight decay and (D, V)."""
    compare(TIED, steps=5, weight_decay=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(("chunk", 8),), ALL_OPTIONS], ids=["plain", "all options"])
@pytest.mark.parametrize("token_axis", [0, 1])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_fifty_steps(tied, token_axis, options):
    model = Model(101, 12, 40, token_axis, tied, options=options, masked=len(options) > 1)
    compare(model, steps=50)
    compare(model, steps=50, weight_decay=0.1, feature_mean="active_rows")


@pytest.mark.slow
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
    size=st.integers(1, 40),
    width=st.integers(1, 9),
    tokens=st.integers(1, 50),
    token_axis=st.integers(0, 1),
    tied=st.booleans(),
    options=st.sampled_from([(("chunk", 8),), (("chunk", 1),), (("chunk", 64),), ALL_OPTIONS]),
    masked=st.booleans(),
)
def test_any_size(size, width, tokens, token_axis, tied, options, masked):
    """One token, more tokens than rows, a chunk that is longer than the vocabulary."""
    model = Model(size, width, tokens, token_axis, tied, options=options, masked=masked)
    tx = transformation(model)
    found, wanted = (run(lambda _, step=step: step(model, tx), model, tx, 3) for step in (fused_step, dense_step))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        # With one row the gradient is what is left of a difference, whose sign decides the step.
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 if size > 1 else 0.1)


def test_kinds_of_step_may_be_mixed():
    """Dense, row-sparse with a dense head, and fused, in any order: one state."""
    tx = transformation(UNTIED)
    gradient = row_sparse.value_and_grad(UNTIED.loss, tables=UNTIED.numbers)

    @jax.jit
    def sparse(params, opt_state, *batch):
        loss, grads = gradient(params, UNTIED.looked_up(batch[0]), *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    kinds = [fused_step(UNTIED, tx), dense_step(UNTIED, tx), sparse]
    found = run(lambda number: kinds[number % 3], UNTIED, tx, 6)
    assert_same(found, run(lambda _: kinds[1], UNTIED, tx, 6))


@pytest.mark.parametrize("model", [UNTIED, TIED], ids=["untied", "tied"])
def test_a_poisoned_batch_leaves_no_trace(model):
    """Bit for bit, as in a dense step: table and state are those of a run that never saw it."""
    tx = transformation(model, weight_decay=0.1)
    step = fused_step(model, tx)
    params, state, _ = step(model.params(), tx.init(model.params()), *model.batch(0))
    spoilt = {**params, "body": params["body"].at[0, 0].set(jnp.nan)}
    after, skipped, _ = step(spoilt, state, *model.batch(1))
    np.testing.assert_array_equal(after["head"], params["head"])
    assert optax.tree.get(skipped, "total_notfinite")["head"] == 1
    for name in ("nu_token", "nu_feature", "count"):
        np.testing.assert_array_equal(optax.tree.get(skipped, name)["head"], optax.tree.get(state, name)["head"])


def head_loss(table, hidden, labels):
    return linear_softmax_cross_entropy(hidden, table, labels, chunk=16).mean()


TABLE = EmberDimensionNumbers()
DATA = Model(64, 16, 24)


def applied(loss_fn=head_loss, tx=None, table=None, **options):
    """One fused step of a model that is a head alone, in the place of the whole parameter tree."""
    tx = ember(1e-2, optax.adamw(1e-2), tables=TABLE) if tx is None else tx
    table = DATA.params()["head"] if table is None else table
    hidden, labels = DATA.hidden(DATA.params(), DATA.batch(0)[0]), DATA.batch(0)[1]

    def step(table, state):
        loss, grads = row_sparse.value_and_grad(loss_fn, heads="", **options)(table, None, hidden, labels)
        updates, state = tx.update(grads, state, table)
        return optax.apply_updates(table, updates), state, loss

    return jax.jit(step)(table, tx.init(table))


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
    assert_same(applied(loss_fn), applied())


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
    assert_same(twice, applied(tx=ember(2e-2, optax.adamw(2e-2), tables=TABLE))[0])
    (_, state, _), (_, once, _) = applied(tx=optax.chain(doubled, ember(1e-2, optax.adamw(1e-2), tables=TABLE))), applied()
    assert_same(optax.tree.get(state, "nu_token"), 4 * optax.tree.get(once, "nu_token"))


def test_schedules_and_injected_hyperparameters():
    schedule = optax.inject_hyperparams(ember, static_args=("tables",))(
        optax.linear_schedule(1e-2, 1e-3, 3), optax.adamw(1e-2), tables=TABLE
    )
    assert_same(applied(tx=schedule)[0], applied()[0])
    assert_same(
        applied(tx=ember(optax.constant_schedule(1e-2), optax.adamw(optax.constant_schedule(1e-2)), tables=TABLE))[0],
        applied()[0],
    )


@pytest.mark.parametrize("token_axis", [0, 1])
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "table, batch", [(P(), P("data")), (P("rows"), P("data")), (P(None, "rows"), P(("data", "rows")))], ids=str
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_devices_agree(table, batch, tied):
    """Batch over devices, the table replicated or split; XLA places the chunks."""
    model = Model(64, 16, 24, tied=tied, options=(("chunk", 16),))
    tx = transformation(model)
    step = fused_step(model, tx)
    wanted = run(lambda _: step, model, tx, 3)
    mesh = jax.make_mesh((2, 4), ("data", "rows"), axis_types=(AxisType.Auto,) * 2)

    def there(tree, spec):
        return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)

    params = model.params()
    params = {name: there(leaf, table if name != "body" else P()) for name, leaf in params.items()}
    state, losses = tx.init(params), []
    for number in range(3):
        params, state, loss = step(params, state, *there(model.batch(number), batch))
        losses.append(float(loss))
    assert_same((params, state, losses), wanted)


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("token_axis, tokens", [(0, 12), (1, 12), (0, 20)], ids=str)
def test_a_tied_head_keeps_its_state_in_float32(token_axis, tokens, dtype):
    """With x64 and a float64 table: the features' statistic was float64 after the first step, or no step could be taken."""
    with enable_x64(True):
        model = Model(tied=True, token_axis=token_axis, tokens=tokens, dtype=dtype)
        tx = transformation(model)
        params = model.params()
        state = tx.init(params)
        ids, labels, where = model.batch(0)
        params, after, _ = fused_step(model, tx)(params, state, ids.astype(jnp.int64), labels, where)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), state
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
