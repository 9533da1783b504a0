"""Times of steps that take turns in one process: machines may be shared, so ratios of neighbours count, milliseconds do not.

On one that is busy `clock=time.process_time` counts what the process does on all cores, and not how long it waits for them.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from benchmarks.harness.compiled import Cost, cost_of


class CompiledStep(NamedTuple):
    """A compiled step `run(carry) -> carry`, its fresh carry and what the compiler says of it."""

    run: Callable[[Any], Any]
    fresh: Callable[[], Any]
    cost: Cost


class Times(NamedTuple):
    """Seconds of every measurement of a step, and each divided by the reference's next to it."""

    seconds: list[float]
    ratios: list[float]


class Clocks(NamedTuple):
    """Seconds of every measurement of a step: by the clock, and of all threads of the process together."""

    wall: list[float]
    cpu: list[float]

    def milliseconds(self) -> dict[str, float]:
        """Their medians."""
        return {"milliseconds": 1e3 * median(self.wall), "cpu milliseconds": 1e3 * median(self.cpu)}

    def ratio_to(self, reference: "Clocks") -> float:
        """The median of the wall times, each divided by that of the reference with the same batch."""
        return median(ours / unit for ours, unit in zip(self.wall, reference.wall, strict=True))


def compile_step(step: Callable[..., Any], fresh: Callable[[], Any], *given: Any) -> CompiledStep:
    """`step(carry, *given)`, compiled with the carry donated."""
    compiled: Any = jax.jit(step, donate_argnums=0).lower(jax.eval_shape(fresh), *given).compile()
    return CompiledStep(lambda carry: compiled(carry, *given), fresh, cost_of(compiled))


def take_turns(
    steps: Mapping[str, CompiledStep], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each step; from fresh carries they take turns, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    carries = {name: step.fresh() for name, step in steps.items()}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = clock()
            carries[name] = jax.block_until_ready(step.run(carries[name]))
            seconds[name].append(clock() - start)
    return {name: counted for name, (_, *counted) in seconds.items()}


def time_batches(steps: Mapping[str, Callable[[Any], object]], batches: Iterable[Any]) -> dict[str, Clocks]:
    """Wall and CPU time of steps that are not compiled as a whole, and keep their carry; they take turns with each batch."""
    times = {name: Clocks([], []) for name in steps}
    for batch in batches:
        for name, step in steps.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            step(batch)
            times[name].wall.append(time.perf_counter() - start)
            times[name].cpu.append(time.process_time() - start_cpu)
    return times


def time_against(
    reference: CompiledStep, steps: Mapping[str, CompiledStep], rounds: int, repeats: int, description: str
) -> dict[str, Times]:
    """In every round each step in its turn alternates with the reference `repeats` times; only these two are in memory then."""
    times = {name: Times([], []) for name in steps}
    for _ in tqdm(range(rounds), desc=description, unit="round"):
        for name, step in steps.items():
            seconds = take_turns({"step": step, "reference": reference}, repeats)
            times[name].seconds.extend(seconds["step"])
            times[name].ratios.extend(ours / unit for ours, unit in zip(*seconds.values(), strict=True))
    return times
