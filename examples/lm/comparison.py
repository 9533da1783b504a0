"""Options and rules that the programs share which compare AdamW and Ember on the tables of a model that was trained before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from .config import OutputConfig, Part, RatesConfig, RunsConfig
from .optimizers import make_body_optimizer, make_optimizer, state_bytes, with_label
from .option_types import learning_rate


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
