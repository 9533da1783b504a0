"""The loss in chunks against the dense one in float64: values and gradients, for all options, layouts and sizes."""

import functools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunked_loss import OPTIONS, dense, exact, example, largest_error, of
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax.losses import linear_softmax_cross_entropy

law = hypothesis.settings(max_examples=12, deadline=None, derandomize=True)


@law
@hypothesis.given(
    size=st.sampled_from([1, 2, 7, 16, 33]),
    width=st.sampled_from([1, 5]),
    shape=st.sampled_from([(), (1,), (3, 4)]),
    token_axis=st.integers(0, 1),
    options=st.sampled_from(OPTIONS),
    chunk=st.sampled_from([1, 3, 16, None]),
    seed=st.integers(0, 3),
)
def test_is_the_dense_loss(size, width, shape, token_axis, options, chunk, seed):
    arrays = example(size, width, shape, token_axis, seed=seed)
    gradients, losses = of(linear_softmax_cross_entropy, token_axis=token_axis, chunk=chunk, **options)(*arrays, None)
    for found, expected in zip((losses, *gradients), exact(*arrays, token_axis=token_axis, **options), strict=True):
        assert found.dtype == jnp.float32
        # With one token, or where labels are spread over all of few, what is left of a difference is small.
        assert np.abs(np.asarray(found) - np.asarray(expected)).max() < 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("token_axis, options", [(0, OPTIONS[0]), (1, OPTIONS[-1])], ids=str)
def test_masked_tokens_do_not_count(token_axis, options):
    """Whatever their labels and hidden states."""
    hidden, table, labels, weights = example(33, 5, (3, 4), token_axis)
    where = jnp.arange(12).reshape(3, 4) % 3 > 0
    expected = exact(hidden, table, labels, weights, where, token_axis=token_axis, **options)
    spoilt = jnp.where(where[..., None], hidden, jnp.nan), table, jnp.where(where, labels, -100), weights, where
    gradients, losses = of(linear_softmax_cross_entropy, token_axis=token_axis, chunk=8, **options)(*spoilt)
    assert not losses[~where].any() and not gradients[0][~where].any()
    for found, wanted in zip((losses, *gradients), expected, strict=True):
        assert largest_error(found, wanted) < 2e-6


def test_masked_tokens_of_a_vocabulary_of_one():
    """What stands in for their labels exists in every vocabulary."""
    hidden, table, labels, weights = example(1, 5, (3,))
    gradients, losses = of(linear_softmax_cross_entropy)(hidden, table, labels, weights, jnp.array([True, False, False]))
    for found in (losses, *gradients):
        np.testing.assert_allclose(found, 0, atol=1e-6)


@pytest.mark.parametrize("tokens, width, rows", [(16, 4, 2048), (1 << 16, 4, 512), (1 << 20, 4, 128), (16, 8192, 1024)])
def test_the_default_chunk_bounds_the_logits_and_the_rows_at_once(tokens, width, rows):
    hidden, table = (jax.ShapeDtypeStruct((size, width), jnp.float32) for size in (tokens, 1 << 18))
    jaxpr = str(jax.make_jaxpr(linear_softmax_cross_entropy)(hidden, table, jax.ShapeDtypeStruct((tokens,), jnp.int32)))
    assert {int(found) for found in re.findall(rf"f32\[{tokens},(\d+)\]", jaxpr)} == {1, width, rows}


def test_a_mask_may_broadcast():
    hidden, table, labels, _ = example(33, 5, (3, 4))
    losses = linear_softmax_cross_entropy(hidden, table, labels, where=jnp.arange(4) < 2)
    np.testing.assert_array_equal(losses[:, 2:], 0)
    np.testing.assert_array_equal(losses[:, :2], linear_softmax_cross_entropy(hidden, table, labels)[:, :2])


@pytest.mark.parametrize("label", [-1, 33, 100])
def test_a_label_outside_is_nan(label):
    """Loss and gradients, so that nobody trains on it unseen."""
    hidden, table, _, weights = example(33, 5, (1,))
    (of_hidden, of_table), losses = of(linear_softmax_cross_entropy)(hidden, table, jnp.array([label]), weights, None)
    assert jnp.isnan(losses).all() and jnp.isnan(of_hidden).all() and jnp.isnan(of_table).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("options", [{}, {"soft_cap": 3.0, "z_loss": 0.1, "label_smoothing": 0.2}], ids=str)
def test_half_precision_is_as_good_as_the_dense_loss(dtype, options):
    """And returned in float32; the gradients in the arguments' dtypes."""
    arrays = example(300, 64, (32,), dtype=dtype)
    expected = exact(*arrays, **options)
    gradients, losses = of(linear_softmax_cross_entropy, chunk=64, **options)(*arrays, None)
    dense_gradients, dense_losses = of(dense, **options)(*arrays, None)
    assert losses.dtype == jnp.float32 and {g.dtype for g in gradients} == {jnp.dtype(dtype)}
    for found, usual, wanted in zip((losses, *gradients), (dense_losses, *dense_gradients), expected, strict=True):
        assert largest_error(found, wanted) <= max(1.05 * largest_error(usual, wanted), 1e-6)


def test_mixed_dtypes_multiply_in_the_wider():
    hidden, table, labels, weights = example(33, 5, (4,))
    narrow = hidden.astype(jnp.bfloat16)
    gradients, losses = of(linear_softmax_cross_entropy)(narrow, table, labels, weights, None)
    assert largest_error(losses, exact(narrow, table, labels, weights)[0]) < 1e-6
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]


def test_large_logits_do_not_overflow():
    """Also where the first chunk is far below the second."""
    hidden, table, labels, weights = example(33, 5, (4,))
    table = table.at[20:].multiply(1e3)
    gradients, losses = of(linear_softmax_cross_entropy, chunk=8)(hidden, table, labels, weights, None)
    for found, wanted in zip((losses, *gradients), exact(hidden, table, labels, weights), strict=True):
        assert largest_error(found, wanted) < 1e-6


def losses_and_gradient(hidden, table, labels):
    def total(table):
        losses = linear_softmax_cross_entropy(hidden, table, labels, chunk=8)
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(table)
    return losses, gradient


def test_under_vmap_and_checkpoint():
    hidden, table, labels, _ = example(33, 5, (3, 4))
    tables = jnp.stack([table, table + 1.0, table * 2.0])
    mapped = jax.jit(jax.vmap(losses_and_gradient))(hidden, tables, labels)
    one_by_one = [jax.jit(losses_and_gradient)(*each) for each in zip(hidden, tables, labels, strict=True)]
    for found, expected in zip(mapped, zip(*one_by_one, strict=True), strict=True):
        np.testing.assert_allclose(found, jnp.stack(expected), rtol=2e-5, atol=1e-6)
    plain, again = (
        jax.jit(jax.grad(lambda *a, f=f: f(*a, labels).sum(), (0, 1)))(hidden, table)
        for f in (linear_softmax_cross_entropy, jax.checkpoint(linear_softmax_cross_entropy))
    )
    for found, expected in zip(again, plain, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("varies", [0, 1, 2], ids=["hidden", "table", "labels"])
def test_what_one_argument_varies_over_the_losses_do(varies):
    """The others are the same on all devices."""
    arrays = list(example(40, 5, (4, 2))[:3])
    other = (arrays[varies] + 1) % 40
    expected = jnp.concatenate(
        [linear_softmax_cross_entropy(*arrays), linear_softmax_cross_entropy(*arrays[:varies], other, *arrays[varies + 1 :])]
    )
    arrays[varies] = jnp.concatenate([arrays[varies], other])
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    in_specs = tuple(P("data") if i == varies else P() for i in range(3))
    chunked = functools.partial(linear_softmax_cross_entropy, chunk=16)  # a loop, which carries what varies
    function = jax.shard_map(chunked, mesh=mesh, in_specs=in_specs, out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(function)(*arrays), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["shard_map", "auto", "explicit", "auto, rows of the table"])
def test_on_eight_devices(kind):
    """The batch over `data`: each token's loss, and the gradient of the table summed over all."""
    arrays = example(40, 5, (8, 2))[:3]
    expected = jax.jit(losses_and_gradient)(*arrays)
    axis_type = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    split, whole = P("data"), P()
    in_specs = (split, P("data") if "rows" in kind else whole, split)
    if kind == "shard_map":
        function = jax.shard_map(losses_and_gradient, mesh=mesh, in_specs=in_specs, out_specs=(split, whole))
    else:
        function = losses_and_gradient
        arrays = [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, in_specs, strict=True)]
    for one, other in zip(jax.jit(function)(*arrays), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
