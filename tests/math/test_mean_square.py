"""The mean of squares in blocks or parts: the same numbers as one reduction, without a copy, only where it may be used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import make_mesh
from quickly import fully_compiled

from ember_optax._math.platform_forms import blocked_mean_square, cpu_mean_square, parted_mean_square

LARGE = {
    "(V, D)": ((16_411, 129), (0,)),
    "(D, V)": ((96, 16_411), (0,)),
    "stacked": ((3, 4_099, 130), (1,)),
    "head": ((8, 16, 9_001), (0, 1)),
    "long rows": ((32, 50_257), (1,)),
    "several long axes": ((24, 30, 1_536), (1, 2)),
}
# What shows in the program: the loop over blocks, or the parts of the rows.
PLACE = dict.fromkeys(LARGE, "stablehlo.while") | {"long rows": "tensor<928x1733x", "several long axes": "tensor<72x15360x"}


def expected(x, axes):
    return np.square(np.asarray(x, np.float64)).mean(axes, keepdims=True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", LARGE)
def test_large_arrays(name, dtype):
    shape, axes = LARGE[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    lowered = jax.jit(cpu_mean_square, static_argnums=1).lower(x, axes)
    assert PLACE[name] in lowered.as_text(), "this size should take blocks or parts on one CPU"
    with fully_compiled():
        compiled = lowered.compile()
    # XLA on CPU writes a float16 array as float32 before it sums rows, before jax 0.10 the squares of any array.
    sums_rows = axes[-1] == x.ndim - 1
    if not sums_rows or (dtype != jnp.float16 and jax.__version_info__ >= (0, 10)):
        assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 4
    found = compiled(x)
    assert found.dtype == jnp.float32
    assert found.shape == expected(x, axes).shape
    np.testing.assert_allclose(found, expected(x, axes), rtol=1e-6)


# Each example is compiled.
EXAMPLES = pytest.mark.parametrize("examples", [15, pytest.param(100, marks=pytest.mark.slow)])


@EXAMPLES
def test_any_shape_and_block(examples):
    @settings(deadline=None, max_examples=examples)
    @given(
        st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 40)),
        st.sampled_from([(0,), (1,), (0, 1)]),
        st.integers(1, 3000),
    )
    def check(shape, axes, block):
        x = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
        found = jax.jit(blocked_mean_square, static_argnums=(1, 2))(x, axes, block)
        np.testing.assert_allclose(found, expected(x, axes), rtol=1e-6)

    check()


@EXAMPLES
def test_any_part(examples):
    @settings(deadline=None, max_examples=examples)
    @given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 12), st.integers(1, 90))
    def check(batch, rows, parts, part):
        x = np.random.default_rng(rows).normal(size=(batch, rows, parts * part)).astype(np.float32)
        last_axes = (2,), (1, 2), (0, 1, 2)
        found = jax.jit(lambda x: [parted_mean_square(x, axes, part) for axes in last_axes])(x)
        for axes, mean in zip(last_axes, found, strict=True):
            np.testing.assert_allclose(mean, expected(x, axes), rtol=1e-6)

    check()


def test_not_finite_is_seen():
    for place in ((0, 0), (16_410, 128), (16_400, 5)):
        x = np.ones((16_411, 129), np.float32)
        x[place] = np.inf
        found = np.asarray(cpu_mean_square(jnp.asarray(x), (0,)))[0]
        assert (~np.isfinite(found)).nonzero()[0].tolist() == [place[1]]


def test_vmap():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8_209, 129)), jnp.float32)
    found = jax.vmap(lambda x: cpu_mean_square(x, (0,)))(x)
    np.testing.assert_allclose(found, expected(x, (1,)), rtol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_array_is_not_sliced(axis_type):
    """Slices of a sharded axis would gather the array."""
    mesh = make_mesh(axis_type)
    x = jax.ShapeDtypeStruct((16_384, 128), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    with jax.set_mesh(mesh):
        text = jax.jit(cpu_mean_square, static_argnums=1).lower(x, (0,)).compile().as_text()
    assert "while" not in text
    assert "all-gather" not in text
