"""Reads a token table from a .gguf, .safetensors, .npy or .npz file and says what it looks like: norms, isotropy, ranks,
spectrum, and which tokens look under-trained, with their text where the file, or a tokenizer.json next to it, has it.
"""

import json
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, BooleanOptionalAction
from dataclasses import dataclass
from pathlib import Path

import jax
from lm.config import OutputConfig, Part
from lm.model_files import NamedTable, read_table
from lm.option_types import positive_int
from lm.program import run
from lm.table_inspection import (
    Inspection,
    InspectionConfig,
    caveat,
    draw,
    frequency_table,
    inspect,
    metrics_table,
    suspicious,
    suspicious_table,
    token_ids,
)


@dataclass(frozen=True)
class SourceConfig(Part):
    """Which table of which file."""

    file: Path
    table: str | None
    token_axis: int | None


@dataclass(frozen=True)
class Config:
    """What the program is told."""

    source: SourceConfig
    inspection: InspectionConfig
    output: OutputConfig


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    return run("inspect_tables.py", measure, read_command_line(arguments))


def measure(config: Config) -> None:
    """Reads the table, measures it and writes what was found."""
    config.output.folder.mkdir(parents=True, exist_ok=True)
    named = read_table(config.source.file, config.source.table, config.source.token_axis)
    wall, cpu = time.perf_counter(), time.process_time()
    found = inspect(named, config.inspection)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    _write(named, found, seconds, config)


def read_command_line(arguments: list[str] | None) -> Config:
    """The configuration that the arguments ask for."""
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a .gguf, .safetensors, .safetensors.index.json, .npy or .npz file")
    add("--table", metavar="NAME", help="which array of the file; the default is the one that looks like a token table")
    axis = "which axis of the array counts the tokens; the default is what its name tells, else 0"
    add("--token-axis", type=int, choices=(0, 1), help=axis)
    add("--token-counts", type=Path, metavar="FILE", help="a .npy file of how often each token occurs, for metrics by frequency")
    known = "tokens that are known never to occur, the measure of under-training; the default is the shortest thousandth"
    add("--known-unused", type=token_ids, metavar="3,7,100-110", help=known)
    untied = "the table is not also the head: tokens are suspicious by their norm alone; the default is what the file tells"
    add("--untied", action=BooleanOptionalAction, default=None, help=untied)
    add("--top", type=positive_int, default=20, help="how many suspicious tokens to show")
    add("--name", default="tables", help="results go to OUTPUT_DIR/NAME")
    add("--output-dir", type=Path, default=Path("runs"), help="folder for results")
    options = parser.parse_args(arguments)
    return Config(SourceConfig.from_options(options), InspectionConfig.from_options(options), OutputConfig.from_options(options))


def _write(named: NamedTable, found: Inspection, seconds: dict[str, float], config: Config) -> None:
    top, folder = config.inspection.top, config.output.folder
    tokens = suspicious(found, named.texts, top)
    rows, features = named.table.shape
    print(f"{config.source.file.name}: {named.name}, {rows:,} tokens x {features:,} features\n")
    for note in named.notes:
        print(f"note: {note}\n")
    print(metrics_table(found, named.texts))
    if found.by_frequency:
        print(f"\nby frequency, rarest first:\n\n{frequency_table(found)}")
    by = "the distance to tokens that are unused" if found.tied else "norm"
    print(f"\nthe {len(tokens)} tokens that look least trained, by {by}. {caveat(found.standing_out, len(tokens))}")
    print(f"\n{suspicious_table(tokens)}")
    results = {
        "file": config.source.file.name,
        "table": named.name,
        "shape": [rows, features],
        "notes": named.notes,
        "tied": found.tied,
        "known_unused": config.inspection.known_unused,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "jax": jax.__version__,
        "report": {name: float(f"{value:.6g}") for name, value in found.metrics.items()},
        "by_frequency": found.by_frequency,
        "standing_out": found.standing_out,
        "under_trained": tokens,
    }
    path = folder / "tables.json"
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    written = ", ".join(map(str, [path, *draw(found, named, top, folder)]))
    print(f"\nmeasured in {seconds['wall']:.1f} s ({seconds['cpu']:.1f} s of CPU), wrote {written}")


if __name__ == "__main__":
    sys.exit(main())
