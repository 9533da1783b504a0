"""Checks of trees, arrays and other arguments that users pass, and the form of a value in an error message."""

import numbers
import operator
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .boxes import is_box, unbox

_LONGEST = 120
_LISTED = 5


def shown(value: Any) -> str:
    """A value and its type for an error message. It is short, because a whole model would hide the rest of the message."""
    return f"{reprlib.repr(value)[:_LONGEST]} of type {type(value).__name__}"


def listed(texts: Sequence[str], separator: str = ", ") -> str:
    """The first few of the texts, and how many more there are."""
    besides = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return separator.join(texts[:_LISTED]) + besides


def check_tree(tree: Any, argument: str, *, may_be_empty: bool = False, may_be_missing: bool = False) -> None:
    """Raises if an argument is not a tree of arrays, for example if it is another argument, None or a bare number.

    A placeholder without leaves, which Optax passes to `init`, is not a dictionary, list or tuple, and does not raise.

    Raises:
      TypeError: it is None, unless it may be missing; it is a transformation, an optimizer state, or a leaf that is not an array.
      ValueError: it has no leaves, unless it may be empty.
    """
    if tree is None and may_be_missing:
        return
    if tree is None or _is_of_optax(tree) or (not hasattr(unbox(tree), "shape") and _is_leaf(tree)):
        raise TypeError(
            f"{argument} must be a tree of arrays, got {shown(tree)}: pass {argument} there, and the arguments in the order of "
            f"the signature."
        )
    if (
        not may_be_empty
        and isinstance(tree, Mapping | list | tuple)
        and not jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    ):
        raise ValueError(f"{argument} has no array in it, got {shown(tree)}: pass the tree that holds the model's arrays.")


def check_array(leaf: Any, what: str, *, floating: bool = False) -> None:
    """Raises unless a leaf is an array of numbers or a number. With `floating`, it must be real or complex floating.

    Raises:
      TypeError: the leaf is anything else. The message begins with `what`.
    """
    inside: Any = unbox(leaf)
    if not hasattr(inside, "shape") and not isinstance(inside, numbers.Number):
        raise TypeError(
            f"{what} is {shown(inside)}, not an array. Pass a tree of arrays only: eqx.filter(model, eqx.is_inexact_array) with "
            f"Equinox."
        )
    shape, dtype = getattr(inside, "shape", ()), getattr(inside, "dtype", None)
    dtype = jnp.result_type(inside) if dtype is None and isinstance(inside, int | float | complex) else dtype
    kinds = (np.inexact,) if floating else (np.number, np.bool_)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        wanted = "floats" if floating else "numbers"
        raise TypeError(
            f"{what} of shape {shape} has dtype {dtype}, but must hold {wanted}: convert it, or keep it out of the tree."
        )


def checked_axis(token_axis: Any, shape: tuple[int, ...]) -> int:
    """The token axis of a table, counted from the front."""
    axis = checked_integer(token_axis, "token_axis")
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"token_axis {axis} is out of range for a table of shape {shape}; name its vocabulary axis.")
    return axis % len(shape)


def checked_integer(value: Any, argument: str, example: int = 0) -> int:
    """An integer argument as an int. The error message suggests `example`."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{argument} must be an integer, got {shown(value)}; pass a number like {example}.")


def checked_seed(seed: Any) -> int:
    """A seed as an integer in 0 to 2^32 - 1. Raises TypeError or ValueError for anything else."""
    number = checked_integer(seed, "seed")
    if not 0 <= number < 1 << 32:
        raise ValueError(f"seed must be in 0 to 2^32 - 1, got {number}; pass seed=0, for example.")
    return number


def checked_key(key: Any) -> jax.Array:
    """A key of `jax.random`, typed or raw. Raises if it is anything else."""
    is_key = hasattr(key, "dtype") and (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32)
    if not is_key:
        raise TypeError(f"key must be a key of jax.random, got {shown(key)}: pass jax.random.key(seed).")
    return key


def _is_leaf(tree: Any) -> bool:
    return is_box(tree) or jax.tree.structure(tree).num_nodes == 1 == jax.tree.structure(tree).num_leaves


def _is_of_optax(tree: Any) -> bool:
    """Whether a tree is a transformation, a state, or a named tuple of this library, such as the result of `vocab.resize`.

    Optax's names of states end with "State". Its other named tuples may be parameters: `split_real_and_imaginary` turns a complex
    array into one.
    """
    if isinstance(tree, optax.GradientTransformation):
        return True
    if not isinstance(tree, tuple) or isinstance(tree, optax.MaskedNode):
        return False
    if hasattr(tree, "_fields"):
        library = type(tree).__module__.split(".")[0]
        return library == "ember_optax" or (library == "optax" and type(tree).__name__.endswith("State"))
    return bool(tree) and all(isinstance(part, tuple) and _is_of_optax(part) for part in tree)
