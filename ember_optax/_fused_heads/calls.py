"""The calls of the loss with fused heads: what the first trace of a loss function shows, and which calls are refused."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from .._math.mesh import varying_axes
from .._math.softmax import LossOptions
from .manual import as_in_loss
from .scans import zeros_of_steps
from .taps import Tap, without_squares

MARK = "the loss of a fused head: "
PER_DEVICE = "a cond whose branch differs between devices"
# The primitives that call a function once for each of their own calls. A `cond` that takes the other branch leaves zeros.
_RUN_ONCE = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "cond",
    "custom_jvp_call",
    "custom_vjp_call",
)
_RUN_ONCE += ("custom_vjp_call_jaxpr", "custom_lin")


class Call(NamedTuple):
    """One call of the loss with a fused head, of the first trace.

    Attributes:
      tap: the shapes of its tap; of `calls_of`, a tap of zeros with leading axes for the steps of `scans`.
      loss: its options.
      scans: the scans around it, from the outermost: their numbers and their steps (`scans.py`).
      link_parts: the devices over which JAX adds up the gradient of the link, because the loss function gave the parameters
        the type of arrays that differ (`jax.lax.pcast`).
    """

    tap: Tap
    loss: LossOptions
    scans: tuple[tuple[int, int], ...] = ()
    link_parts: int = 1


def calls_of(trace: Callable[[dict[str, Any]], Any], heads: dict[str, Any]) -> dict[str, list[Call]]:
    """The calls of the fused loss for each head, by path, with taps of zeros.

    Args:
      trace: returns the jaxpr of the loss function with these heads.
      heads: a `TappedHead` without taps for each path.

    Raises:
      ValueError: the loss does not call linear_softmax_cross_entropy with a head, calls it where one call runs several
        times, or calls it with different options.
    """
    found = list(_marked(trace(heads).jaxpr))
    for name, head in heads.items():
        places = [(call, inside, shape) for call, of, inside, shape in found if of == name]
        if not places:
            raise ValueError(
                f"heads names {name!r}, but loss_fn does not call losses.linear_softmax_cross_entropy(hidden, table, labels) "
                f"with this table: call it, or leave it out of heads."
            )
        if sorted(call for call, _, _ in places) != list(range(len(head.calls))):
            raise ValueError(
                f"loss_fn calls a jitted function with the fused head {name!r} several times, but JAX traces it once: call "
                f"linear_softmax_cross_entropy outside of jax.jit, on all hidden states, or leave it out of heads."
            )
        for call, inside, shape in places:
            _check_place(name, head.calls[call], inside, shape)
        if len({(call.tap.hidden.dtype, call.loss._replace(chunk=0)) for call in head.calls}) > 1:
            raise ValueError(
                f"loss_fn calls linear_softmax_cross_entropy {len(head.calls)} times with the fused head {name!r}, with "
                f"different options, dtypes or layouts: give all calls the same, or leave it out of heads."
            )
    return {name: _zeros_of(head.calls) for name, head in heads.items()}


def _check_place(name: str, call: Call, inside: Sequence[str], shape: tuple[int, ...]) -> None:
    """Raises unless the call runs once in each step of the scans around it, whose taps have the steps' axes."""
    around = [primitive for primitive in inside if primitive not in (*_RUN_ONCE, PER_DEVICE)]
    if around != ["scan"] * len(call.scans):
        other = next((primitive for primitive in around if primitive != "scan"), "scan")
        raise ValueError(
            f"loss_fn calls linear_softmax_cross_entropy with the fused head {name!r} inside of {other!r}, where one "
            f"call may run several times: use row_sparse.scan for the loop, call it outside, on all hidden states, or leave it "
            f"out of heads."
        )
    if call.scans and "cond" in inside[inside.index("scan") :]:
        raise ValueError(
            f"loss_fn calls linear_softmax_cross_entropy with the fused head {name!r} inside of jax.lax.cond in a step of "
            f"row_sparse.scan: call it in every step, and multiply the losses of a step that does not count with zero."
        )
    if PER_DEVICE in inside:
        raise ValueError(
            f"loss_fn calls linear_softmax_cross_entropy with the fused head {name!r} inside of jax.lax.cond, whose predicate "
            f"differs along mesh axes of jax.shard_map: devices would wait for those in the other branch. Call it on all "
            f"devices, and multiply the losses that do not count with zero."
        )
    if math.prod(shape) != call.tap.labels.size:
        raise ValueError(
            f"loss_fn calls linear_softmax_cross_entropy with the fused head {name!r} inside of jax.vmap: pass hidden states "
            f"of all, of shape (batch, ..., D), in one call, or leave it out of heads."
        )


def _zeros_of(calls: list[Call]) -> list[Call]:
    """The calls with taps of zeros. The sums of squares of several losses are computed later, for all of them together."""

    def with_zeros(call: Call) -> Call:
        steps, tap = tuple(steps for _, steps in call.scans), call.tap
        if steps or len(calls) > 1:
            tap = without_squares(tap)
        zeros = jax.tree.map(functools.partial(zeros_of_steps, steps), tap)
        return call._replace(tap=as_in_loss(zeros, call.loss.layout, call.loss.token_axis))

    return list(map(with_zeros, calls))


def _marked(jaxpr: Any, inside: tuple[str, ...] = ()) -> Iterator[tuple[int, str, tuple[str, ...], tuple[int, ...]]]:
    """Yields, for every marked loss of a jaxpr, its call and its head, the primitives around it, and its shape."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name" and str(eqn.params["name"]).startswith(MARK):
            call, _, name = eqn.params["name"].removeprefix(MARK).partition(" ")
            yield int(call), name, inside, eqn.outvars[0].aval.shape
        for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda part: hasattr(part, "eqns")):
            if hasattr(part, "eqns"):
                yield from _marked(getattr(part, "jaxpr", part), (*inside, _name_of(eqn)))


def _name_of(eqn: Any) -> str:
    """The name of a primitive, with a mark for a `cond` whose branch differs between the devices of a `jax.shard_map`."""
    name = eqn.primitive.name
    return PER_DEVICE if name == "cond" and varying_axes(eqn.invars[0].aval) else name
