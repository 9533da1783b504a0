"""Numbers of a command line, refused there where they make no sense; functions for the `type` of argparse."""

from argparse import ArgumentTypeError


def positive_int(text: str) -> int:
    """1, 2, 3, ..."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def whole_number(text: str) -> int:
    """0, 1, 2, ..."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def seed(text: str) -> int:
    """What `jax.random.key` takes without cutting it off."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise ArgumentTypeError(f"{text} is not a whole number from 0 to 2^32 - 1")
    return int(text)


def learning_rate(text: str) -> float:
    """A finite number, zero or more."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text} is not a finite, non-negative number")
    return value
