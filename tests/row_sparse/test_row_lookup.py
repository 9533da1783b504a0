"""Looking rows up: padding, ids that were not declared, taps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from small_model import IDS, D, V, make_params
from steps import to_dense

from ember_optax import row_sparse
from ember_optax._math.rows import places_among


def test_lookup_of_padding_and_of_ids_that_were_not_declared():
    table = jnp.arange(1.0, 11.0)[:, None]
    part = row_sparse.RowSlice(table[jnp.array([2, 5])], jnp.array([2, 5]), 10)
    ids = jnp.array([[5, 2], [-1, 10]])
    for one in (table, part):
        np.testing.assert_array_equal(row_sparse.lookup(one, ids)[..., 0], [[6.0, 3.0], [0.0, 0.0]])
    np.testing.assert_array_equal(row_sparse.lookup(part, jnp.array([2, 3]))[:, 0], [3.0, np.nan])
    empty = row_sparse.RowSlice(table[:0], jnp.zeros(0, jnp.int32), 10)
    np.testing.assert_array_equal(empty[jnp.array([-1, 3])][:, 0], [0.0, np.nan])


@pytest.mark.parametrize("size", [0, 1, 2, 3, 64, 100])
def test_places_among_increasing_ids(size):
    rng = np.random.default_rng(size)
    increasing = np.sort(rng.choice(300, size, replace=False)).astype(np.int32)
    ids = np.arange(-2, 303, dtype=np.int32)
    np.testing.assert_array_equal(places_among(jnp.asarray(ids), jnp.asarray(increasing)), np.searchsorted(increasing, ids))


@pytest.mark.parametrize("features", ["model", "data", ("model", "data")], ids=str)
def test_rows_lie_as_ids_and_features_do(features):
    """With explicit axes; where both are split over one axis, the ids keep it."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    table = jax.device_put(jnp.arange(32.0).reshape(8, 4), NamedSharding(mesh, P(None, features)))
    rows = row_sparse.lookup(table, jax.device_put(jnp.array([3, -1]), NamedSharding(mesh, P("data"))))
    assert jax.typeof(rows).sharding.spec == P("data", "model" if features == "model" else None)
    np.testing.assert_array_equal(rows, [[12, 13, 14, 15], [0, 0, 0, 0]])


def test_a_tap_has_the_compact_gradient():
    params, ids = make_params(), IDS[:, :-1]

    def tapped(tap):
        x = row_sparse.lookup(params["embed"]["embedding"], ids, tap)
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["lm_head"]["kernel"], IDS[:, 1:]).mean()

    def plain(table):
        x = table[ids]
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["lm_head"]["kernel"], IDS[:, 1:]).mean()

    compact, expected = (
        jax.jit(jax.grad(tapped))(jnp.zeros((*ids.shape, D))),
        jax.jit(jax.grad(plain))(params["embed"]["embedding"]),
    )
    np.testing.assert_allclose(to_dense(compact, ids, (V, D)), expected, atol=1e-7)
    of_table = jax.grad(lambda table: row_sparse.lookup(table, ids, jnp.zeros((*ids.shape, D))).sum())
    assert not of_table(params["embed"]["embedding"]).any()
