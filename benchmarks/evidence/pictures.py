"""The pictures of the page. Each line and point has its name beside it."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.evidence.methods import title
from benchmarks.evidence.pair_comparison import PairResults
from benchmarks.evidence.studies import BASELINE, MOMENTA, NO_MOMENTUM, OURS, TASKS, Study
from benchmarks.evidence.tables import Results
from benchmarks.evidence.verdicts import MARGIN, compared
from benchmarks.harness.report import name_points, save_picture

# Nats above the best: what is further away would press the rest together.
_FAR_WORSE, _FAR_WORSE_RATE = 0.3, 0.7
# More than seven lines cannot be told apart.
_LINES = (BASELINE, OURS, NO_MOMENTUM, "adafactor", "token_factor", "lion", "sm3")
_COMPARISONS = ((OURS, BASELINE), (OURS, NO_MOMENTUM))
_COLORS = {BASELINE: "tab:blue", OURS: "tab:orange", NO_MOMENTUM: "tab:green"}


class _Point(NamedTuple):
    x: float
    mean: float
    half: float


def draw(one: Results, two: PairResults, study: Study, folder: Path) -> list[Path]:
    """All of them, as evidence_NAME.png; those without a run to show are left out."""
    figures = {
        "lengths": _lengths(one, two, study),
        "pareto": _pareto(one, two, study),
        "rates": _rates(one, study),
        "scaling": _scaling(one, two, study),
        "rewards": _rewards(two, study),
    }
    drawn = {folder / f"evidence_{name}.png": figure for name, figure in figures.items() if figure}
    for path, figure in drawn.items():
        save_picture(path, figure, dpi=80)
    return list(drawn)


def _lengths(one: Results, two: PairResults, study: Study) -> Figure | None:
    """What a swap to Ember changes, over the number of steps."""
    steps = {setting: of["steps"] for setting in study.lengths if (of := _details(two, setting))}
    lines = [
        (pair, [_Point(steps[setting], *found) for setting in steps if (found := _difference(one, two, setting, pair))])
        for pair in _COMPARISONS
    ]
    if not any(points for _, points in lines):
        return None
    figure, (axis,) = _axes(1)
    _draw_differences(figure, axis, lines)
    axis.set(xscale="log", xlabel="steps", title=f"Pretraining, {study.lengths[0]}: two rates each")
    axis.set_xticks(list(steps.values()), [f"{number:,}" for number in steps.values()])
    axis.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _scaling(one: Results, two: PairResults, study: Study) -> Figure | None:
    """What a swap to Ember changes, over the size of the tables and of the batch."""
    panels = []
    for label, settings in (("size of the tables", study.sizes), ("batch", study.batches["pretraining"])):
        lines = [
            (pair, [_Point(x, *found) for x, name in enumerate(settings) if (found := _difference(one, two, name, pair))])
            for pair in _COMPARISONS
        ]
        if any(points for _, points in lines):
            panels.append((label, settings, lines))
    if not panels:
        return None
    figure, axes = _axes(len(panels))
    for axis, (label, settings, lines) in zip(axes, panels, strict=True):
        _draw_differences(figure, axis, lines)
        axis.set_xticks(range(len(settings)), settings, fontsize=7, rotation=20)
        axis.set(title=f"Pretraining: {label}")
    return figure


def _pareto(one: Results, two: PairResults, study: Study) -> Figure | None:
    """Loss against the bytes of the tables' state, each method at its own best rates: two where methods were run so, else one."""
    setting = study.main["pretraining"]
    ready = [
        {
            key[2]: (result.losses, result.table_state_bytes)
            for key, result in results.items()
            if key[:2] == ("pretraining", setting) and result.losses
        }
        for results in (two, one)
    ]
    found, rates = (ready[0], "two rates") if len(ready[0]) >= len(MOMENTA) else (ready[1], "one rate")
    if not found:
        return None
    highest = min(losses.mean for losses, _ in found.values()) + _FAR_WORSE
    figure, (axis,) = _axes(1, width=8)
    names = []
    for method, (losses, state) in found.items():
        if losses.mean < highest:
            color = _COLORS.get(method, "tab:gray")
            deviation = 0 if math.isnan(losses.deviation) else losses.deviation
            axis.errorbar(state + 1, losses.mean, deviation, fmt="o", color=color, markersize=5, elinewidth=1)
            names.append((state + 1, losses.mean, title(method), color))
    axis.set(
        xscale="log",
        xlabel="state of the tables (bytes)",
        ylabel=TASKS["pretraining"].loss,
        title=f"Pretraining, {setting}, {rates}",
    )
    name_points(figure, axis, names)
    return figure


def _rates(one: Results, study: Study) -> Figure | None:
    """Loss against the tables' rate, one rate for all tables, one seed."""
    setting = study.main["pretraining"]
    shown = [(method, result) for method in _LINES if (result := one.get(("pretraining", setting, method))) and result.sweep]
    if not shown:
        return None
    figure, (axis,) = _axes(1, width=8)
    for method, result in shown:
        color = _COLORS.get(method, "tab:gray")
        losses = [record.value for record in result.sweep.values()]
        axis.plot(list(result.sweep), losses, marker="o", markersize=3, color=color, linewidth=2 if method in _COLORS else 1)
    finite = [record.value for _, result in shown for record in result.sweep.values() if math.isfinite(record.value)]
    highest = min(max(finite), min(finite) + _FAR_WORSE_RATE)
    axis.set_ylim(min(finite) - 0.05, highest + 0.05)
    # A line has its name at its last point that is shown.
    ends = (max((r, record.value) for r, record in result.sweep.items() if record.value <= highest) for _, result in shown)
    names = [(*end, title(method), _COLORS.get(method, "tab:gray")) for end, (method, _) in zip(ends, shown, strict=True)]
    axis.set(
        xscale="log", xlabel="peak rate of the tables", ylabel=TASKS["pretraining"].loss, title=f"Pretraining, {setting}, seed 0"
    )
    axis.xaxis.set_minor_formatter(NullFormatter())
    name_points(figure, axis, names)
    return figure


def _rewards(two: PairResults, study: Study) -> Figure | None:
    """Rewards over training, mean and standard deviation over fresh seeds."""
    settings = dict.fromkeys(cell.setting for cell in study.pairs if cell.task == "reinforcement")
    panels = {
        setting: {
            method: [record.details["rewards"] for record in result.fresh.values()]
            for method in (BASELINE, OURS, NO_MOMENTUM)
            if (result := two.get(("reinforcement", setting, method))) and result.fresh
        }
        for setting in settings
    }
    panels = {setting: found for setting, found in panels.items() if found}
    if not panels:
        return None
    figure, axes = _axes(len(panels))
    for axis, (setting, found) in zip(axes, panels.items(), strict=True):
        names = []
        for method, rewards in found.items():
            curves = np.asarray(rewards, float)
            mean, deviation, share = curves.mean(0), curves.std(0), np.linspace(0, 1, curves.shape[1])
            axis.plot(share, mean, color=_COLORS[method])
            axis.fill_between(share, mean - deviation, mean + deviation, alpha=0.15, color=_COLORS[method])
            names.append((1, mean[-1], f"{title(method)}, n = {len(curves)}", _COLORS[method]))
        axis.set(xlabel="share of the run", ylabel="reward", title=setting)
        name_points(figure, axis, names)
    return figure


def _difference(one: Results, two: PairResults, setting: str, pair: tuple[str, str]) -> tuple[float, float] | None:
    """Mean and half of the interval."""
    found = compared(one, two, "pretraining", setting, *pair)
    return (found.difference.mean, found.difference.half) if found and math.isfinite(found.difference.half) else None


def _details(two: PairResults, setting: str):
    return next((next(iter(r.fresh.values())).details for key, r in two.items() if key[1] == setting and r.fresh), None)


def _draw_differences(figure: Figure, axis: Axes, lines: Sequence[tuple[tuple[str, str], list[_Point]]]) -> None:
    """Differences with their intervals, zero, and the margin that was fixed in advance."""
    names = []
    for shift, ((ours, theirs), points) in enumerate(lines):
        if points:
            color = _COLORS[theirs]
            x, mean, half = zip(*points, strict=True)
            axis.errorbar(x, mean, half, color=color, marker="o", markersize=4, capsize=4, linestyle=("-", "--")[shift])
            names.append((x[-1], mean[-1], f"{title(ours)} - {title(theirs)}", color))
    axis.axhline(0, color="gray", linewidth=1)
    axis.axhspan(-MARGIN, MARGIN, color="gray", alpha=0.15)
    axis.set(ylabel="nats for each token, 95 % interval")
    name_points(figure, axis, names)


def _axes(number: int, width: float = 6) -> tuple[Figure, Iterable[Axes]]:
    figure, axes = plt.subplots(1, number, figsize=(width * number, 4.4), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, axes[0]
