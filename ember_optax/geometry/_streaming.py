"""A statistic of a sequence of arrays that are seen one at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Streaming(NamedTuple):
    """Three pure functions, to be compiled or scanned over.

    Attributes:
      init: from the table, or one like it, to the state before the first array.
      update: the state after one more array.
      value: what the state says so far.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any], Any]
    value: Callable[[Any], Any]
