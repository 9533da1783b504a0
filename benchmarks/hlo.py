"""What a compiled program sends from device to device, read off its optimized HLO."""

import math
import re
from typing import NamedTuple

import jax
import numpy as np

_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation: its name, and the elements and bytes of its result on one device."""

    operation: str
    elements: int
    bytes: int


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """Every collective of a compiled program, in the order of its text.

    Example:
      >>> import jax
      >>> collectives(jax.jit(lambda x: x + 1).lower(1.0).compile())
      []
    """
    found = []
    for shapes, operation in _COLLECTIVE.findall(compiled.as_text() or ""):
        arrays = [(dtype, math.prod(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(shapes)]
        size = sum(elements * _itemsize(dtype) for dtype, elements in arrays)
        found.append(Collective(operation, sum(elements for _, elements in arrays), size))
    return found


def _itemsize(dtype: str) -> int:
    """Bytes of one element of an HLO type: `f32`, `bf16`, `s32`, `pred`."""
    bits = re.search(r"\d+", dtype)
    return 1 if bits is None else int(np.ceil(int(bits.group()) / 8))
