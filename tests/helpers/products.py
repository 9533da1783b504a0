"""Products of options, of which the default suite takes a part: compiling each case is what such tests cost."""

import itertools
from collections.abc import Sequence

import pytest


def in_turn(*options: Sequence) -> list:
    """All cases for `pytest.mark.parametrize`, those in which the last option's values do not take turns as slow tests.

    Of three options each pair of values is in the default suite, of two each value. A tuple in a list of options stands for
    several arguments.
    """
    *others, last = options
    cases = []
    for places in itertools.product(*(range(len(values)) for values in others)):
        chosen = sum(places) % len(last)
        values = [value for of, place in zip(others, places, strict=True) for value in _arguments(of[place])]
        cases += [
            pytest.param(*values, *_arguments(value), marks=() if place == chosen else pytest.mark.slow)
            for place, value in enumerate(last)
        ]
    return cases


def _arguments(value: object) -> tuple:
    return value if type(value) is tuple else (value,)
