"""The mean of squares over some axes of an array: the only reduction of the table's size."""

import jax
import jax.numpy as jnp


def mean_square(x: jax.Array, axes: tuple[int, ...], factor: float = 1.0) -> jax.Array:
    """`mean((factor x)^2)` over `axes`, which are kept with length one. Returns float32.

    Squares are computed in float32 for every dtype of `x` but float64.
    """
    return jnp.mean(square(x, factor), axes, keepdims=True).astype(jnp.float32)


def compute_dtype(x: jax.Array):
    """The dtype for computing with an array: float64 for float64, else float32."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def square(x: jax.Array, factor: float) -> jax.Array:
    """`(factor x)^2`, in the dtype for computing with `x`."""
    x = x.astype(compute_dtype(x))
    return jnp.square(x if factor == 1.0 else factor * x)
