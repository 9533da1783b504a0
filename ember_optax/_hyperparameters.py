"""Checks of hyperparameters: a bad value is refused where it is written, by its name and with the fix.

Python numbers and concrete arrays are checked by value. A traced value (under `optax.inject_hyperparams`) has no value
yet, so only its dtype and shape are.
"""

import numbers
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

_LARGEST = float(np.finfo(np.float32).max)


def check_b2(b2: Any, argument: str = "b2") -> None:
    """Raises unless `b2` is a decay rate: a float32 scalar or number in [0, 1)."""
    _check_precision(b2, argument)
    value = _scalar(b2, argument, f"a number in [0, 1), for example {argument}=0.999")
    if value is not None and not 0.0 <= value < 1.0:
        raise ValueError(f"{argument} must be in [0, 1), got {b2!r}; 0.999 is the default, 0.95 follows faster.")


def check_eps(eps: Any) -> None:
    """Raises unless `eps` is a finite, non-negative number of float32 precision."""
    _check_precision(eps, "eps")
    _check_non_negative(eps, "eps", "a number >= 0, for example eps=1e-8")


def check_weight_decay(weight_decay: Any) -> None:
    """Raises unless `weight_decay` is a finite, non-negative number."""
    _check_non_negative(weight_decay, "weight_decay", "a number >= 0, for example weight_decay=0.1")


def check_learning_rate(learning_rate: Any) -> None:
    """Raises unless `learning_rate` is a schedule or a finite, non-negative number."""
    if not callable(learning_rate):
        _check_non_negative(learning_rate, "learning_rate", "a number >= 0 or a schedule, for example learning_rate=1e-3")


def _check_non_negative(value: Any, argument: str, fix: str) -> None:
    number = _scalar(value, argument, fix)
    if number is not None and not 0.0 <= number <= _LARGEST:
        raise ValueError(f"{argument} must be finite and not negative, got {value!r}; pass {fix}.")


def _scalar(value: Any, argument: str, fix: str) -> float | None:
    """The value as a float, None where it is traced, an error where it is no real scalar."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number) or jnp.iscomplexobj(value):
            raise TypeError(
                f"{argument} must be a real scalar, got an array of shape {value.shape} and dtype {value.dtype}; pass {fix}."
            )
        return None if isinstance(value, jax.core.Tracer) else float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument} must be a real number, got {value!r} of type {type(value).__name__}; pass {fix}.")
    return float(value)


def _check_precision(value: Any, argument: str) -> None:
    """Below float32, b2 = 0.999 becomes 1.0 and the bias correction zero; eps = 1e-8 becomes zero in float16."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        raise TypeError(
            f"{argument} arrived as {dtype}, which cannot hold it (bfloat16 rounds 0.999 to 1.0). optax.inject_hyperparams casts "
            f"hyperparameters to the parameters' dtype; pass hyperparam_dtype=jnp.float32 to it."
        )
