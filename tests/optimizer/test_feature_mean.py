"""`feature_mean="active_rows"`: the code that the paper came with, against float64; the default beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import NumpyEmber
from steps import to_dense

from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember, skipped_batches

V, D, STEPS = 40, 8, 12


class NumpyPaperEmber(NumpyEmber):
    """The statistic of the features over the rows that have a gradient, and the mean over tokens in the profile."""

    def update(self, g):
        g = np.asarray(g, np.float64)
        active = max(1, int((g**2).any(1).sum()))
        self.t += 1
        self.token = self.b2 * self.token + (1 - self.b2) * np.mean(g**2, axis=1)
        self.feature = self.b2 * self.feature + (1 - self.b2) * np.sum(g**2, axis=0) / active
        v_hat = np.outer(self.token, self.feature / self.token.mean()) / (1 - self.b2**self.t)
        denominator = np.sqrt(v_hat) + self.eps
        return np.divide(g, denominator, out=np.zeros_like(g), where=denominator > 0)


def batches(padding=0):
    rng = np.random.default_rng(0)
    spread = np.exp(rng.normal(size=(1, D)))
    return [(rng.integers(0, V, 10), (rng.normal(size=(10, D)) * spread).astype(np.float32)) for _ in range(STEPS)]


def dense_of(batch, size=V):
    return to_dense(batch[1], batch[0], (size, D))


@pytest.mark.parametrize("b2", [0.9, 0.999])
@pytest.mark.parametrize("token_axis", [0, 1])
@pytest.mark.parametrize("compact", [False, True])
def test_matches_float64(b2, token_axis, compact):
    oracle = NumpyPaperEmber((V, D), b2)
    turn = np.transpose if token_axis else np.asarray
    tx = scale_by_ember(b2, feature_mean="active_rows", dimension_numbers=EmberDimensionNumbers(token_axis))
    table = jnp.asarray(turn(np.zeros((V, D), np.float32)))
    state, update = tx.init(table), jax.jit(tx.update)
    for ids, rows in batches():
        expected = oracle.update(dense_of((ids, rows)))
        if compact:
            updates, state = update(jnp.asarray(turn(rows)), state, table, token_ids=jnp.asarray(ids))
            found = to_dense(turn(np.asarray(updates)), ids, (V, D))
        else:
            updates, state = update(jnp.asarray(turn(dense_of((ids, rows)))), state)
            found = turn(np.asarray(updates))
        np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-9)
    np.testing.assert_allclose(state.nu_token, oracle.token, rtol=3e-6)
    np.testing.assert_allclose(state.nu_feature, oracle.feature, rtol=3e-6)


def test_coincides_with_the_default_where_every_row_has_a_gradient():
    grads = jnp.asarray(np.random.default_rng(1).normal(size=(5, V, D)), jnp.float32)
    runs = []
    for feature_mean in ("all_rows", "active_rows"):
        tx = scale_by_ember(feature_mean=feature_mean)
        runs.append(jax.lax.scan(lambda state, g, tx=tx: tx.update(g, state)[::-1], tx.init(grads[0]), grads)[1])
    np.testing.assert_allclose(*runs, rtol=3e-6)


def test_steps_are_smaller_by_the_root_of_the_active_share_and_depend_on_padding():
    """As the docstring says: a share s of the rows gives steps of sqrt(s) times the size."""
    g = jnp.zeros((100, D)).at[:16].set(1.0)

    def first_step(feature_mean, g):
        tx = scale_by_ember(feature_mean=feature_mean)
        return float(tx.update(g, tx.init(g))[0][0, 0])

    assert first_step("active_rows", g) / first_step("all_rows", g) == pytest.approx(0.4, rel=1e-5)
    padded = jnp.concatenate([g, jnp.zeros((300, D))])
    assert first_step("all_rows", padded) == pytest.approx(first_step("all_rows", g), rel=1e-5)
    assert first_step("active_rows", padded) == pytest.approx(0.5 * first_step("active_rows", g), rel=1e-5)


def test_a_batch_without_gradient_and_a_poisoned_one():
    tx = ember(1e-2, optax.adamw(1e-2), tables=EmberDimensionNumbers(), feature_mean="active_rows")
    table = jnp.ones((V, D))
    clean = [dense_of(batch) for batch in batches()[:3]]

    def train(grads):
        params, state = table, tx.init(table)
        for g in grads:
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params

    expected = train(clean)
    np.testing.assert_array_equal(train([clean[0], clean[1].at[0, 0].set(jnp.nan), *clean[1:]]), expected)
    assert np.isfinite(train([jnp.zeros((V, D)), *clean, jnp.zeros((V, D))])).all()
    state = tx.update(jnp.zeros((V, D)), tx.init(table), table)[1]
    assert skipped_batches(state) == {"": 0}, "a batch without a gradient counts"


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("mode", ["auto", "explicit", "shard_map"])
def test_sharded(mode, compact):
    """Two devices for the rows and two for the features, against one device."""
    axis_type = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("fsdp", "tp"), axis_types=(axis_type,) * 2)
    spec, rows_spec = PartitionSpec("fsdp", "tp"), PartitionSpec(None, "tp")
    table = jnp.ones((V, D))
    inside = {"token_mesh_axes": "fsdp", "feature_mesh_axes": "tp"} if mode == "shard_map" else {}

    def run(tx, table, state, grads, ids, local):
        def step(carry, batch):
            (params, state), (g, ids) = carry, batch
            given = {"token_ids": local(ids, params)} if compact else {}
            updates, state = tx.update(g, state, params, **given)
            return (row_sparse.apply_updates(params, updates, given.get("token_ids")), state), None

        return jax.lax.scan(step, (table, state), (grads, ids))[0][0]

    ids = jnp.asarray(np.stack([ids for ids, _ in batches()]))
    grads = jnp.stack([jnp.asarray(rows) if compact else dense_of((ids, rows)) for ids, rows in batches()])

    def make(**options):
        return optax.chain(scale_by_ember(feature_mean="active_rows", **options), optax.scale(-1e-2))

    tx = make()
    expected = jax.jit(lambda: run(tx, table, tx.init(table), grads, ids, lambda ids, _: ids))()
    tx = make(**inside)
    of_grads = PartitionSpec(None, *(rows_spec if compact else spec))
    placed = [jax.device_put(x, NamedSharding(mesh, of)) for x, of in ((table, spec), (grads, of_grads), (ids, PartitionSpec()))]
    if mode == "shard_map":

        def part(table, grads, ids):
            def local(ids, params):
                return row_sparse.local_token_ids({"": ids}, params, "fsdp")[""]

            return run(tx, table, tx.init(table), grads, ids, local)

        found = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(spec, of_grads, PartitionSpec()), out_specs=spec))(*placed)
    else:
        with jax.set_mesh(mesh):
            found = jax.jit(lambda t, g, i: run(tx, t, tx.init(t), g, i, lambda ids, _: ids))(*placed)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
