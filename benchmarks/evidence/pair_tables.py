"""The tables of the page's part with two rates."""

import math
from collections.abc import Iterable

from benchmarks.evidence.methods import title
from benchmarks.evidence.pair_comparison import PairResult, PairResults, against, best_of, mean_of
from benchmarks.evidence.statistics import Difference
from benchmarks.evidence.studies import BASELINE, MOMENTA, NO_MOMENTUM, OURS
from benchmarks.evidence.tables import REFUSED, shown_difference, shown_spread
from benchmarks.harness.report import markdown


def headline(results: PairResults) -> str:
    """AdamW with several b1 and Ember in every setting that has fresh runs of AdamW and of Ember."""
    rows = []
    for task, setting in dict.fromkeys(key[:2] for key in results):
        found = {method: results.get((task, setting, method)) for method in (*MOMENTA, OURS)}
        ours, theirs = found[OURS], found[BASELINE]
        if ours and theirs and ours.fresh and theirs.fresh:
            best = best_of(results, task, setting, MOMENTA) or BASELINE
            losses = (shown_spread(result.losses) if result else "" for result in found.values())
            key = (task, setting, OURS)
            to_best = against(results, key, best)
            to_best = f"{_shown(to_best)} ({title(best)})" if to_best else ""
            rows.append((setting, str(len(ours.fresh)), *losses, _shown(against(results, key, BASELINE)), to_best))
    names = (title(method) for method in (*MOMENTA, OURS))
    return markdown(rows, ("setting", "n", *names, "Ember - AdamW, 95 % interval", "Ember - best of the others"), names=1)


def methods(results: PairResults, task: str, setting: str) -> str:
    """Every method of a setting at its own best pair, the best first."""
    found = sorted(of_setting(results, task, setting), key=lambda result: result.losses.mean if result.losses else math.inf)
    rows = []
    for result in found:
        edge = "" if result.best.inside else " (at the edge)"
        key = (task, setting, result.cell.method)
        rows.append(
            (
                title(result.cell.method),
                f"{result.table_state_bytes:,}",
                f"{result.best.pair[0]:g}, {result.best.pair[1]:g}{edge}",
                str(len(result.fresh)),
                shown_spread(result.losses),
                *(_shown(against(results, key, baseline)) for baseline in (BASELINE, NO_MOMENTUM)),
                str(result.diverged),
            )
        )
    differences = (f"difference to {title(baseline)}" for baseline in (BASELINE, NO_MOMENTUM))
    headers = ("tables trained by", "state (bytes)", "best rates: input, head", "n", "loss", *differences, "diverged")
    return markdown(rows, headers)


def grids(results: PairResults, task: str, setting: str) -> str:
    """The mean loss over the seeds of the grid at every pair that was tried; fewer seeds in brackets."""
    found = of_setting(results, task, setting)
    heads = sorted({pair[1] for result in found for pair in result.grid})
    rows = []
    for result in found:
        for rate in sorted({pair[0] for pair in result.grid}):
            cells = (_grid_cell(result, (rate, head)) for head in heads)
            rows.append((title(result.cell.method), f"{rate:g}", *cells))
    return markdown(rows, ("tables trained by", "input rate", *(f"head {head:g}" for head in heads)))


def of_setting(results: PairResults, task: str, setting: str) -> list[PairResult]:
    """The methods of a setting."""
    return [result for (of_task, of_setting, _), result in results.items() if (of_task, of_setting) == (task, setting)]


def settings(results: PairResults) -> Iterable[tuple[str, str]]:
    """Tasks and settings that have a result."""
    return dict.fromkeys(key[:2] for key in results)


def _grid_cell(result: PairResult, pair: tuple[float, float]) -> str:
    runs = result.grid.get(pair, {})
    if not runs:
        return ""
    loss = mean_of(runs)
    text = f"{loss:.3f}" if math.isfinite(loss) else "diverged"
    if len(runs) < len(result.cell.grid_seeds):
        return f"({text})"
    return f"**{text}**" if pair == result.best.pair else text


def _shown(difference: Difference | str | None) -> str:
    return REFUSED if isinstance(difference, str) else shown_difference(difference)
