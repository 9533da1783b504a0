"""The pictures of the page."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from benchmarks.evidence.comparison import Result
from benchmarks.evidence.methods import METHODS, read_name, title
from benchmarks.evidence.studies import BASELINE, OURS, TASKS, Study
from benchmarks.evidence.tables import Results, of_setting
from benchmarks.harness.report import save_picture


def draw(results: Results, study: Study, folder: Path) -> list[Path]:
    """All of them, as evidence_NAME.png; those without a run to show are left out."""
    drawers = {"pareto": _pareto, "rates": _rates, "scaling": _scaling, "rewards": _rewards}
    drawn = [(name, figure) for name, drawer in drawers.items() if (figure := drawer(results, study))]
    for name, figure in drawn:
        save_picture(folder / f"evidence_{name}.png", figure, dpi=80)
    return [folder / f"evidence_{name}.png" for name, _ in drawn]


def _pareto(results: Results, study: Study):
    """Quality against the bytes of the tables' state."""
    panels = [(task, [r for r in _trained(results, task, setting) if r.losses]) for task, setting in study.main.items()]
    figure, axes = _panels([panel for panel in panels if panel[1]])
    for axis, (task, found) in axes:
        for result in found:
            if result.losses and math.isfinite(result.losses.mean):
                deviation = 0 if math.isnan(result.losses.deviation) else result.losses.deviation
                axis.errorbar(result.table_state_bytes + 1, result.losses.mean, deviation, **_style(result), linestyle="")
        axis.set(
            xscale="log", xlabel="state of the tables (bytes)", ylabel=TASKS[task].loss, title=_heading(task, study.main[task])
        )
    return _with_legend(figure)


def _rates(results: Results, study: Study):
    """Loss against the tables' rate, one seed; as high as the two that are compared and the best of the others reach."""
    panels = [(task, _trained(results, task, setting)) for task, setting in study.main.items()]
    figure, axes = _panels([panel for panel in panels if panel[1]])
    for axis, (task, found) in axes:
        shown = [result.losses.mean for result in found if result.losses]
        for result in found:
            losses = [record.value for record in result.sweep.values()]
            of_pair = result.cell.method in (BASELINE, OURS)
            shown += losses if of_pair else []
            axis.plot(list(result.sweep), losses, **_style(result), markersize=4, linewidth=2.5 if of_pair else 1)
        shown = [loss for loss in shown if math.isfinite(loss)]
        if shown:
            margin = 0.05 * (max(shown) - min(shown)) + 1e-3
            axis.set_ylim(min(shown) - margin, max(shown) + margin)
        axis.set(xscale="log", xlabel="peak rate of the tables", ylabel=TASKS[task].loss, title=_heading(task, study.main[task]))
        axis.xaxis.set_minor_formatter(NullFormatter())
    return _with_legend(figure)


def _scaling(results: Results, study: Study):
    """Ember minus AdamW over the size of the tables and of the batch."""
    panels = [("numbers in tables", [("pretraining", setting) for setting in study.sizes])]
    panels += [(f"{TASKS[task].title}: batch", [(task, setting) for setting in names]) for task, names in study.batches.items()]
    found = [(label, [r for key in keys if (r := results.get((*key, OURS))) and r.difference]) for label, keys in panels]
    figure, axes = _panels([panel for panel in found if panel[1]])
    for axis, (label, of_panel) in axes:
        for place, result in enumerate(of_panel):
            difference = result.difference
            if difference and math.isfinite(difference.half):
                axis.errorbar(place, difference.mean, difference.half, **_style(result), linestyle="", capsize=4)
        axis.axhline(0, color="gray", linewidth=1)
        axis.set_xticks(range(len(of_panel)), [result.cell.setting for result in of_panel], fontsize=7, rotation=20)
        axis.set(ylabel="Ember - AdamW, 95 % interval", title=label)
    return figure


def _rewards(results: Results, study: Study):
    """Rewards over training, mean and standard deviation over fresh seeds."""
    settings = study.batches["reinforcement"]
    panels = [(s, [r for m in (BASELINE, OURS) if (r := results.get(("reinforcement", s, m))) and r.fresh]) for s in settings]
    figure, axes = _panels([panel for panel in panels if panel[1]])
    for axis, (setting, found) in axes:
        for result in found:
            curves = np.asarray([record.details["rewards"] for record in result.fresh.values()], float)
            mean, deviation, steps = curves.mean(0), curves.std(0), np.linspace(0, 1, curves.shape[1])
            color = _style(result)["color"]
            axis.plot(steps, mean, color=color, label=f"{title(result.cell.method)}, n = {len(curves)}")
            axis.fill_between(steps, mean - deviation, mean + deviation, alpha=0.2, color=color)
        axis.set(xlabel="share of the run", ylabel="reward", title=setting)
        axis.legend(fontsize=7)
    return figure


def _trained(results: Results, task: str, setting: str) -> list[Result]:
    """Those that train the tables: beside a table that nothing trains they would all look alike."""
    return [result for result in of_setting(results, task, setting) if result.cell.method != "frozen"]


def _panels(panels: list):
    """A figure with one axis for each, None without any, and the pairs of axis and panel."""
    if not panels:
        return None, []
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.4), layout="constrained", squeeze=False)
    return figure, _pairs(axes[0], panels)


def _pairs(axes: Iterable[Axes], panels: list):
    for axis, panel in zip(axes, panels, strict=True):
        axis.grid(alpha=0.3)
        yield axis, panel


def _style(result: Result) -> dict[str, Any]:
    """How a method looks in every picture: the two that are compared in strong colours."""
    method, numbers = read_name(result.cell.method)
    colors = ("tab:blue", "tab:orange", *plt.get_cmap("tab20b")(range(20)))
    place = [BASELINE, OURS, *(name for name in METHODS if name not in (BASELINE, OURS))].index(method)
    marker = "oDsv^<>PX*"[(place + 2 * len(numbers)) % 10]
    return {"color": colors[place], "marker": marker, "label": title(result.cell.method)}


def _with_legend(figure):
    """One legend for all panels, below them."""
    if figure:
        found = dict(pair for axis in figure.axes for pair in zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _heading(task: str, setting: str) -> str:
    return f"{TASKS[task].title}, {setting}"
