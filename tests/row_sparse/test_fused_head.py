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

from ember_optax import row_sparse

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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("token_axis, tokens", [(0, 12), (1, 12), (0, 20)], ids=str)
def test_a_tied_head_keeps_its_state_in_float32(token_axis, tokens, dtype):
    """With x64 and a float64 table: the features' statistic was float64 after the first step, or no step could be taken."""
    with enable_x64(True):
        model = Model(tied=True, token_axis=token_axis, tokens=tokens, dtype=dtype)
        tx = transformation(model)
        params, (ids, labels, where) = model.params(), model.batch(0)
        state = jax.eval_shape(tx.init, params)
        params, after, _ = jax.eval_shape(fused_step(model, tx), params, state, ids.astype(jnp.int64), labels, where)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), state
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
