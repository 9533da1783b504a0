"""The paper's claims and what the finished runs say of each."""

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

    def no_worse(text: str, task: str | None, settings: tuple[str, ...] | None = None, method: str = OURS) -> Claim:
        wanted = [
            (cell.task, cell.setting, cell.method)
            for cell in dict.fromkeys(study.cells)
            if cell.method == method and task in (None, cell.task) and (settings is None or cell.setting in settings)
        ]
        return _no_worse(text, [results.get(key) for key in wanted])

    batches = tuple(setting for settings in study.batches.values() for setting in settings)
    return [
        *(no_worse(f"{TASKS[task].title}: as good as Adam or better", task) for task in TASKS),
        no_worse("It scales over batch size", None, batches),
        no_worse("It scales over parameter count", "pretraining", study.sizes),
        _state(results),
        no_worse("No first moment is needed (Adam without it against AdamW)", None, method="rmsprop"),
        _narrow(results, study),
        _late(results, study),
        Claim("A table's trajectory is one ray", "not tested by these runs", "they keep losses, not parameters"),
        Claim("It scales to models and batches of today", "not testable here", "two cores"),
    ]


def _no_worse(text: str, wanted: list[Result | None]) -> Claim:
    """Reproduced where no setting is missing and no interval lies above zero; the highest end of one is what remains possible."""
    measured = [result for result in wanted if result and result.difference and result.is_complete]
    if not measured:
        return Claim(text, _OPEN, "")
    differences = [result.difference for result in measured if result.difference]
    verdicts = [difference.verdict for difference in differences]
    highest = max(difference.mean + difference.half for difference in differences)
    found = f"lower in {verdicts.count('lower')}, higher in {verdicts.count('higher')} of {len(verdicts)} settings"
    if "higher" not in verdicts:
        found += f" (at most {highest:+.3f})"
    numbers = "; ".join(f"{result.cell.setting}: {shown_difference(result.difference)}" for result in measured)
    if len(measured) < len(wanted):
        return Claim(text, f"so far, with {len(wanted) - len(measured)} settings missing: {found}", numbers)
    return Claim(text, f"{'not reproduced' if 'higher' in verdicts else 'reproduced'}: {found}", numbers)


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
    missing = len(methods) - len(measured)
    verdict = f"worse are {len(worse)} of {len(measured)}" + (f", {missing} not measured yet" if missing else "")
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
