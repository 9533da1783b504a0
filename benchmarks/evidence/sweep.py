"""Makes the runs that are missing, one after the other, until none is or the time is over."""

import importlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.evidence import records
from benchmarks.evidence.pairs import PairCell
from benchmarks.evidence.plan import Cell
from benchmarks.evidence.records import Record, Records
from benchmarks.harness.results import machine
from examples.lm.errors import UsageError

_NICENESS = 15


def be_nice() -> None:
    """Leaves the processor to whatever else runs; where the system has such a thing."""
    if hasattr(os, "nice"):
        os.nice(max(0, _NICENESS - os.nice(0)))


def sweep(cells: Iterable[Cell | PairCell], folder: Path, budget_seconds: float) -> bool:
    """Makes runs until the time is over; returns whether every cell is complete.

    It begins no run that would end too late, by the finished runs of the setting on such a machine. The first one is begun in
    any case.
    A cell whose model is not installed is left out, and said to be.
    """
    end, complete = time.monotonic() + budget_seconds, True
    with tqdm(desc="evidence", unit="run") as bar:
        for cell in cells:
            path = records.path_of(folder, cell.task, cell.setting)
            finished = records.read(path)
            try:
                complete = _complete(cell, path, finished, end, bar) and complete
            except UsageError as error:
                bar.write(f"{cell.setting}, {cell.method}: left out: {error}")
                complete = False
    return complete


def _complete(cell: Cell | PairCell, path: Path, finished: Records, end: float, bar: tqdm) -> bool:
    prepared = None
    while run := cell.next_run(finished):
        if time.monotonic() + _expected(cell, finished) > end:
            return False
        rates = f"{run.rate:g}" if run.head_rate is None else f"{run.rate:g} and {run.head_rate:g}"
        bar.set_postfix_str(f"{run.task}, {run.setting}: {run.method} at {rates}, seed {run.seed}")
        prepared = prepared or _prepare(cell)
        start, processor_start = time.perf_counter(), time.process_time()
        loss, details = prepared(run.rate, run.seed, run.head_rate)
        details |= {
            "seconds": round(time.perf_counter() - start, 1),
            "processor_seconds": round(time.process_time() - processor_start, 1),
            "machine": machine(),
        }
        finished[run] = Record(run, loss, details)
        records.append(path, finished[run])
        bar.update()
    return True


def _expected(cell: Cell | PairCell, finished: Records) -> float:
    """Seconds of a run: three quarters of the finished ones of the setting took no longer. Single ones may have been stopped."""
    of_setting = (record.details for run, record in finished.items() if run.setting == cell.setting)
    seconds = [details["seconds"] for details in of_setting if details.get("machine") == machine()]
    return float(np.quantile(seconds, 0.75)) if seconds else 0.0


def _prepare(cell: Cell | PairCell) -> Callable[..., tuple[float | None, dict[str, Any]]]:
    """The program of a cell. The memory of the one before is given back."""
    jax.clear_caches()
    task = importlib.import_module(f"benchmarks.evidence.{cell.task}")
    return task.prepare(task.SETTINGS[cell.setting], cell.method)
