"""What the compiler says of a program: its memory, the bytes it moves, and what it sends from device to device.

Nothing runs, and the devices need not exist: shardings of the abstract arguments may name those of a
`jax.experimental.topologies` description.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
_INSTRUCTION = re.compile(r"(%[\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)")
_NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "optimization-barrier"}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation: its name, and the elements and bytes of its result on one device."""

    operation: str
    elements: int
    bytes: int


class Cost(NamedTuple):
    """What one device needs for a compiled program.

    Attributes:
      temporaries: bytes besides arguments and results.
      peak: bytes of arguments, results that are not written over arguments, and temporaries.
      bytes_accessed: bytes that its operations read and write, by the compiler's estimate; None where it makes none.
      collectives: in the order of the optimized HLO.
    """

    temporaries: int
    peak: int
    bytes_accessed: float | None
    collectives: list[Collective]


def cost(jitted: Any, *arguments: Any) -> Cost:
    """Compiles a jitted function for arguments, abstract ones as well, and reads what it costs.

    Example:
      >>> import jax.numpy as jnp
      >>> cost(jax.jit(lambda x: x + 1, donate_argnums=0), jax.ShapeDtypeStruct((256,), jnp.float32)).peak
      1024
    """
    return cost_of(jitted.lower(*arguments).compile())


def cost_if_it_fits(jitted: Any, *arguments: Any) -> Cost | None:
    """The same, or None if the compiler refuses the program because a device has not the memory for it."""
    try:
        return cost(jitted, *arguments)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise


def products_of(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiplications in all matrix products of a function, those of loops as often as they run; of branches the costliest.

    XLA's own count takes the body of a loop once.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct((2, 2), jnp.float32)
      >>> products_of(lambda x: jax.lax.fori_loop(0, 5, lambda _, y: y @ x, x), x)
      40
    """
    return _products_in(jax.make_jaxpr(function)(*arguments).jaxpr)


def _products_in(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            continue
        inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda part: hasattr(part, "eqns"))
        found = [_products_in(getattr(part, "jaxpr", part)) for part in inner if hasattr(part, "eqns")]
        if eqn.primitive.name == "while" and any(found):
            raise ValueError("a loop with products whose number of turns is not known while it is traced")
        total += max(found, default=0) if eqn.primitive.name == "cond" else eqn.params.get("length", 1) * sum(found)
    return total


def largest_batch(fits: Callable[[int], bool], guess: int) -> int:
    """The largest power of two that fits, looked for from a guess on up or, where that does not fit, down; 1 fits.

    Example:
      >>> [largest_batch(lambda batch: batch <= 12, guess) for guess in (1, 7, 100)]
      [8, 8, 8]
    """
    batch = 2 ** (max(1, guess).bit_length() - 1)
    if batch == 1 or fits(batch):
        while fits(2 * batch):
            batch *= 2
        return batch
    while (batch := batch // 2) > 1 and not fits(batch):
        pass
    return batch


def cost_of(compiled: jax.stages.Compiled) -> Cost:
    """What an already compiled program costs."""
    memory: Any = compiled.memory_analysis()
    return Cost(
        temporaries=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        bytes_accessed=_bytes_accessed(compiled),
        collectives=collectives(compiled),
    )


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """Every collective of a compiled program, in the order of its text."""
    return collectives_in(compiled.as_text() or "")


def collectives_in(hlo: str, origin: str = "") -> list[Collective]:
    """Every collective in the text of an HLO module, or those alone that come from the functions of this name.

    One that was made of several counts for the first of them, and one that runs beside a computation is in the text twice.

    Example:
      >>> collectives_in("%sum = (f32[4], bf16[2,3]{1,0:T(8,128)}) all-reduce(%a, %b), to_apply=%add")
      [Collective(operation='all-reduce', elements=10, bytes=28)]

      >>> collectives_in("%gather = (f32[4]{0:T(128)}, f32[16]{0:T(128)}) all-gather-start(%a), dimensions={0}")
      [Collective(operation='all-gather', elements=16, bytes=64)]
    """
    found = []
    lines = [line for line in hlo.splitlines() if origin in line]
    for shapes, operation, start in _COLLECTIVE.findall("\n".join(lines)):
        # Started ones return (operands, results, contexts), but all-reduce, which returns its results as if it waited.
        result = _parts(shapes)[1] if start and operation != "all-reduce" else shapes
        arrays = [(dtype, math.prod(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(result)]
        size = sum(elements * _itemsize(dtype) for dtype, elements in arrays)
        found.append(Collective(operation, sum(elements for _, elements in arrays), size))
    return found


def elements_by_operation(found: list[Collective]) -> dict[str, int]:
    """How many elements one device gets by each kind of collective.

    Example:
      >>> elements_by_operation([Collective("all-reduce", 10, 40), Collective("all-reduce", 1, 4)])
      {'all-reduce': 11}
    """
    counted: Counter[str] = Counter()
    for collective in found:
        counted[collective.operation] += collective.elements
    return dict(counted)


def passes_in(hlo: str, elements: int) -> int:
    """How often the entry of an HLO module reads or writes arrays with `elements` elements, for compilers that count no bytes.

    An operation on the rows of an array, such as a scatter, counts as if it went over all of it.

    Example:
      >>> fusions = "%sum = f32[8] fusion(%p), calls=%reduce", "ROOT %scaled = f32[8,4]{1,0} fusion(%p, %sum), calls=%scale"
      >>> text = "\\n".join(["ENTRY %main (p: f32[8,4]) -> f32[8,4] {", "%p = f32[8,4]{1,0} parameter(0)", *fusions, "}"])
      >>> passes_in(text, 32)
      3
    """
    lines = hlo[hlo.index("ENTRY ") :].split("\n}", maxsplit=1)[0].splitlines()[1:]
    sizes, passes = {}, 0
    for name, shapes, operation, operands in (found.groups() for line in lines if (found := _INSTRUCTION.search(line))):
        arrays = [math.prod(int(n) for n in dims.split(",") if n) for _, dims in _ARRAY.findall(shapes)]
        sizes[name] = arrays.count(elements)
        if operation not in _NO_WORK:
            passes += sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r"%[\w.-]+", operands))
    return passes


def _parts(shape: str) -> list[str]:
    """The parts of a tuple's shape, which may be tuples themselves; commas inside brackets do not separate them."""
    parts, depth = [""], 0
    for character in shape[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _itemsize(dtype: str) -> int:
    """Bytes of one element of an HLO type: `f32`, `bf16`, `s32`, `pred`."""
    bits = re.search(r"\d+", dtype)
    return 1 if bits is None else int(np.ceil(int(bits.group()) / 8))


def _bytes_accessed(compiled: jax.stages.Compiled) -> float | None:
    try:
        analysis: Any = compiled.cost_analysis()
    except NotImplementedError:
        return None
    return (analysis or {}).get("bytes accessed")
