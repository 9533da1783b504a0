"""The tables of the page: what was found, with n and spread, and what shows that it was found fairly."""

import math
from collections.abc import Iterable

from benchmarks.evidence.comparison import Result, paired
from benchmarks.evidence.likeness import UnlikeRunsError
from benchmarks.evidence.methods import title
from benchmarks.evidence.statistics import Difference, Spread
from benchmarks.evidence.studies import BASELINE, OURS, TASKS, Study
from benchmarks.harness.report import markdown

REFUSED = "refused: runs that are no pairs"
Results = dict[tuple[str, str, str], Result]


def of_setting(results: Results, task: str, setting: str) -> list[Result]:
    """The methods of a setting, the best first; those without fresh seeds last."""
    found = [result for (of_task, of_setting, _), result in results.items() if (of_task, of_setting) == (task, setting)]
    return sorted(found, key=lambda result: (result.losses is None, result.losses.mean if result.losses else math.inf))


def headline(results: Results, study: Study) -> str:
    """The baseline and Ember in every setting that has both, task by task."""
    rows = []
    for task, setting in sorted(dict.fromkeys(key[:2] for key in results), key=lambda pair: list(TASKS).index(pair[0])):
        theirs, ours = results.get((task, setting, BASELINE)), results.get((task, setting, OURS))
        if theirs and ours and theirs.losses and ours.losses:
            parameters = ours.any.details["table_parameters"]
            states = f"{theirs.table_state_bytes:,}", f"{ours.table_state_bytes:,}"
            cells = (shown_spread(theirs.losses), shown_spread(ours.losses), shown_difference(ours.difference))
            rows.append((TASKS[task].title, setting, f"{parameters:,}", str(len(ours.fresh)), *cells, *states))
    difference = "Ember - AdamW, 95 % interval"
    headers = ("task", "setting", "numbers in tables", "n", "AdamW", "Ember", difference, "state: AdamW", "Ember (bytes)")
    return markdown(rows, headers, names=2)


def methods(results: Results, task: str, setting: str) -> str:
    """Every method of a setting at its own best rate."""
    rows = [
        (
            title(result.cell.method),
            f"{result.table_state_bytes:,}",
            f"{result.best.rate:g}" + ("" if result.best.inside else " (at the edge)"),
            str(len(result.fresh)),
            shown_spread(result.losses),
            REFUSED if result.refused else "" if result.cell.method == BASELINE else shown_difference(result.difference),
            str(result.diverged),
        )
        for result in of_setting(results, task, setting)
    ]
    headers = ("tables trained by", "state (bytes)", "best rate", "n", "loss", "difference to AdamW, 95 % interval", "diverged")
    return markdown(rows, headers)


def rates(results: Results, task: str, setting: str) -> str:
    """The sweep with one seed: the loss of every method at every rate that it was tried at."""
    found = of_setting(results, task, setting)
    every = sorted({rate for result in found for rate in result.sweep if len(result.cell.rates) > 1})
    rows = []
    for result in found:
        losses = (_sweep_cell(result, rate) for rate in every)
        rows.append((title(result.cell.method), *losses))
    return markdown(rows, ("tables trained by", *(f"{rate:g}" for rate in every)))


def best_rates(results: Results) -> str:
    """The best rates of the tables as multiples of the body's."""
    rows = []
    for task, setting in dict.fromkeys(key[:2] for key in results):
        found = [results.get((task, setting, method)) for method in (BASELINE, OURS)]
        if all(found):
            multiples = [f"{result.best.rate / result.any.details['body_rate']:.3g}" for result in found if result]
            rows.append((TASKS[task].title, setting, f"{found[0].any.details['body_rate']:g}" if found[0] else "", *multiples))
    return markdown(rows, ("task", "setting", "peak rate of the body", "best of the tables, AdamW", "Ember"), names=2)


def forms_of_ember(results: Results) -> str:
    """The forms of Ember against its defaults in the same setting, each at its own best rate, paired by seed."""
    rows = []
    for (task, setting, method), result in results.items():
        ours = results.get((task, setting, OURS))
        if ours and method != OURS and title(method).startswith(f"{title(OURS)},"):
            form = title(method).removeprefix(f"{title(OURS)}, ")
            try:
                difference = paired(result.fresh, ours.fresh)
            except UnlikeRunsError:
                rows.append((form, TASKS[task].title, setting, "", REFUSED))
                continue
            if difference:
                rows.append((form, TASKS[task].title, setting, str(difference.size), shown_difference(difference)))
    headers = ("form", "task", "setting", "n", "form - Ember's defaults, 95 % interval")
    return markdown(sorted(rows, key=lambda row: row[0]), headers, names=3)


def shown_spread(losses: Spread | None) -> str:
    """Mean and standard deviation."""
    if losses is None:
        return ""
    if not math.isfinite(losses.mean):
        return "diverged"
    return f"{losses.mean:.4f}" + ("" if math.isnan(losses.deviation) else f" ± {losses.deviation:.4f}")


def shown_difference(difference: Difference | None) -> str:
    """Mean and interval."""
    if difference is None:
        return ""
    if not math.isfinite(difference.half):
        return f"{difference.mean:+.4f}" if math.isfinite(difference.mean) else "diverged"
    return f"{difference.mean:+.4f} [{difference.mean - difference.half:+.4f}, {difference.mean + difference.half:+.4f}]"


def names(found: Iterable[str]) -> str:
    """Methods as a sentence has them."""
    return ", ".join(map(title, found))


def _sweep_cell(result: Result, rate: float) -> str:
    record = result.sweep.get(rate)
    if record is None:
        return ""
    text = "diverged" if record.loss is None else f"{record.loss:.3f}"
    return f"**{text}**" if rate == result.best.rate else text
