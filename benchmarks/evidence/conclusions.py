"""The first part of the page: what momentum is worth, what two rates are worth, what Ember adds and what it costs."""

from collections.abc import Iterable

from benchmarks.evidence.comparison import paired
from benchmarks.evidence.methods import title
from benchmarks.evidence.pair_comparison import PairResults, best_of, mean_of
from benchmarks.evidence.studies import BASELINE, ESTIMATES, MOMENTA, NO_MOMENTUM, OURS, TASKS, VARIANTS, Study
from benchmarks.evidence.tables import Results, shown_difference, shown_spread
from benchmarks.evidence.verdicts import FEWEST, MARGIN, Compared, compared, missing, summary
from benchmarks.harness.report import markdown

_COMPARISONS = ((NO_MOMENTUM, BASELINE), (OURS, BASELINE), (OURS, NO_MOMENTUM))


def conclusions(one: Results, two: PairResults, study: Study) -> str:
    """One line for each question: in how many settings which verdict."""

    def line(question: str, ours: str, theirs: str, settings: Iterable[tuple[str, str]]) -> str:
        found = [compared(one, two, task, setting, ours, theirs) for task, setting in settings]
        known = [each for each in found if each]
        lacking = f" ({missing(found)})" if None in found else ""
        return f"* **{question}** {summary(known)}{lacking}." if known else f"* **{question}** Not measured yet."

    lengths = [("pretraining", setting) for setting in study.lengths]
    lines = [
        *(
            line(
                f"{task.title}: Ember against AdamW as it is used.",
                OURS,
                BASELINE,
                [key for key in study.settings if key[0] == name],
            )
            for name, task in TASKS.items()
        ),
        line("What momentum is worth: Adam without it against AdamW.", NO_MOMENTUM, BASELINE, study.settings),
        line("What Ember adds or costs: Ember against Adam without momentum.", OURS, NO_MOMENTUM, study.settings),
        line("Over the length of a run, against AdamW.", OURS, BASELINE, lengths),
        line("Over the length of a run, against Adam without momentum.", OURS, NO_MOMENTUM, lengths),
        _to_the_best(two),
        _two_rates(two),
    ]
    return "\n".join(line for line in lines if line)


def table(one: Results, two: PairResults, study: Study) -> str:
    """Every setting with its three differences."""
    rows = []
    for task, setting in study.settings:
        found = [compared(one, two, task, setting, *pair) for pair in _COMPARISONS]
        if known := [each for each in found if each]:
            sizes = sorted({each.difference.size for each in known})
            rates = " or ".join(dict.fromkeys(each.rates for each in known))
            cells = (shown_difference(each.difference) if each else "" for each in found)
            rows.append((f"{TASKS[task].title}: {setting}", rates, " or ".join(map(str, sizes)), *cells))
    headers = (f"{title(ours)} - {title(theirs)}" for ours, theirs in _COMPARISONS)
    return markdown(rows, ("setting", "rates", "n", *headers))


def lengths(two: PairResults, study: Study) -> str:
    """The README's table: losses by the number of steps, and what a swap to Ember changes; two rates each."""
    methods = (BASELINE, NO_MOMENTUM, OURS)
    ready = {key[1:]: result for key, result in two.items() if key[0] == "pretraining" and len(result.fresh) >= FEWEST}
    settings = [setting for setting in study.lengths if {(setting, BASELINE), (setting, OURS)} <= ready.keys()]
    if not settings:
        return ""
    steps = []
    for setting in settings:
        ours = ready[setting, OURS]
        steps.append(f"{next(iter(ours.fresh.values())).details['steps']:,} steps, n = {len(ours.fresh)}")
    rows = []
    for method in methods:
        found = [ready.get((setting, method)) for setting in settings]
        state = next((f"{result.table_state_bytes:,}" for result in found if result), "")
        rows.append((title(method), state, *(shown_spread(result.losses) if result else "" for result in found)))
    for baseline in (BASELINE, NO_MOMENTUM):
        differences = (compared({}, two, "pretraining", setting, OURS, baseline) for setting in settings)
        rows.append(
            (f"{title(OURS)} - {title(baseline)}", "", *(shown_difference(each and each.difference) for each in differences))
        )
    return markdown(rows, ("tables trained by", "state (bytes)", *steps))


def estimates(one: Results) -> str:
    """Other estimates of the second moment against Ember and against the full one."""
    rows = []
    for setting in ESTIMATES:
        for method in (OURS, *VARIANTS):
            result = one.get(("pretraining", setting, method))
            if result is None or result.losses is None:
                continue
            others = [
                None if other == method else compared(one, {}, "pretraining", setting, method, other)
                for other in (OURS, NO_MOMENTUM)
            ]
            name, n, rate = setting.removesuffix(", estimates"), str(len(result.fresh)), f"{result.best.rate:g}"
            rows.append((name, title(method), n, rate, *(shown_difference(each and each.difference) for each in others)))
    return markdown(rows, ("setting", "estimate", "n", "best rate", "minus Ember", "minus Adam without momentum"), names=2)


def _to_the_best(two: PairResults) -> str:
    """Ember against the best b1 of each setting, as the seeds of the grid choose it."""
    found: list[Compared] = []
    for task, setting in dict.fromkeys(key[:2] for key in two):
        best = best_of(two, task, setting, MOMENTA)
        if best and (each := compared({}, two, task, setting, OURS, best)):
            found.append(each)
    if not found:
        return ""
    return (
        f"* **Ember against AdamW with the best b1 of 0.9, 0.5 and 0, two rates each.** {summary(found)} "
        f"([each setting](evidence_runs.md#two-rates))."
    )


def _two_rates(two: PairResults) -> str:
    """What a second rate is worth to each method, on the seeds of the grid: its best pair minus its best pair of equal rates."""
    parts = []
    for (_, setting, method), result in two.items():
        equal = {
            pair: runs for pair, runs in result.grid.items() if pair[0] == pair[1] and len(runs) == len(result.cell.grid_seeds)
        }
        if result.cell.also and len(equal) >= FEWEST:
            best = min(equal, key=lambda pair: mean_of(equal[pair]))
            difference = paired(result.grid[result.best.pair], equal[best])
            parts.append(f"{setting}, {title(method)}: {shown_difference(difference)}")
    return f"* **What a rate of its own for the head is worth, on the seeds of the grid.** {'; '.join(parts)}." if parts else ""


MARGINS = f"""
The margin was fixed before the runs with two rates: {MARGIN} nats for each token, or {MARGIN} of the answers. The words go by
the 95 % interval of a difference: "lower" is below zero, "the same" is inside the margin on both sides, "not higher" has its
upper end inside the margin, and "open" allows more. "Open" is not "the same".
"""
