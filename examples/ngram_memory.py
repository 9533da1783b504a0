"""Trains the main job's model without and with a hashed memory of bigrams and trigrams that is added to its input, and compares.

The memory has millions of rows and is in a file, or in host memory. The device has only the rows of the batch
(`ember_optax.large_tables`). Same initial parameters, same batches; Ember trains the token tables, AdamW the body. The text is
the standard library of the running Python unless `--data` names another; nothing is downloaded. A run whose memory is in a file
can be killed: the same command with `--resume` goes on from the last save.
"""

import functools
import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm.command_line import add_model_options, add_output_options, add_run_options, add_text_options
from lm.comparison import settings_of
from lm.config import ModelConfig, OutputConfig, Part, RatesConfig, TextConfig, TrainingConfig
from lm.errors import UsageError
from lm.memory_optimizers import MEMORY_OPTIMIZERS
from lm.ngram_memory import make_program, make_table, ngram_ids, train
from lm.option_types import learning_rate, positive_int, whole_number
from lm.program import run
from lm.report import save_picture, save_results, text_table
from lm.text import read_documents
from lm.tokens import check_length, fingerprint, load_corpus, validation_batches
from lm.training import VALIDATION_BATCHES, TrainingResult


@dataclass(frozen=True)
class MemoryConfig(Part):
    """The sizes that are compared, 0 for no memory, what trains the memory at which peak rate, and where it is."""

    memory_rows: list[int]
    memory_optimizer: str
    memory_learning_rate: float
    memory_in: str
    save_every: int
    resume: bool

    def __post_init__(self):
        if self.resume and self.memory_in != "file":
            raise UsageError("--resume needs --memory-in file: a memory in host memory ends with its process")


@dataclass(frozen=True)
class Config:
    """What the program is told."""

    text: TextConfig
    model: ModelConfig
    training: TrainingConfig
    rates: RatesConfig
    memory: MemoryConfig
    output: OutputConfig


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    return run("ngram_memory.py", compare, read_command_line(arguments), "; --resume goes on from the last save")


def read_command_line(arguments: list[str] | None) -> Config:
    """The configuration that the arguments ask for."""
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    add_text_options(parser.add_argument_group("text"))
    add_model_options(parser.add_argument_group("model"))
    add_run_options(parser.add_argument_group("training").add_argument)
    add = parser.add_argument_group("memory").add_argument
    add("--memory-rows", type=whole_number, nargs="+", default=[0, 1 << 22], help="rows of each run's memory; 0 is a run without")
    add("--memory-optimizer", choices=list(MEMORY_OPTIMIZERS), default="ember", help="what trains the rows")
    add("--memory-learning-rate", type=learning_rate, default=5e-3, help="peak rate of the rows")
    add("--memory-in", choices=["file", "host"], default="file", help="a file in the folder of results, or host memory")
    add("--save-every", type=positive_int, default=100, help="steps between saves of a memory in a file, with its model")
    add("--resume", action="store_true", help="go on from the last saves")
    add_output_options(parser.add_argument_group("output").add_argument, "ngram_memory")
    parser.set_defaults(table_dtype="float32", adamw_table_learning_rate=0.0)  # the second is of no run here
    options = parser.parse_args(arguments)
    try:
        return Config(
            TextConfig.from_options(options),
            ModelConfig.from_options(options),
            TrainingConfig.from_options(options),
            RatesConfig.from_options(options),
            MemoryConfig.from_options(options),
            OutputConfig.from_options(options),
        )
    except UsageError as error:
        parser.error(str(error))


def compare(config: Config) -> None:
    """Trains with each size of the memory, prints the table and writes JSON and picture."""
    model, training, memory, folder = config.model, config.training, config.memory, config.output.folder
    corpus = load_corpus(read_documents(config.text.data), model.vocabulary_size, config.text.cache_dir)
    check_length(corpus, training.sequence_length)
    settings = settings_of(model, training, config.rates, memory) | {"text": fingerprint(corpus)}
    folder.mkdir(parents=True, exist_ok=True)
    in_file = memory.memory_in == "file"
    if in_file:
        check_settings(folder / "settings.json", settings, resume=memory.resume)
    held_out = validation_batches(corpus.validation, training.batch_size, training.sequence_length, VALIDATION_BATCHES)
    program = make_program(model, config.rates, training.steps, memory.memory_optimizer)
    results = {}
    print(
        f"{len(corpus.training):,} training tokens, {training.steps} steps of {training.batch_size * training.sequence_length:,}"
    )
    for rows in memory.memory_rows:
        path = folder / f"memory_{rows}_rows" if in_file else None
        with make_table(rows, model, memory.memory_optimizer, path) as table:
            if table.count:
                print(f"{run_name(rows)}: going on from step {table.count}, {table.steps_lost} steps were lost")
            results[run_name(rows)] = train(
                run_name(rows),
                program,
                training,
                corpus,
                held_out,
                table,
                functools.partial(ids_of_batch, rows=rows),
                memory.memory_learning_rate,
                memory.save_every if in_file else None,
            )
    write(results, settings, config)


def ids_of_batch(batch_BxT: np.ndarray, rows: int) -> np.ndarray:
    """The rows of the memory for the inputs of a batch."""
    return ngram_ids(batch_BxT[:, :-1], rows)


def run_name(rows: int) -> str:
    """How the results call the run."""
    return f"{rows:,} rows" if rows else "no memory"


def check_settings(path: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """Keeps the settings beside the memories. Those that may change when a run goes on are left out.

    Raises:
      UsageError: there are memories already and the run is not to go on with them, or they were made with other settings.
    """
    decisive = {name: value for name, value in settings.items() if name not in ("memory_rows", "save_every", "resume")}
    if not path.exists():
        path.write_text(json.dumps(decisive, indent=1) + "\n", encoding="utf-8")
        return
    if not resume:
        raise UsageError(f"--name: {path.parent} has results already; go on with --resume or name another folder")
    saved = json.loads(path.read_text(encoding="utf-8"))
    for name, value in decisive.items():
        if saved.get(name) != value:
            raise UsageError(
                f"--resume: the memory in {path.parent} was made with {name} = {saved.get(name)}, this run has {value}"
            )


def write(results: dict[str, TrainingResult], settings: dict[str, Any], config: Config) -> None:
    """The table, results.json and loss.png."""
    folder, width, optimizer = config.output.folder, config.model.width, MEMORY_OPTIMIZERS[config.memory.memory_optimizer]
    summaries, lines = {}, []
    for rows, (name, result) in zip(config.memory.memory_rows, results.items(), strict=True):
        loss, seconds = result.validation_losses[-1], result.median_seconds_per_step
        in_rows, in_state = 4 * rows * width, optimizer.state_bytes(rows, width)
        summaries[name] = {
            "validation_loss": loss,
            "memory_bytes": in_rows,
            "memory_state_bytes": in_state,
            "median_seconds_per_step": seconds,
            "validation": dict(zip(result.validation_steps, result.validation_losses, strict=True)),
            "training_losses": result.training_losses,
        }
        milliseconds = "" if seconds is None else f"{1e3 * seconds:,.1f}"
        lines.append((name, f"{loss:.4f}", milliseconds, f"{in_rows:,}", f"{in_state:,}"))
    save_results(folder / "results.json", settings, summaries)
    save_picture(folder / "loss.png", results, f"a memory of bigrams and trigrams, trained by {optimizer.title}")
    headers = ("memory", "validation loss", "time of a step (ms)", "rows (bytes)", "their state (bytes)")
    print(f"\n{text_table(lines, headers)}\n\nwrote {folder / 'results.json'} and {folder / 'loss.png'}")


if __name__ == "__main__":
    sys.exit(main())
