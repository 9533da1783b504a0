"""A statistic of a sequence of arrays, with one array in memory at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Streaming(NamedTuple):
    """A streaming statistic as three pure functions, which may be compiled or used in a scan.

    Attributes:
      init: takes the table, or an array like it, and returns the first state.
      update: takes a state and one more array, and returns the next state.
      value: takes a state, and returns the statistic so far.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any], Any]
    value: Callable[[Any], Any]
