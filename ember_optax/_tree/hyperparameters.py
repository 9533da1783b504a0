"""Checks of hyperparameters. A bad value raises where it is passed, with its name and the fix.

Python numbers and concrete arrays are checked by value. A traced array (under `optax.inject_hyperparams`) has no value yet, so
only its dtype and shape are checked. If b2 then turns out to be one, every update is NaN.
"""

import functools
import numbers
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .inputs import shown

_LARGEST = float(np.finfo(np.float32).max)


def checked_b2(b2: Any, argument: str = "b2") -> Any:
    """`b2` as a float or an array, if it is a decay rate: a number in [0, 1)."""
    value = _scalar(b2, argument, f"a number in [0, 1), for example {argument}=0.999")
    if _is_low_precision(b2) and value is not None and value >= 1.0:
        raise _lost_digits(b2, argument, "bfloat16 rounds 0.999 to 1.0")
    if value is not None and not 0.0 <= value < 1.0:
        raise ValueError(f"{argument} must be in [0, 1), got {b2!r}; 0.999 is the default, 0.95 follows faster.")
    if _is_low_precision(b2) and value is not None:
        # 0.998 and 0.995 are both 0.99609 in bfloat16, so the number that the user wrote is not known here.
        warnings.warn(
            f"{argument} arrived as {b2.dtype}({value:.6g}), which holds only two or three digits of it; if that is not what you "
            f"wrote, pass hyperparam_dtype=jnp.float32 to optax.inject_hyperparams.",
            stacklevel=3,
        )
    return _plain(b2)


def checked_eps(eps: Any) -> Any:
    """`eps` as a float or an array, if it is finite and not negative."""
    value = _check_non_negative(eps, "eps", "a number >= 0, for example eps=1e-8")
    if _is_low_precision(eps) and value == 0.0:
        raise _lost_digits(eps, "eps", "float16 rounds 1e-8 to zero")
    return _plain(eps)


def checked_weight_decay(weight_decay: Any) -> Any:
    """`weight_decay` as a float or an array, if it is finite and not negative."""
    _check_non_negative(weight_decay, "weight_decay", "a number >= 0, for example weight_decay=0.1")
    return _plain(weight_decay)


def checked_learning_rate(learning_rate: Any, argument: str = "learning_rate") -> Any:
    """`learning_rate` as a schedule, a float or an array, if it is finite and not negative."""
    if callable(learning_rate):
        return _checked_schedule(learning_rate, argument)
    if isinstance(learning_rate, Mapping):
        raise TypeError(
            f"{argument} must be one number or schedule, got {shown(learning_rate)}. Input tables have learning_rate and heads "
            f"head_learning_rate. For a rate of one more table, scale its updates: optax.chain(ember(1e-2, body), "
            f"optax.masked(optax.scale(0.3), mask)), where mask is a tree of booleans like the parameters (docs/recipes.md)."
        )
    _check_non_negative(learning_rate, argument, f"a number >= 0 or a schedule, for example {argument}=1e-2")
    return _plain(learning_rate)


def checked_max_norm(max_norm: Any) -> Any:
    """`max_norm` as a float or an array, if it is finite and above zero."""
    fix = "a number above 0, for example max_norm=1.0"
    if (value := _check_non_negative(max_norm, "max_norm", fix)) == 0.0:
        raise ValueError(f"max_norm must be above zero, got {value}; pass {fix}.")
    return _plain(max_norm)


def checked_number(value: Any, argument: str, fix: str) -> float:
    """A static number as a float, if it is finite and not negative. `fix` says what to pass."""
    number = _check_non_negative(value, argument, fix)
    if number is None:
        raise TypeError(f"{argument} must be a number, got the traced {shown(value)}: it is compiled in; pass {fix}.")
    return number


def checked_coefficient(value: Any, argument: str, fix: str) -> Any:
    """A number of either sign as a float or an array. Raises if its value is known and not finite."""
    number = _scalar(value, argument, fix)
    if number is not None and not abs(number) <= _LARGEST:
        raise ValueError(f"{argument} must be finite, got {value!r}; pass {fix}.")
    return _plain(value)


def checked_positive(value: Any, argument: str, fix: str) -> Any:
    """A number as a float or an array. Raises if its value is known and is not finite or not above zero."""
    if (number := _check_non_negative(value, argument, fix)) is not None and not number > 0.0:
        raise ValueError(f"{argument} must be above zero, got {value!r}; pass {fix}.")
    return _plain(value)


def checked_feature_mean(feature_mean: Any) -> str:
    """`feature_mean`, if it is one of the two."""
    if not isinstance(feature_mean, str) or feature_mean not in ("all_rows", "active_rows"):
        raise ValueError(
            f"feature_mean must be 'all_rows' or 'active_rows', got {shown(feature_mean)}; pass one of the two words."
        )
    return feature_mean


def checked_flag(value: Any, argument: str) -> bool:
    """A flag, if it is True or False. Otherwise any text would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{argument} must be True or False, got {shown(value)}; pass one of them.")
    return bool(value)


def _checked_schedule(schedule: Callable[[Any], Any], argument: str) -> Callable[[Any], Any]:
    """The schedule, with a check that its values are real scalars. An array would be broadcast over the tables."""

    @functools.wraps(schedule, updated=())
    def checked(step):
        value = schedule(step)
        _check_kind(value, f"{argument}(step)", "a schedule that returns one number, for example optax.constant_schedule(1e-3)")
        return value

    return checked


def _check_non_negative(value: Any, argument: str, fix: str) -> float | None:
    number = _scalar(value, argument, fix)
    if number is not None and not 0.0 <= number <= _LARGEST:
        raise ValueError(f"{argument} must be finite and not negative, got {value!r}; pass {fix}.")
    return number


def _scalar(value: Any, argument: str, fix: str) -> float | None:
    """The value as a float, or None if it is traced. Raises if it is not a real scalar."""
    _check_kind(value, argument, fix)
    if isinstance(value, jax.core.Tracer):
        return None
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{argument} must be finite, got a number of more than 308 digits; pass {fix}.") from None


def _check_kind(value: Any, argument: str, fix: str) -> None:
    """Raises unless a value is a real scalar, as a number or as an array, traced or not."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        real = jnp.issubdtype(value.dtype, jnp.number) and not jnp.issubdtype(value.dtype, jnp.complexfloating)
        if value.shape != () or not real:
            raise TypeError(
                f"{argument} must be a real scalar, got an array of shape {value.shape} and dtype {value.dtype}; pass {fix}."
            )
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument} must be a real number, got {shown(value)}; pass {fix}.")


def _plain(value: Any) -> Any:
    """Numbers such as fractions as floats. Arrays are returned as they are, because they may be traced."""
    return value if isinstance(value, jax.Array) else float(value)


def _is_low_precision(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def _lost_digits(value: Any, argument: str, example: str) -> TypeError:
    return TypeError(
        f"{argument} arrived as {value.dtype}({float(value)}), which has lost its digits ({example}). optax.inject_hyperparams "
        f"casts hyperparameters to the parameters' dtype; pass hyperparam_dtype=jnp.float32 to it."
    )
