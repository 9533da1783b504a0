"""Options and rules that the programs share which compare AdamW and Ember on the tables of a model that was trained before."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from .config import OutputConfig, Part, RatesConfig, RunsConfig
from .optimizers import make_body_optimizer, make_optimizer, state_bytes, with_label
from .option_types import learning_rate
from .report import STATE_HEADERS, save_curves, save_results, state_cells, text_table
from .training import SMOOTHED_STEPS


@dataclass(frozen=True)
class Comparison(Part):
    """Which optimizers are compared, at which rates, and where the results go."""

    rates: RatesConfig
    runs: RunsConfig
    output: OutputConfig

    @classmethod
    def from_options(cls, options) -> "Comparison":
        """Takes the options of `add_comparison_options`."""
        return cls(
            RatesConfig.from_options(options),
            RunsConfig(options.optimizers, row_sparse=False),
            OutputConfig.from_options(options),
        )

    def folder(self) -> Path:
        """The folder of the results, made where it is missing."""
        self.output.folder.mkdir(parents=True, exist_ok=True)
        return self.output.folder


def add_comparison_options(parser: Any, name: str, body: float | None, ember: float | None, adamw: float | None) -> None:
    """The options, with the program's defaults of the peak rates; None where it finds them itself."""
    add = parser.add_argument_group("comparison").add_argument
    add("--learning-rate", type=learning_rate, default=body, help="peak rate of AdamW, for the body in both runs")
    add("--ember-learning-rate", type=learning_rate, default=ember, help="peak rate of Ember for the tables")
    add("--adamw-table-learning-rate", type=learning_rate, default=adamw, help="peak rate of AdamW for the tables")
    optimizers = ["adamw", "ember"]
    add("--optimizers", nargs="+", choices=optimizers, default=optimizers, help="which runs to make")
    add("--name", default=name, help="results go to OUTPUT_DIR/NAME")
    add("--output-dir", type=Path, default=Path("runs"), help="folder for results")


def optimizer_and_bytes(
    name: str, comparison: Comparison, steps: int, params: Any, rounding_seed: int | None = None
) -> tuple[Any, dict[str, int]]:
    """The transformation of a run, and the bytes of its state: of the tables (and their rounding), and in total."""
    tx = make_optimizer(name, comparison.rates, steps, rounding_seed)
    total = state_bytes(tx, params)
    body = state_bytes(make_body_optimizer(comparison.rates, steps), with_label(params, "body"))
    return tx, {"table_state_bytes": total - body, "state_bytes": total}


def parameter_counts(params: Any) -> str:
    """How many parameters there are, and how many in tables."""
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{total:,} parameters ({sum(leaf.size for leaf in with_label(params, 'ember')):,} in token tables)"


def followed(
    name: str,
    steps: Iterator[tuple[Any, float]],
    total: int,
    every: int,
    evaluate: Callable[[Any], float],
    params: Any,
    what: str,
) -> tuple[dict[str, Any], Any]:
    """What happens in `steps`, which yields `((params, opt_state), value)`, shown on the way.

    Args:
      name: the run's.
      steps: `total` of them.
      total: how many.
      every: steps between evaluations; the last step is evaluated, too.
      evaluate: `evaluate(params)`, on what is held out.
      params: at the start. They are evaluated before the first step, which may take their memory.
      what: the name of the values, in the plural.

    Returns:
      The values as `what`, the evaluations by step as `held_out`; and the parameters at the end.
    """
    values, held_out, learnt = [], {0: evaluate(params)}, params
    with tqdm(total=total, desc=name, unit="step", disable=None) as bar:
        for (learnt, _), value in steps:
            values.append(value)
            if len(values) % every == 0 or len(values) == total:
                held_out[len(values)] = evaluate(learnt)
            shown = {what: np.mean(values[-SMOOTHED_STEPS:]), "held out": list(held_out.values())[-1]}
            bar.set_postfix({key: f"{shown[key]:.3f}" for key in shown}, refresh=False)
            bar.update()
    return {what: values, "held_out": held_out}, learnt


def ends_table(runs: dict[str, dict[str, Any]], before: str, digits: int) -> str:
    """One line for each run: what was held out before the first step and after the last, and bytes of state."""
    rows = []
    for name, run in runs.items():
        first, *_, last = run["held_out"].values()
        rows.append((name, f"{first:.{digits}f}", f"{last:.{digits}f}", *state_cells(run)))
    return text_table(rows, ("optimizer", before, "after", *STATE_HEADERS))


def settings_of(*parts: Any) -> dict[str, Any]:
    """The options of these parts of a configuration, without paths, which differ between machines."""
    settings = {key: value for part in parts for key, value in dataclasses.asdict(part).items()}
    return {key: value for key, value in settings.items() if not isinstance(value, Path)}


class Picture(NamedTuple):
    """The name of the file, which values of the runs are drawn in it, and the words on it."""

    file: str
    what: str
    title: str
    quantity: str
    dotted: str


def save_comparison(folder: Path, settings: dict[str, Any], runs: dict[str, dict[str, Any]], picture: Picture) -> None:
    """Writes results.json and the picture, and says so."""
    save_results(folder / "results.json", settings, runs)
    curves = {name: run[picture.what] for name, run in runs.items()}
    dots = {name: (list(run["held_out"]), list(run["held_out"].values())) for name, run in runs.items()}
    save_curves(folder / picture.file, curves, dots, picture.title, picture.quantity, picture.dotted)
    print(f"\nwrote {folder / 'results.json'} and {folder / picture.file}")
