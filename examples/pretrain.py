"""Trains a small language model twice, with AdamW on everything and with Ember on the token tables, and compares.

Same initial parameters, same batches, same AdamW for the body. Only the optimizer of the embedding and the head differs, each
with the learning rate that was best for it in a sweep of the default model (benchmarks/learning_rates.py).
The text is the standard library of the running Python unless `--data` names another; nothing is downloaded.
"""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
import optax
from lm.checkpoints import Checkpoints
from lm.devices import check_same_in_all_processes, is_main_process, make_mesh, mesh_sizes, report, start_processes
from lm.errors import UsageError
from lm.model import ModelConfig
from lm.report import save_picture, save_results, summary_table
from lm.text import read_documents
from lm.tokens import check_length, default_cache_dir, fingerprint, load_corpus
from lm.training import TrainingConfig, TrainingResult, init_params, state_bytes, train

from ember_optax import ember, token_table_labels

# The run with row-sparse steps.
_ROW_SPARSE = "ember, row-sparse"
# What decides a run's trajectory. A checkpoint goes on, and processes work together, only where all of these are equal.
_DECISIVE = (
    *("vocabulary_size", "width", "layers", "heads", "tied", "steps", "batch_size", "sequence_length", "seed"),
    *("learning_rate", "ember_learning_rate", "adamw_table_learning_rate", "validate_every"),
)
# What processes must do together, though a run may change it when it is resumed.
_SHARED = ("mesh", "optimizers", "checkpoint_dir", "checkpoint_every", "resume", "stop_after")


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = parse_options(arguments)
    try:
        start_processes(options)
        compare(options)
    except (UsageError, OSError) as error:
        print(f"pretrain.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pretrain.py: interrupted; --resume goes on from the newest checkpoint, if there is one", file=sys.stderr)
        return 130
    return 0


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    text = parser.add_argument_group("text")
    text.add_argument(
        "--data", type=Path, help="a UTF-8 text file, or a folder of them; the default is Python's standard library"
    )
    text.add_argument(
        "--vocabulary-size", type=_positive_int, default=8192, help="tokens of the BPE vocabulary, trained on the text"
    )
    text.add_argument("--cache-dir", type=Path, default=default_cache_dir(), help="where tokenizers and encoded texts are kept")
    model = parser.add_argument_group("model")
    model.add_argument("--width", type=_positive_int, default=128, help="features of each token")
    model.add_argument("--layers", type=_positive_int, default=4, help="transformer blocks")
    model.add_argument("--heads", type=_positive_int, default=4, help="attention heads; width / heads must be even")
    model.add_argument("--tied", action="store_true", help="share the embedding with the head (untied by default)")
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=_positive_int, default=300, help="optimizer steps of each run")
    training.add_argument("--batch-size", type=_positive_int, default=8, help="sequences in a batch")
    training.add_argument("--sequence-length", type=_positive_int, default=128, help="tokens in a sequence")
    training.add_argument("--learning-rate", type=_rate, default=1e-3, help="peak rate of AdamW, for the body in both runs")
    training.add_argument("--ember-learning-rate", type=_rate, default=1e-2, help="peak rate of Ember for the tables")
    training.add_argument("--adamw-table-learning-rate", type=_rate, default=1e-2, help="peak rate of AdamW for the tables")
    training.add_argument("--seed", type=_seed, default=0, help="seed of parameters and batches")
    training.add_argument(
        "--optimizers", nargs="+", choices=("adamw", "ember"), default=["adamw", "ember"], help="which runs to make"
    )
    training.add_argument(
        "--row-sparse",
        action="store_true",
        help="also train with Ember on the rows of each batch alone, for the input table, and compare the two",
    )
    devices = parser.add_argument_group("devices and processes")
    devices.add_argument(
        "--mesh",
        type=mesh_sizes,
        metavar="data=2,fsdp=4",
        help="devices for batch (data), batch and parameters (fsdp), layers (tp)",
    )
    devices.add_argument("--cpu-devices", type=_positive_int, help="simulate this many devices on the CPU, in each process")
    devices.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0, where several processes train together"
    )
    devices.add_argument("--num-processes", type=_positive_int, help="how many processes there are")
    devices.add_argument("--process-id", type=_whole_number, help="which of them this is, from 0")
    devices.add_argument(
        "--distributed", action="store_true", help="let JAX find the other processes: on TPU pods, Slurm, Open MPI, Kubernetes"
    )
    checkpoints = parser.add_argument_group("checkpoints")
    checkpoints.add_argument(
        "--checkpoint-dir", type=Path, help="keep the newest two checkpoints of each run here; all processes"
    )
    checkpoints.add_argument("--checkpoint-every", type=_positive_int, default=100, help="steps between checkpoints")
    checkpoints.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, on any mesh")
    checkpoints.add_argument("--stop-after", type=_positive_int, help="save a checkpoint after this step, and stop")
    output = parser.add_argument_group("output")
    output.add_argument("--name", default="pretrain", help="results go to OUTPUT_DIR/NAME")
    output.add_argument("--output-dir", type=Path, default=Path("runs"), help="folder for results")
    output.add_argument("--validate-every", type=_positive_int, default=50, help="steps between validations")
    options = parser.parse_args(arguments)
    if options.width % (2 * options.heads):
        parser.error(f"--width {options.width} must be a multiple of 2 * --heads ({2 * options.heads}), for rotary positions")
    if options.row_sparse:
        if options.tied:
            parser.error("--row-sparse needs an input table of its own: a tied one has a gradient in every row; leave out --tied")
        options.optimizers = [*dict.fromkeys([*options.optimizers, "ember"]), _ROW_SPARSE]
    for argument in ("resume", "stop_after"):
        if getattr(options, argument) and options.checkpoint_dir is None:
            parser.error(f"--{argument.replace('_', '-')} needs --checkpoint-dir")
    return options


def compare(options: argparse.Namespace) -> None:
    """Trains once with each optimizer, prints the table and writes JSON and picture."""
    folder = options.output_dir / options.name
    check_same_in_all_processes({key: getattr(options, key) for key in (*_DECISIVE, *_SHARED)})
    of_runs = [options.checkpoint_dir / name for name in options.optimizers] if options.checkpoint_dir else []
    for needed in (folder, options.cache_dir, *of_runs):  # before the work whose results would be lost
        needed.mkdir(parents=True, exist_ok=True)
    mesh = make_mesh(options.mesh, options.batch_size)
    corpus = load_corpus(read_documents(options.data), options.vocabulary_size, options.cache_dir)
    check_length(corpus, options.sequence_length)
    decisive = {key: getattr(options, key) for key in _DECISIVE} | {"text": fingerprint(corpus)}
    check_same_in_all_processes({"text": decisive["text"]})
    model = ModelConfig(options.vocabulary_size, options.width, options.layers, options.heads, options.tied)
    config = TrainingConfig(
        options.steps,
        options.batch_size,
        options.sequence_length,
        options.seed,
        options.validate_every,
        options.checkpoint_every,
        options.stop_after,
    )
    params = jax.eval_shape(lambda: init_params(model, options.seed))
    tokens, tables = options.batch_size * options.sequence_length, _count(_labelled(params, "ember"))
    report(
        f"{len(corpus.training):,} training tokens, {_count(params):,} parameters ({tables:,} in token tables), "
        f"{options.steps} steps of {tokens:,} tokens on {mesh.size} x {jax.devices()[0].device_kind}"
    )
    results = {}
    for name in options.optimizers:
        with jax.set_mesh(mesh), _open_checkpoints(name, decisive, options) as checkpoints:
            tx = make_optimizer(name, options)
            sparse = name == _ROW_SPARSE
            results[name] = train(name, model, config, tx, corpus, mesh=mesh, checkpoints=checkpoints, row_sparse_input=sparse)
    if options.stop_after is not None and options.stop_after < options.steps:
        report(f"\nstopped after step {options.stop_after}; the same command with --resume and without --stop-after goes on")
    elif is_main_process():
        _write(results, params, options, folder)


def _write(results: dict[str, TrainingResult], params: Any, options: argparse.Namespace, folder: Path) -> None:
    body = _body_optimizer(options)
    summaries = {name: _summary(result, make_optimizer(name, options), body, params) for name, result in results.items()}
    save_results(folder / "results.json", _settings(options), summaries)
    title = f"{options.width} features, {options.vocabulary_size} tokens, {options.layers} layers"
    save_picture(folder / "loss.png", results, title)
    report(f"\n{summary_table(summaries)}")
    if options.row_sparse:
        report(f"\n{_row_sparse_verdict(results['ember'], results[_ROW_SPARSE])}")
    report(f"\nwrote {folder / 'results.json'} and {folder / 'loss.png'}")


def _row_sparse_verdict(dense: TrainingResult, sparse: TrainingResult) -> str:
    difference = max(abs(a - b) for a, b in zip(dense.training_losses, sparse.training_losses, strict=True))
    final = abs(dense.validation_losses[-1] - sparse.validation_losses[-1])
    faster = dense.milliseconds_per_step / sparse.milliseconds_per_step
    return (
        f"row-sparse against dense Ember: training losses differ by at most {difference:.1e}, the last validation loss by "
        f"{final:.1e}; the step was {faster:.2f} times as fast"
    )


def _open_checkpoints(name: str, decisive: dict[str, Any], options: argparse.Namespace) -> AbstractContextManager:
    if options.checkpoint_dir is None:
        return nullcontext()
    return Checkpoints(options.checkpoint_dir / name, decisive, options.resume)


def make_optimizer(name: str, options: argparse.Namespace) -> optax.GradientTransformation:
    """`adamw` trains the tables with AdamW, `ember` with Ember; the body has the same AdamW in both."""
    body = _body_optimizer(options)
    if name in ("ember", _ROW_SPARSE):
        return ember(_schedule(options.ember_learning_rate, options), body)
    tables = optax.adamw(_schedule(options.adamw_table_learning_rate, options))
    return optax.partition({"ember": tables, "body": body}, token_table_labels)


def _body_optimizer(options: argparse.Namespace) -> optax.GradientTransformation:
    return optax.adamw(_schedule(options.learning_rate, options))


def _schedule(peak: float, options: argparse.Namespace) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then a cosine to a tenth of the peak."""
    steps = max(2, options.steps)  # a warm-up of one step and at least one after it
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(1, steps // 10), steps, 0.1 * peak)


def _labelled(params: Any, wanted: str) -> list[Any]:
    labels = jax.tree.leaves(token_table_labels(params))
    return [leaf for leaf, label in zip(jax.tree.leaves(params), labels, strict=True) if label == wanted]


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _summary(result: TrainingResult, tx, body, params: Any) -> dict[str, Any]:
    total = state_bytes(tx, params)
    return {
        "validation_loss": result.validation_losses[-1],
        # The rest of the state is the body's, and that is the same transformation in every run.
        "table_state_bytes": total - state_bytes(body, _labelled(params, "body")),
        "state_bytes": total,
        "ms_per_step": result.milliseconds_per_step,
        "validation": dict(zip(result.validation_steps, result.validation_losses, strict=True)),
        "training_losses": result.training_losses,
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    return settings | {"data": "standard library" if options.data is None else options.data.name, "jax": jax.__version__}


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^32 - 1")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite, non-negative number")
    return value


if __name__ == "__main__":
    sys.exit(main())
