"""What the processes of a table do together: all of them, or none; and the save that all of them have."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ._layouts import Layout


class Outcome(NamedTuple):
    """What came of an attempt in all processes.

    Attributes:
      result: what the action returned in this process.
      error: what it raised in this process.
      failed: the numbers of the processes in which it raised.
    """

    result: Any
    error: Exception | None
    failed: list[int]

    def checked(self, what: str) -> Any:
        """The result. Raises in every process if the action raised in one."""
        if self.error is not None:
            raise self.error
        if self.failed:
            raise RuntimeError(f"process {self.failed[0]} failed to {what}, so no process did: its own error says why.")
        return self.result


def attempt(layout: Layout, action: Callable[[], Any]) -> Outcome:
    """Calls `action` in each process, and tells all of them where it raised, so that none waits for one that failed."""
    error, result = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    told = layout.gather([error is not None])[:, 0]
    return Outcome(result, error, [process for process, failed in enumerate(told) if failed])


def check_same(layout: Layout, options: Any) -> None:
    """Raises unless all processes gave a table the same options."""
    told = layout.gather([zlib.crc32(repr(options).encode()) & 0x7FFFFFFF])[:, 0].tolist()
    if others := [process for process, checksum in enumerate(told) if checksum != told[layout.part]]:
        raise ValueError(f"process {others[0]} makes a table with other options than this one, {options}: make the same in all.")


def common_save(layout: Layout, found: list[int]) -> int:
    """The newest save that all processes have, from the numbers of the one or two that each of them has."""
    told = [set(row.tolist()) for row in layout.gather([found[0], found[-1]])]
    common = set.intersection(*told)
    if not common:
        raise ValueError(
            f"the processes have no save in common: their last saves have the numbers {[max(numbers) for numbers in told]}, "
            f"where 0 is a new part. Restore copies of all parts that were made together, or remove all parts for a new table."
        )
    return max(common)
