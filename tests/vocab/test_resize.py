"""Growing and cutting: every layout of a table, what new rows are, and what comes back bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from steps import dense_step, jitted

from ember_optax import EmberDimensionNumbers, TokenTables, ember, scale_by_ember, state_partition_specs, token_tables, vocab

V, D, K = 12, 4, 3
# A table of each layout, with its token axis and batch axes.
LAYOUTS = {
    "(V, D)": ((V, D), EmberDimensionNumbers()),
    "(D, V)": ((D, V), EmberDimensionNumbers(1)),
    "(V, L, P)": ((V, 3, 2), EmberDimensionNumbers()),
    "(K, V, D)": ((K, V, D), EmberDimensionNumbers(1, batch_axes=(0,))),
    "(V, K, D)": ((V, K, D), EmberDimensionNumbers(0, batch_axes=(1,))),
    "(V,)": ((V,), EmberDimensionNumbers()),
}
EACH_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def trained(layout, dtype=jnp.float32):
    """A transformation with a table of this layout, and what three steps made of parameters and state."""
    shape, numbers = LAYOUTS[layout]
    tx = optax.chain(scale_by_ember(dimension_numbers=numbers), optax.scale(-0.1))
    params = {"table": draw(shape).astype(dtype)}
    state = tx.init(params)
    for seed in (1, 2, 3):
        params, state = jitted(dense_step, tx)(params, state, {"table": draw(shape, seed).astype(dtype)})
    return tx, params, state


def resized(layout, size, dtype=jnp.float32, **options):
    tx, params, state = trained(layout, dtype)
    return vocab.resize(tx, params, state, size, tables=LAYOUTS[layout][1], **options)


def rows_first(array, layout):
    return np.moveaxis(np.asarray(array), LAYOUTS[layout][1].token_axis, 0)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b))


@EACH_LAYOUT
def test_old_rows_stay_and_new_ones_are_zero(layout):
    _, params, state = trained(layout)
    changed = resized(layout, V + 5, initializer="zeros")
    table = rows_first(changed.params["table"], layout)
    assert (table[:V] == rows_first(params["table"], layout)).all() and (table[V:] == 0).all() and len(table) == V + 5
    assert changed.new_ids.tolist() == list(range(V))
    assert (changed.opt_state[0].count["table"] == state[0].count["table"]).all()


@EACH_LAYOUT
@pytest.mark.parametrize("size", [2 * V, V + 7])
def test_growing_and_cutting_back(layout, size):
    tx, params, state = trained(layout)
    there = resized(layout, size, initializer="zeros")
    back = vocab.resize(tx, there.params, there.opt_state, V, tables=LAYOUTS[layout][1])
    assert equal(back.params, params)
    ours, theirs = back.opt_state[0], state[0]
    for field in ("count", "nu_token", "total_notfinite"):
        assert equal(getattr(ours, field), getattr(theirs, field)), field
    # Factors that are no powers of two round twice, and no rounding has an inverse: 2^23 numbers of one exponent go to fewer.
    ulps = 0 if size == 2 * V else 1
    np.testing.assert_array_max_ulp(ours.nu_feature["table"], theirs.nu_feature["table"], ulps)


@EACH_LAYOUT
def test_the_averages_agree_after_growing(layout):
    """`mean(nu_token) = mean(nu_feature)` holds of every table that training made; also with more rows."""
    _, numbers = LAYOUTS[layout]
    state = resized(layout, V + 5).opt_state[0]
    for k in range(K if numbers.batch_axes else 1):
        token, feature = state.nu_token["table"], state.nu_feature["table"]
        if numbers.batch_axes:  # which is the last axis of (V, K), else the first
            token, feature = jnp.take(token, k, numbers.batch_axes[0]), feature[k]
        np.testing.assert_allclose(token.mean(), feature.mean(), rtol=1e-6)


@EACH_LAYOUT
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda t: t.__name__)
def test_mean_rows(layout, dtype):
    _, params, _ = trained(layout, dtype)
    table = resized(layout, V + 2, dtype).params["table"]
    mean = rows_first(params["table"].astype(jnp.float32), layout).mean(0)
    assert table.dtype == dtype
    np.testing.assert_allclose(
        rows_first(table.astype(jnp.float32), layout)[V:], [mean] * 2, rtol=1e-2 if dtype != jnp.float32 else 1e-5, atol=1e-6
    )


@EACH_LAYOUT
def test_gaussian_rows_have_mean_and_covariance(layout):
    count = 5_000
    _, params, _ = trained(layout)
    table = resized(layout, V + count, initializer="gaussian", key=jax.random.key(0), covariance_scale=1.0).params["table"]
    old, new = rows_first(params["table"], layout), rows_first(table, layout)[V:]
    batch = LAYOUTS[layout][1].batch_axes
    for k in range(K if batch else 1):
        before, after = (x[:, k] if batch else x.reshape(len(x), -1) for x in (old, new))
        np.testing.assert_allclose(after.mean(0), before.mean(0), atol=0.1)
        np.testing.assert_allclose(np.cov(after.T, bias=True), np.cov(before.T, bias=True), atol=0.2)
    if batch:  # each of the stacked tables has draws of its own
        assert abs(np.corrcoef(new[:, 0, 0], new[:, 1, 0])[0, 1]) < 0.1


def test_gaussian_rows_as_hugging_face_draws_them():
    """With the default scale they are the mean, told apart: 3e-5 standard deviations."""
    _, params, _ = trained("(V, D)")
    new = resized("(V, D)", V + 500, initializer="gaussian", key=jax.random.key(1)).params["table"][V:]
    np.testing.assert_allclose(new, np.broadcast_to(params["table"].mean(0), new.shape), atol=3e-4)
    np.testing.assert_allclose(new.std(0), params["table"].std(0) * 1e-9**0.5, rtol=0.15)
    assert len(np.unique(np.asarray(new), axis=0)) == 500


def test_gaussian_draws_differ_between_tables_and_keys():
    params = {"embed": {"embedding": draw((V, D))}, "lm_head": {"kernel": draw((V, D)).T}}
    grow = functools.partial(vocab.resize, None, params, None, V + 4, initializer="gaussian", covariance_scale=1.0)
    first, again, other = (grow(key=jax.random.key(seed)).params for seed in (0, 0, 1))
    assert equal(first, again)
    assert not np.allclose(first["embed"]["embedding"][V:], first["lm_head"]["kernel"].T[V:])
    assert not np.allclose(first["embed"]["embedding"][V:], other["embed"]["embedding"][V:])


def test_padding_to_a_multiple():
    assert resized("(V, D)", V + 1, pad_to_multiple_of=8).params["table"].shape == (16, D)
    assert resized("(V, D)", V, pad_to_multiple_of=12).params["table"].shape == (V, D)


def test_every_table_of_the_vocabulary_and_a_bias_beside_it():
    params = {
        "embed": {"embedding": draw((V, D))},
        "lm_head": {"kernel": draw((D, V)), "bias": draw((V,))},
        "layers": {"kernel": draw((D, D)), "bias": draw((D,))},
    }
    tx = ember(1e-2, optax.adamw(1e-2))
    changed = vocab.resize(tx, params, tx.init(params), V + 3)
    assert jax.tree.map(jnp.shape, changed.params) == {
        "embed": {"embedding": (V + 3, D)},
        "lm_head": {"kernel": (D, V + 3), "bias": (V + 3,)},
        "layers": {"kernel": (D, D), "bias": (D,)},
    }
    body = optax.tree.get(changed.opt_state, "ScaleByAdamState")
    assert body.mu["lm_head"]["bias"].shape == (V + 3,)
    np.testing.assert_allclose(changed.params["lm_head"]["bias"][V:], params["lm_head"]["bias"].mean(), rtol=1e-5)


def test_half_a_change_is_refused():
    params = {"embed": {"embedding": draw((V, D))}, "classifier": {"weights": draw((D, V))}, "gate": draw((V,))}
    with pytest.raises(
        ValueError, match=r"\{'classifier/weights': \(4, 12\), 'gate': \(12,\)\} would be left behind.*unrelated="
    ):
        vocab.resize(None, params, None, V + 1)
    tables = TokenTables(include=["classifier/weights"])
    grown = vocab.resize(None, params, None, V + 1, tables=tables, unrelated=["gate"]).params
    assert grown["classifier"]["weights"].shape == (D, V + 1) and grown["gate"].shape == (V,)


def test_vocabularies_of_different_sizes():
    params = {"encoder": {"embed": {"embedding": draw((V, D))}}, "decoder": {"embed": {"embedding": draw((V + 1, D))}}}
    with pytest.raises(
        ValueError, match=r"different sizes: 'decoder/embed/embedding' 13, axis 0 .*embedding' 12, axis 0 .*names=\['decoder"
    ):
        vocab.resize(None, params, None, V + 2)
    assert vocab.resize(None, params, None, V + 2, names=["encoder.*"]).params["encoder"]["embed"]["embedding"].shape == (
        V + 2,
        D,
    )


def test_shapes_alone():
    """What a checkpoint of the changed model will hold, without a model."""
    tx, params, state = trained("(V, D)")
    grown = jax.eval_shape(lambda p, s: vocab.resize(tx, p, s, V + 4, tables=LAYOUTS["(V, D)"][1])[:2], params, state)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, resized("(V, D)", V + 4)[:2])


def test_partition_specs_follow():
    """What is found of the changed model is what is found of the old one."""
    tx, params, _ = trained("(V, D)")
    grown = resized("(V, D)", V + 4)
    specs = {"table": P("x", None)}
    assert state_partition_specs(tx, params, specs) == state_partition_specs(tx, grown.params, specs)


def test_an_ember_that_takes_the_vocabulary_for_features():
    """It sees the head alone, stored the unusual way: its mean over the tokens would keep the old vocabulary's size."""
    params = {"wte": draw((V, D)), "lm_head": draw((V, D))}

    def tx_of(numbers):
        parts = {name: scale_by_ember(dimension_numbers=numbers) for name in params}
        return optax.partition(parts, {name: name for name in params})

    tx = tx_of(token_tables)
    with pytest.raises(ValueError, match=r"tokens of 'lm_head' of shape \(12, 4\) .* along axis 0, but in tx along axis 1: de"):
        vocab.resize(tx, params, tx.init(params), V + 1)
    tx = tx_of(TokenTables(include={"lm_head": EmberDimensionNumbers(0)}))
    assert vocab.resize(tx, params, tx.init(params), V + 1).params["lm_head"].shape == (V + 1, D)


@pytest.mark.parametrize(("size", "initializer"), [(V + 4, "zeros"), (V - 4, "zeros"), (V + 4, "mean")])
def test_init_is_asked_once_for_each_question(size, initializer):
    """For the shapes of the state, for the axes (with distinct sizes), and for the new state."""
    asked, inner = [], ember(1e-2, optax.adamw(1e-3))

    def init(params):
        asked.append(params["embed"]["embedding"].shape)
        return inner.init(params)

    params = {"embed": {"embedding": draw((V, D))}, "dense": {"kernel": draw((D, D))}}
    state = inner.init(params)
    vocab.resize(optax.GradientTransformation(init, inner.update), params, state, size, initializer=initializer)
    assert len(asked) == 3
    assert (asked[0], asked[-1]) == ((V, D), (size, D))
