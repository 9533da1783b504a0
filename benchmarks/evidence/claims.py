"""The paper's claims and what the finished runs say of each."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from benchmarks.evidence.comparison import Result
from benchmarks.evidence.methods import title
from benchmarks.evidence.studies import BASELINE, OURS, PARTS, TASKS, Study
from benchmarks.evidence.tables import Results, shown_difference

_OPEN = "not measured yet"


class Claim(NamedTuple):
    """What the paper says, whether it is so here, and the numbers."""

    text: str
    verdict: str
    numbers: str


def claims(results: Results, study: Study) -> list[Claim]:
    """Every claim that can be put to a test here, and those that cannot."""
    return [
        *(_no_worse(f"{TASKS[task].title}: as good as Adam or better", _ours(results, task)) for task in TASKS),
        _no_worse("It scales over batch size", _in_settings(results, study.batches), at_least=3),
        _no_worse("It scales over parameter count", _in_settings(results, {"pretraining": study.sizes}), at_least=3),
        _state(results),
        _no_worse("No first moment is needed (Adam without it against AdamW)", _of_method(results, "rmsprop")),
        _narrow(results, study),
        _late(results, study),
        Claim("A table's trajectory is one ray", "not tested by these runs", "they keep losses, not parameters"),
        Claim("It scales to models and batches of today", "not testable here", "two cores"),
    ]


def _no_worse(text: str, found: Iterable[Result], at_least: int = 1) -> Claim:
    """Not reproduced where an interval lies above zero; where none does, the highest end of one is what remains possible.

    With less than `at_least` settings nothing is said yet.
    """
    measured = [result for result in found if result.difference and result.is_complete]
    numbers = "; ".join(f"{result.cell.setting}: {shown_difference(result.difference)}" for result in measured)
    verdicts = [result.difference.verdict for result in measured if result.difference]
    if len(verdicts) < at_least:
        return Claim(text, _OPEN, "")
    if "higher" in verdicts:
        return Claim(text, f"not reproduced in {verdicts.count('higher')} of {len(verdicts)} settings", numbers)
    highest = max(result.difference.mean + result.difference.half for result in measured if result.difference)
    better = f"lower in {verdicts.count('lower')} of {len(verdicts)} settings, higher in none"
    return Claim(text, f"reproduced: {better} (at most {highest:+.3f})", numbers)


def _state(results: Results) -> Claim:
    text = "Kilobytes of state"
    pairs = [
        (theirs.table_state_bytes, ours.table_state_bytes)
        for (task, setting, method), ours in results.items()
        if method == OURS and (theirs := results.get((task, setting, BASELINE)))
    ]
    if not pairs:
        return Claim(text, _OPEN, "")
    theirs, ours = max(pairs)
    return Claim(text, "reproduced", f"largest tables: {ours:,} bytes against {theirs:,}")


def _narrow(results: Results, study: Study) -> Claim:
    """Which parts of the second moment are needed: those without which the loss is higher."""
    text = "Few optimizers suffice: parts of the second moment alone, and none, are worse"
    methods = (*PARTS, "sign", "sgd", "frozen")
    found = [results.get(("pretraining", study.main["pretraining"], method)) for method in methods]
    measured = [result for result in found if result and result.difference and result.is_complete]
    if not measured:
        return Claim(text, _OPEN, "")
    worse = [result for result in measured if result.difference and result.difference.verdict == "higher"]
    numbers = "; ".join(f"{title(result.cell.method)}: {shown_difference(result.difference)}" for result in measured)
    verdict = "reproduced" if len(worse) == len(measured) else f"reproduced for {len(worse)} of {len(measured)}"
    return Claim(text, verdict, numbers)


def _late(results: Results, study: Study) -> Claim:
    """Whether training losses go up again in the last quarter of a run at the best rate."""
    text = "Late steps are stable"
    counted = []
    for method in (BASELINE, OURS):
        result = results.get(("pretraining", study.main["pretraining"], method))
        if result is None or not result.fresh:
            return Claim(text, _OPEN, "")
        rising = [_rises(record.details["losses"]) for record in result.fresh.values()]
        counted.append((title(method), sum(rising), len(rising)))
    numbers = "; ".join(
        f"{name}: the training loss rose in the last quarter of {rose} of {runs} runs" for name, rose, runs in counted
    )
    _, theirs, _ = counted[0]
    _, ours, _ = counted[1]
    return Claim(text, "reproduced" if ours <= theirs else "not reproduced", numbers)


def _rises(losses: list[float | None]) -> bool:
    """Whether the mean of the last tenth is above that of the tenth that ends where the last quarter begins."""
    values = np.asarray([np.inf if loss is None else loss for loss in losses])
    tenth = max(1, len(values) // 10)
    start = 3 * len(values) // 4
    return bool(values[-tenth:].mean() > values[max(0, start - tenth) : start].mean())


def _ours(results: Results, task: str) -> list[Result]:
    return [result for (of_task, _, method), result in results.items() if (of_task, method) == (task, OURS)]


def _of_method(results: Results, wanted: str) -> list[Result]:
    return [result for (_, _, method), result in results.items() if method == wanted]


def _in_settings(results: Results, settings: dict[str, tuple[str, ...]]) -> list[Result]:
    keys = [(task, setting, OURS) for task, names in settings.items() for setting in names]
    return [results[key] for key in keys if key in results]
