"""What a compiled program sends from device to device, in the loops of its text and outside of them."""

import math
import re
from typing import Any

from .compiled import collectives_in

_COMPUTATION = re.compile(r"^(ENTRY )?(%[\w.-]+) \(.*?^\}", re.M | re.S)
_WHICH = re.compile(r"channel_id=(\d+).*metadata=\{(.*?)\}")
# The factor of the bytes of a result that each of n devices of a ring sends.
_OF_RESULT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


def in_loops(text: str) -> str:
    """The collectives that each turn of the loops of an HLO module runs, one a line.

    A collective that runs beside a loop begins outside of it. It is not one of the loop, although its later parts may be in it.

    Example:
      >>> text = "%a (x) {\\n %y = f32[] all-reduce(x)\\n}\\nENTRY %b (x) {\\n %z = while(x), condition=%c, body=%a\\n}\\n"
      >>> in_loops(text).count("all-reduce"), outside_of_loops(text)
      (1, '')
    """
    inside, outside = map(_once, _parts(text))
    return "\n".join(line for which, line in inside.items() if which not in outside)


def outside_of_loops(text: str) -> str:
    """The other collectives, one a line."""
    return "\n".join(_once(_parts(text)[1]).values())


def bytes_sent(text: str) -> float:
    """The bytes that one device sends for all collectives of a text, each once, if the devices of each are a ring.

    Example:
      >>> bytes_sent("%sum = f32[6] all-reduce(%x), channel_id=1, replica_groups={{0,1,2},{3,4,5}}, to_apply=%add")
      32.0
      >>> bytes_sent("%all = f32[6] all-gather(%x), channel_id=1, replica_groups=mesh['a'=2,'b'=3] {'b'}, dimensions={0}")
      16.0
      >>> bytes_sent("%mine = f32[6] reduce-scatter(%x), channel_id=1, replica_groups=[2,3]<=[6], dimensions={0}")
      48.0
    """
    total = 0.0
    for line in text.splitlines():
        for collective in collectives_in(line):
            total += collective.bytes * _OF_RESULT[collective.operation](_devices(line))
    return total


def _parts(text: str) -> tuple[list[str], list[str]]:
    """The lines with collectives that loops run, and the others."""
    computations = {found.group(2): found.group() for found in _COMPUTATION.finditer(text)}
    inside, waiting = [], re.findall(r"body=(%[\w.-]+)", text)
    while waiting:
        if (name := waiting.pop()) in computations:
            body = computations.pop(name)
            inside += body.splitlines()
            waiting += re.findall(r"%[\w.-]+", body)
    outside = [line for body in computations.values() for line in body.splitlines()]
    return [line for line in inside if collectives_in(line)], [line for line in outside if collectives_in(line)]


def _once(lines: list[str]) -> dict[Any, str]:
    """The lines by what tells their collectives apart. The parts of a collective that runs beside others have this in common."""
    found: dict[Any, str] = {}
    for line in lines:
        which = _WHICH.search(line)
        found.setdefault((which.groups(), tuple(collectives_in(line))) if which else line, line)
    return found


def _devices(line: str) -> int:
    """How many devices take part in each group of a collective."""
    if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found.group(1))}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", found.group(2)))
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(found.group(1).split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found.group(1))
    return 1
