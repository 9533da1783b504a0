"""Loops in a loss function whose body calls the loss of a fused head: `row_sparse.scan`.

A head's gradient follows from the hidden states of all steps. So its tap has one more axis, and each step writes its own part
of the tap's "gradient". A step does not know its number. So the loop has to hand out the parts, which `jax.lax.scan` cannot.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .._math.mesh import in_auto_mode, spec_entries, spec_of

# The heads of the loss functions that are traced now.
_heads: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("heads", default=())


class HeadScans:
    """The scans of a loss function, as one head sees them. They are numbered in the order in which they begin.

    Attributes:
      taps: the taps of the head's calls; None in the first trace. Inside a scan those of its calls are the parts of this step.
      around: for each call of the first trace, the scans around it.
      open: the numbers and the steps of the scans around the next call.
      begun: the number of scans so far.
    """

    def __init__(self, taps: list[Any] | None, around: Sequence[tuple[tuple[int, int], ...]]):
        self.taps, self.around, self.begun = taps, around, 0
        self.open: list[tuple[int, int]] = []

    def begin(self, steps: int) -> tuple[tuple[int, int], list[int]]:
        """The next scan, and the calls inside of it that have taps."""
        self.begun += 1
        scan = self.begun - 1, steps
        return scan, [call for call, scans in enumerate(self.around) if scan in scans]

    @contextlib.contextmanager
    def inside(self, scan: tuple[int, int], calls: list[int], taps_of_step: list[Any]) -> Iterator[None]:
        """Inside of a scan, where its calls have the taps of one step."""
        taps = self.taps or []
        whole = [taps[call] for call in calls]
        self.open.append(scan)
        for call, tap in zip(calls, taps_of_step, strict=True):
            taps[call] = tap
        yield
        for call, tap in zip(calls, whole, strict=True):
            taps[call] = tap
        self.open.pop()


@contextlib.contextmanager
def heads_in_loss(heads: Iterable[Any]) -> Iterator[None]:
    """While a loss function with these heads is traced, `scan` hands out parts of their taps."""
    token = _heads.set((*_heads.get(), *heads))
    try:
        yield
    finally:
        _heads.reset(token)


def scan(f: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any, length: int | None, **options: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`, whose body may call the loss of the fused heads of the loss function that is traced now."""
    if not (heads := _heads.get()):
        return jax.lax.scan(f, init, xs, length, **options)
    sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(xs) if jnp.ndim(leaf)}
    steps = next(iter(sizes)) if length is None and len(sizes) == 1 else length or 0
    begun = [head.scans.begin(steps) for head in heads]
    taps = [[head.scans.taps[call] for call in calls] for head, (_, calls) in zip(heads, begun, strict=True)]

    def body(carry, of_step):
        x, taps_of_step = of_step
        with contextlib.ExitStack() as stack:
            for head, (one, calls), taps_of_head in zip(heads, begun, taps_of_step, strict=True):
                stack.enter_context(head.scans.inside(one, calls, taps_of_head))
            return f(carry, x)

    # With weakly typed numbers `jax.lax.scan` may trace the body twice, and the head would count its calls twice.
    init = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), init)
    return jax.lax.scan(body, init, (xs, taps), length, **options)


def zeros_of_steps(steps: tuple[int, ...], of_step: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros for all steps of an array that each step has a part of."""
    array, sharding = jnp.zeros((*steps, *of_step.shape), of_step.dtype), of_step.sharding
    if sharding is None:
        return array
    spec = PartitionSpec(*[None] * len(steps), *sharding.spec)
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))


def of_all_steps(tap: Any, scans: int) -> Any:
    """A tap of all steps: (K, N, ...) as (N K, ...), so that a mesh that splits the N tokens of a step splits these too."""
    if not scans:
        return tap

    def flat(array: jax.Array) -> jax.Array:
        steps, (tokens, *rest) = math.prod(array.shape[:scans]), array.shape[scans:]
        by_token = jnp.moveaxis(array.reshape(steps, tokens, *rest), 0, 1)
        return by_token.reshape(steps * tokens, *rest)

    def specs():
        return jax.tree.map(lambda array: spec_of(spec_entries(array)[scans:]), tap)

    return in_auto_mode(lambda tap: jax.tree.map(flat, tap), specs, tap)
