"""The command line of `pretrain.py`, read into its configuration."""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path

from .config import (
    CheckpointConfig,
    Config,
    DevicesConfig,
    GeometryConfig,
    ModelConfig,
    OutputConfig,
    RatesConfig,
    RegularizerConfig,
    RunsConfig,
    TextConfig,
    TrainingConfig,
)
from .devices import mesh_sizes
from .errors import UsageError
from .option_types import learning_rate, positive_int, seed, whole_number
from .regularizing import add_regularizer_option
from .table_options import add_table_options
from .tokens import default_cache_dir


def read_command_line(description: str | None, arguments: list[str] | None) -> Config:
    """The configuration that the arguments ask for, None for those of the process; ends the program where they are wrong."""
    parser = ArgumentParser(description=description, formatter_class=ArgumentDefaultsHelpFormatter)
    add_text_options(parser.add_argument_group("text"))
    add_model_options(parser.add_argument_group("model"))
    _add_training(parser.add_argument_group("training"))
    _add_devices(parser.add_argument_group("devices and processes"))
    _add_checkpoints(parser.add_argument_group("checkpoints"))
    _add_output(parser.add_argument_group("output"))
    options = parser.parse_args(arguments)
    try:
        return _config(options)
    except UsageError as error:
        parser.error(str(error))


def add_text_options(group) -> None:
    """The options that all programs have for their text."""
    add = group.add_argument
    add("--data", type=Path, help="a UTF-8 text file, or a folder of them; the default is Python's standard library")
    add("--vocabulary-size", type=positive_int, default=8192, help="tokens of the BPE vocabulary, trained on the text")
    add("--cache-dir", type=Path, default=default_cache_dir(), help="where tokenizers and encoded texts are kept")


def _config(options: Namespace) -> Config:
    return Config(
        text=TextConfig.from_options(options),
        model=ModelConfig.from_options(options),
        training=TrainingConfig.from_options(options),
        rates=RatesConfig.from_options(options),
        runs=RunsConfig.from_options(options),
        devices=DevicesConfig.from_options(options),
        checkpoints=CheckpointConfig.from_options(options),
        output=OutputConfig.from_options(options),
        geometry=GeometryConfig.from_options(options),
        regularizers=RegularizerConfig.from_options(options),
    )


def add_model_options(group) -> None:
    """The sizes of the transformer."""
    add = group.add_argument
    add("--width", type=positive_int, default=128, help="features of each token")
    add("--layers", type=positive_int, default=4, help="transformer blocks")
    add("--heads", type=positive_int, default=4, help="attention heads; width / heads must be even")
    add("--tied", action="store_true", help="share the embedding with the head (untied by default)")


def _add_training(group) -> None:
    add = group.add_argument
    add_run_options(add)
    add("--adamw-table-learning-rate", type=learning_rate, default=1e-2, help="peak rate of AdamW for the tables")
    optimizers = ["adamw", "ember"]
    add("--optimizers", nargs="+", choices=optimizers, default=optimizers, help="which runs to make")
    row_sparse = "also train with Ember on the rows of each batch alone, for the input table, and compare the two"
    add("--row-sparse", action="store_true", help=row_sparse)
    add_regularizer_option(add)
    add_table_options(add)


def add_run_options(add) -> None:
    """How long a run is, its batches, seed and the peak rates of its model."""
    add("--steps", type=positive_int, default=300, help="optimizer steps of each run")
    add("--batch-size", type=positive_int, default=8, help="sequences in a batch")
    add("--sequence-length", type=positive_int, default=128, help="tokens in a sequence")
    add("--learning-rate", type=learning_rate, default=1e-3, help="peak rate of AdamW, for the body in both runs")
    add("--ember-learning-rate", type=learning_rate, default=1e-2, help="peak rate of Ember for the tables")
    add("--seed", type=seed, default=0, help="seed of parameters and batches")


def _add_devices(group) -> None:
    add = group.add_argument
    mesh = "devices for batch (data), batch and parameters (fsdp), layers (tp)"
    add("--mesh", type=mesh_sizes, metavar="data=2,fsdp=4", help=mesh)
    add("--cpu-devices", type=positive_int, help="simulate this many devices on the CPU, in each process")
    add("--coordinator", metavar="HOST:PORT", help="address of process 0, where several processes train together")
    add("--num-processes", type=positive_int, help="how many processes there are")
    add("--process-id", type=whole_number, help="which of them this is, from 0")
    heartbeat = "seconds without a sign of life after which the processes give one up and stop; JAX's default is 100"
    add("--heartbeat-timeout", type=positive_int, help=heartbeat)
    distributed = "let JAX find the other processes: on TPU pods, Slurm, Open MPI, Kubernetes"
    add("--distributed", action="store_true", help=distributed)


def _add_checkpoints(group) -> None:
    add = group.add_argument
    add("--checkpoint-dir", type=Path, help="keep the newest two checkpoints of each run here; all processes")
    add("--checkpoint-every", type=positive_int, default=100, help="steps between checkpoints")
    add("--resume", action="store_true", help="go on from the newest checkpoint, on any mesh")
    add("--stop-after", type=positive_int, help="save a checkpoint after this step, and stop")


def add_output_options(add, name: str) -> None:
    """Where the results go, and how often to validate."""
    add("--name", default=name, help="results go to OUTPUT_DIR/NAME")
    add("--output-dir", type=Path, default=Path("runs"), help="folder for results")
    add("--validate-every", type=positive_int, default=50, help="steps between validations")


def _add_output(group) -> None:
    add = group.add_argument
    add_output_options(add, "pretrain")
    add("--geometry", action="store_true", help="measure the tables on the way: into results.json, and as a picture")
    add("--geometry-every", type=positive_int, default=50, help="steps between these measurements")
