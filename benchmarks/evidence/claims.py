"""The paper's claims, what the finished runs say of each by a margin stated in advance, and what would change the verdict."""

from typing import NamedTuple

from benchmarks.evidence.methods import title
from benchmarks.evidence.pair_comparison import PairResults
from benchmarks.evidence.studies import BASELINE, NO_MOMENTUM, OTHERS, OURS, PARTS, TASKS, Study
from benchmarks.evidence.tables import Results
from benchmarks.evidence.verdicts import HIGHER, MARGIN, OPEN, WORSE, Compared, compared, missing, summary

_UNMEASURED = "not measured yet"
_HIGHER = f"a setting whose interval is above +{MARGIN}"


class Claim(NamedTuple):
    """What the paper says, whether it is so here, and what would change the verdict."""

    text: str
    verdict: str
    would_change: str


def claims(one: Results, two: PairResults, study: Study) -> list[Claim]:
    """Every claim of the paper, with those that cannot be put to a test here."""

    def no_worse(text: str, settings: list[tuple[str, str]], ours: str = OURS) -> Claim:
        found = [compared(one, two, task, setting, ours, BASELINE) for task, setting in settings]
        return _no_worse(text, found)

    by_task = {task: [key for key in study.settings if key[0] == task] for task in TASKS}
    batches = [(task, setting) for task, settings in study.batches.items() for setting in settings]
    return [
        *(no_worse(f"{TASKS[task].title}: as good as Adam or better", by_task[task]) for task in TASKS),
        no_worse("It scales over batch size", batches),
        no_worse("It scales over parameter count", [("pretraining", setting) for setting in study.sizes]),
        no_worse("As good over the length of a run (the gain shrinks)", [("pretraining", setting) for setting in study.lengths]),
        _state(one, two),
        no_worse("No first moment is needed (Adam without it against AdamW)", by_task["pretraining"], NO_MOMENTUM),
        _narrow(one, study),
        Claim(
            "Late steps are stable",
            "not tested: AdamW's runs are stable here too",
            "a setting in which AdamW's late steps are not stable",
        ),
        Claim(
            "A table's trajectory is one ray",
            "true of most tables, and of hidden rows and random walks too ([what is said of tokens](statements.md))",
            "shares that are 0.05 above those of hidden rows and of a random walk, for frequent and rare rows",
        ),
        Claim("It scales to models and batches of today", "not tested: two cores", "runs on accelerators"),
    ]


def _no_worse(text: str, wanted: list[Compared | None]) -> Claim:
    """Holds where every setting was compared and none can be worse by more than the margin; fails where one is."""
    found = [one for one in wanted if one]
    if not found:
        return Claim(text, _UNMEASURED, "the runs")
    verdicts = [one.verdict for one in found]
    lacking = missing(wanted)
    if WORSE in verdicts:
        word, change = "no", "other rates or a form of the method that bring these settings below the margin"
    elif OPEN in verdicts or HIGHER in verdicts:
        word, change = "open", "more seeds in the settings that are open or higher"
    elif lacking:
        word, change = "open", "the runs that are missing"
    else:
        word, change = "yes", _HIGHER
    return Claim(text, f"{word}: {summary(found)}{'; ' if lacking else ''}{lacking}", change)


def _state(one: Results, two: PairResults) -> Claim:
    text = "Kilobytes of state"
    results = [*one.items(), *two.items()]
    states = {key: result.table_state_bytes for key, result in results}
    pairs = [
        (states[*key[:2], BASELINE], size) for key, size in states.items() if key[2] == OURS and (*key[:2], BASELINE) in states
    ]
    if not pairs:
        return Claim(text, _UNMEASURED, "the runs")
    theirs, ours = max(pairs)
    return Claim(text, f"yes: {ours:,} bytes against {theirs:,} for the largest tables", "nothing: it follows from the shapes")


def _narrow(results: Results, study: Study) -> Claim:
    """Which optimizers with less state than Adam are worse than AdamW, and which are not."""
    text = "Few optimizers suffice: parts of the second moment alone, and other estimates, are worse"
    key = ("pretraining", study.main["pretraining"])
    methods = (*PARTS, *(method for method in OTHERS if method != "ember_active_rows"), "frozen")
    found = [results.get((*key, method)) for method in methods]
    measured = [result for result in found if result and result.difference and result.is_complete]
    if not measured:
        return Claim(text, _UNMEASURED, "the runs")
    worse = [result for result in measured if result.difference and result.difference.verdict == "higher"]
    lacking = f", {len(methods) - len(measured)} not measured" if len(measured) < len(methods) else ""
    names = "; ".join(title(result.cell.method) for result in measured if result not in worse)
    verdict = f"{len(worse)} of {len(measured)} are worse than AdamW{lacking}" + (f"; not worse: {names}" if names else "")
    return Claim(text, f"{'yes' if not names else 'no'}: {verdict}", "longer runs or larger tables, in which others may fail")
