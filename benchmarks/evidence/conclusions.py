"""The first part of the page: what momentum is worth, what two rates are worth, what Ember adds and what it costs."""

from collections.abc import Iterable, Sequence

from benchmarks.evidence.comparison import paired
from benchmarks.evidence.methods import title
from benchmarks.evidence.pair_comparison import PairResults, best_of
from benchmarks.evidence.pairs import Pair
from benchmarks.evidence.statistics import Difference
from benchmarks.evidence.studies import (
    BASELINE,
    ESTIMATES,
    FOUR,
    LESS_MOMENTUM,
    MOMENTA,
    NO_MOMENTUM,
    OURS,
    TASKS,
    VARIANTS,
    Study,
)
from benchmarks.evidence.tables import Results, shown_difference, shown_spread
from benchmarks.evidence.verdicts import FEWEST, MARGIN, Compared, compared, extremes, missing, summary
from benchmarks.harness.report import markdown

_COMPARISONS = ((NO_MOMENTUM, BASELINE), (LESS_MOMENTUM, BASELINE), (OURS, BASELINE), (OURS, NO_MOMENTUM))


def conclusions(one: Results, two: PairResults, study: Study) -> str:
    """One line for each question: what was found in how many settings, and the smallest and the largest difference."""

    def line(question: str, ours: str, theirs: str, settings: Iterable[tuple[str, str]]) -> str:
        found = [compared(one, two, task, setting, ours, theirs) for task, setting in settings]
        known = [each for each in found if each]
        lacking = f" {missing(found).capitalize()}." if None in found else ""
        return f"* **{question}** {_counted(known)}.{lacking}" if known else f"* **{question}** Not measured yet."

    by_task = {name: [key for key in study.settings if key[0] == name] for name in TASKS}
    lines = [
        *(line(f"{task.title}: Ember minus AdamW.", OURS, BASELINE, by_task[name]) for name, task in TASKS.items()),
        _over_lengths(one, two, study),
        line("Momentum: Adam without it minus AdamW.", NO_MOMENTUM, BASELINE, study.settings),
        line("Less momentum: AdamW with b1 = 0.5 minus AdamW.", LESS_MOMENTUM, BASELINE, study.settings),
        line("Ember's factored second moment: Ember minus Adam without momentum.", OURS, NO_MOMENTUM, study.settings),
        _to_the_best(two),
        _second_rates(one, two),
    ]
    return "\n".join(line for line in lines if line)


def table(one: Results, two: PairResults, study: Study) -> str:
    """Every setting with its differences."""
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
            name, rate = setting.removesuffix(", estimates"), f"{result.best.rate:g}"
            n = " or ".join(dict.fromkeys(str(each.difference.size) for each in others if each))
            rows.append((name, title(method), n, rate, *(shown_difference(each and each.difference) for each in others)))
    return markdown(rows, ("setting", "estimate", "n", "best rate", "minus Ember", "minus Adam without momentum"), names=2)


def second_rates(one: Results, two: PairResults) -> str:
    """What a second rate is worth: each method at its best pair minus itself at its best single rate, on fresh seeds."""
    rows = [
        (setting, title(method), f"{pair[0]:g}, {pair[1]:g}", f"{rate:g}", str(difference.size), shown_difference(difference))
        for setting, method, pair, rate, difference in _worth(one, two)
    ]
    headers = ("setting", "tables trained by", "best pair: input, head", "best single rate", "n", "pair - single rate")
    return markdown(rows, headers, names=2)


def _worth(one: Results, two: PairResults) -> Iterable[tuple[str, str, Pair, float, Difference]]:
    for (task, setting, method), result in two.items():
        single = one.get((task, setting, method))
        if single and result.best.pair[0] != result.best.pair[1]:
            # Lines with one rate have no hash of the first parameters. A test shows that they begin with the same.
            difference = paired(result.fresh, single.fresh, ignored=("base",))
            if difference and difference.size >= FEWEST:
                yield setting, method, result.best.pair, single.best.rate, difference


def _second_rates(one: Results, two: PairResults) -> str:
    found = [Compared(setting, "two", difference) for setting, _, _, _, difference in _worth(one, two)]
    settings = ", ".join(dict.fromkeys(each.setting for each in found))
    unequal = {key[1] for key, result in two.items() if key[2] in FOUR and result.best.pair[0] != result.best.pair[1]}
    equal = dict.fromkeys(key[1] for key in two if key[1] not in unequal)
    nothing = f" Nothing where the best pairs have equal rates ({', '.join(equal)})." if equal else ""
    return (
        f"* **A second rate, for the head: each method minus itself with one rate.** From {extremes(found)} ({settings}; "
        f"[each method](evidence_runs.md#what-a-second-rate-is-worth)).{nothing}"
        if found
        else ""
    )


def _over_lengths(one: Results, two: PairResults, study: Study) -> str:
    found = [compared(one, two, "pretraining", setting, OURS, BASELINE) for setting in study.lengths]
    shown = ", ".join(
        f"{shown_difference(each.difference)} ({each.setting}, n = {each.difference.size})" for each in found if each
    )
    return f"* **The gain shrinks with the length of a run: Ember minus AdamW.** {shown}." if shown else ""


def _to_the_best(two: PairResults) -> str:
    """Ember against the best b1 of each setting, as the seeds of the grid choose it."""
    found: list[Compared] = []
    for task, setting in dict.fromkeys(key[:2] for key in two):
        best = best_of(two, task, setting, MOMENTA)
        if best and (each := compared({}, two, task, setting, OURS, best)):
            found.append(each)
    if not found:
        return ""
    question = "Ember minus AdamW with the best b1 of 0.9, 0.5 and 0."
    return f"* **{question}** {_counted(found)} ([each setting](evidence_runs.md#two-rates))."


def _counted(found: Sequence[Compared]) -> str:
    return f"{summary(found)}: {extremes(found)}"


WORDS = f"""
Differences are in nats for each token, in reinforcement learning in the share of wrong answers. Below zero the first of the two
is better. Each has its 95 % interval in brackets:

* "lower": the interval is below zero. "higher": it is above zero.
* "the same within {MARGIN}": the interval is within -{MARGIN} to +{MARGIN}.
* "not higher by {MARGIN}": its upper end is below +{MARGIN}.
* "open": it contains zero and goes beyond +{MARGIN}.

The margin of {MARGIN} was chosen after the runs with one rate and after the first 144 with two rates, and before all others.
"""
