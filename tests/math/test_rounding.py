"""Stochastic rounding: its mean, its neighbours, its edges, and the bits that it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ember_optax._math.rounding import bits_at, key_of, places_of, rounded, rounded_update

DRAWS = 1_000_000
DTYPES = [jnp.bfloat16, jnp.float16]
# Numbers between neighbours: every kind of exponent, both signs, just below a power of two, subnormal in float16.
BETWEEN = {
    jnp.bfloat16: [1.0005, -1.0005, 1.9999, -0.02003, 3e-30, -1.1e-37, 2.6e38, 3.3e4, 0.99999],
    jnp.float16: [1.0001, -1.0001, 1.9999, -0.020001, 3.2e-5, -7.7e-8, 2e-8, 65500.0, 6.1033e-5],
}


@functools.cache
def words(seed=0):
    return jax.jit(lambda key: bits_at(key, places_of((1000, DRAWS // 1000))))(key_of(seed, 3, 5))


@functools.partial(jax.jit, static_argnums=1)
def draws(x, dtype, bits):
    return rounded(jnp.broadcast_to(x, bits.shape), bits, dtype)


@pytest.mark.parametrize("dtype, x", [(dtype, x) for dtype in DTYPES for x in BETWEEN[dtype]], ids=str)
def test_is_unbiased(dtype, x):
    """The mean of a million draws is within four standard errors, and each is one of the two neighbours."""
    x = np.float32(x)
    found = np.asarray(draws(x, dtype, words()), np.float64)
    lower, upper = found.min(), found.max()
    assert lower < x < upper
    for number in (lower, upper):
        assert np.float64(np.asarray(number).astype(dtype)) == number
    assert np.nextafter(np.asarray(lower).astype(dtype), np.asarray(np.inf).astype(dtype)) == np.asarray(upper).astype(dtype)
    share = (np.float64(x) - lower) / (upper - lower)
    error = (upper - lower) * np.sqrt(share * (1 - share) / found.size)
    assert abs(found.mean() - np.float64(x)) < 4 * error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_of_the_dtype_stay(dtype):
    """All of them that XLA does not flush to zero, whatever the bits; zero keeps its sign."""
    numbers = jax.lax.bitcast_convert_type(jnp.arange(1 << 16, dtype=jnp.uint16), dtype).astype(jnp.float32)
    numbers = numbers[jnp.isfinite(numbers) & ((numbers == 0) | (jnp.abs(numbers) >= jnp.finfo(jnp.float32).tiny))]
    for word in (0, 0x7FFFFFFF, 0xFFFFFFFF):
        found = rounded(numbers, jnp.full(numbers.shape, word, jnp.uint32), dtype)
        np.testing.assert_array_equal(found, numbers)
        np.testing.assert_array_equal(jnp.signbit(found), jnp.signbit(numbers))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_edge_to_infinity(sign):
    """A finite number does not become infinite, unless a cast could not do otherwise."""
    # Away from zero where it can be: in bfloat16 a carry of the largest bits, in float16 the smallest number below the rest.
    most, least = (jnp.full((4,), jnp.uint32(word)) for word in (0xFFFFFFFF, 0))
    largest = {dtype: float(jnp.finfo(dtype).max) for dtype in DTYPES}
    x = sign * jnp.float32([largest[jnp.bfloat16], 3.395e38, 3.4e38, jnp.finfo(jnp.float32).max])
    np.testing.assert_array_equal(rounded(x, most, jnp.bfloat16), sign * np.float32(largest[jnp.bfloat16]))
    x = sign * jnp.float32([65504, 65519, 65535.99, 65536.0])
    for bits in (most, least):
        found = rounded(x, bits, jnp.float16).astype(jnp.float16)
        np.testing.assert_array_equal(found, sign * jnp.float16([65504, 65504, 65504, jnp.inf]))


def landing(param, update, bits):
    """What `optax.apply_updates` makes of a rounded update, and where it should land."""
    changed = rounded_update(update, param, bits)
    return (param + changed).astype(param.dtype), rounded(param.astype(jnp.float32) + update, bits, param.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lands_exactly(dtype):
    """Whatever the sizes of parameter and update are, also where one is gone beside the other or both cancel."""
    rng = np.random.default_rng(0)
    low, high = (-30, 30) if dtype == jnp.bfloat16 else (-24, 14)
    shape = (1000, DRAWS // 1000)
    param = jnp.asarray(rng.standard_normal(shape) * 2.0 ** rng.integers(low, high, shape), dtype)
    wide = rng.standard_normal(shape) * 2.0 ** rng.integers(low, high, shape)
    near = np.asarray(param, np.float64) * -(1 + rng.standard_normal(shape) * 2.0 ** rng.integers(-24, 0, shape))
    for update in (wide, near):
        found, wanted = jax.jit(landing)(param, jnp.asarray(update, jnp.float32), words())
        finite = np.isfinite(np.asarray(found, np.float32))
        assert finite.mean() > 0.99
        np.testing.assert_array_equal(np.asarray(found, np.float32)[finite], np.asarray(wanted)[finite])


def test_what_is_not_rounded_is_passed_on():
    """Infinite and NaN sums, and updates of zero: also -0, with which `row_sparse.train_only_rows` leaves a -0 alone."""
    param = jnp.asarray([1.0, 1.0, 1.0, jnp.inf, jnp.nan, -0.0, -0.0, 3e38], jnp.bfloat16)
    update = jnp.float32([jnp.inf, -jnp.inf, jnp.nan, 1.0, 1.0, 0.0, -0.0, 3e38])
    found = rounded_update(update, param, jnp.arange(8, dtype=jnp.uint32) << 29)
    np.testing.assert_array_equal(param + found, param.astype(jnp.float32) + update)
    np.testing.assert_array_equal(jnp.signbit(found), jnp.signbit(update))


def test_bits_look_random():
    """Each of the 32 is set half of the time, and none follows another, a neighbour in the array, the step or the seed."""
    found = np.asarray(words())[:500, :500]
    as_bits = (found.reshape(-1)[:, None] >> np.arange(32)) & 1
    tolerance = 4.5 / np.sqrt(found.size)
    assert np.abs(as_bits.mean(0) - 0.5).max() < tolerance / 2
    signs = 2.0 * as_bits.astype(np.float32) - 1.0
    correlation = signs.T @ signs / len(signs) - np.eye(32)
    assert np.abs(correlation).max() < tolerance
    others = [np.roll(found, 1, axis) for axis in (0, 1)] + [words(seed=1)[:500, :500], found.T]
    for other in others:
        also = (np.asarray(other).reshape(-1)[:, None] >> np.arange(32)) & 1
        assert np.abs((signs * (2.0 * also - 1.0)).mean(0)).max() < tolerance
    corners = found[:-1, :-1] ^ found[:-1, 1:] ^ found[1:, :-1] ^ found[1:, 1:]  # of the sum over axes before the last mixing
    assert np.abs(((corners.reshape(-1)[:, None] >> np.arange(32)) & 1).mean(0) - 0.5).max() < tolerance / 2
    assert len(np.unique(found)) > 0.9998 * found.size
