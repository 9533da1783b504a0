"""Trains a small language model twice, with AdamW on everything and with Ember on the token tables, and compares.

Same initial parameters, same batches, same AdamW for the body. Only the optimizer of the embedding and the head differs, each
with the learning rate that was best for it in a sweep of the default model.
The text is the standard library of the running Python unless `--data` names another; nothing is downloaded.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from lm.checkpoints import Checkpoints
from lm.command_line import read_command_line
from lm.config import FUSED, ROW_SPARSE, CheckpointConfig, Config
from lm.devices import check_same_in_all_processes, is_main_process, make_mesh, report, start_processes
from lm.geometry_log import GeometryLog, draw
from lm.optimizers import make_body_optimizer, make_optimizer, state_bytes, table_schedule, with_label
from lm.program import run
from lm.regularizing import Subject
from lm.report import save_picture, save_results, summary_table
from lm.table_options import rounding_seed
from lm.text import read_documents
from lm.tokens import Corpus, check_length, fingerprint, load_corpus
from lm.training import TrainingResult, init_params, next_token_loss, train


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    hint = "; --resume goes on from the newest checkpoint, if there is one"
    return run("pretrain.py", compare, read_command_line(__doc__, arguments), hint)


def compare(config: Config) -> None:
    """Trains once with each optimizer, prints the table and writes JSON and picture."""
    start_processes(config.devices)
    model, training = config.model, config.training
    check_same_in_all_processes(config.shared)
    _make_folders(config)
    mesh = make_mesh(config.devices.mesh, training.batch_size)
    corpus = load_corpus(read_documents(config.text.data), model.vocabulary_size, config.text.cache_dir)
    check_length(corpus, training.sequence_length)
    decisive = config.decisive | {"text": fingerprint(corpus)}
    check_same_in_all_processes({"text": decisive["text"]})
    params = jax.eval_shape(lambda: init_params(model, training.seed))
    report(_announcement(corpus, params, config, mesh.size))
    results, logs = {}, {}
    counts_V = np.bincount(corpus.training, minlength=model.rows).astype(np.float32)
    gradients = jax.jit(jax.grad(next_token_loss(model)))
    for name in config.runs.names:
        if config.geometry.geometry:
            logs[name] = GeometryLog(config.geometry.geometry_every, gradients, counts_V)
        with jax.set_mesh(mesh), _open_checkpoints(config.checkpoints, name, decisive) as checkpoints:
            options = {"mesh": mesh, "checkpoints": checkpoints, "geometry": logs.get(name)}
            options |= {"row_sparse_input": name == ROW_SPARSE, "fused_head": name == FUSED}
            subject = Subject(counts_V, "embed/embedding", table_schedule(name, config.rates, training.steps))
            options |= {"regularizers": config.regularizers.regularizer, "subject": subject}
            results[name] = train(name, model, training, _optimizer(name, config), corpus, **options)
    last = config.checkpoints.last_step(training.steps)
    if last < training.steps:
        report(f"\nstopped after step {last}; the same command with --resume and without --stop-after goes on")
    elif is_main_process():
        _write(results, params, config)
        if logs:
            draw(config.output.folder / "geometry.png", {name: results[name].geometry for name in logs}, logs, counts_V)
            report(f"{_geometry_cost(logs)}; wrote {config.output.folder / 'geometry.png'}")


def _optimizer(name: str, config: Config) -> Any:
    seed = rounding_seed(config.model.table_dtype, config.runs.rounding, config.training.seed)
    return make_optimizer(name, config.rates, config.training.steps, seed)


def _make_folders(config: Config) -> None:
    """Before the work whose results would be lost."""
    checkpoint_dir = config.checkpoints.checkpoint_dir
    of_runs = [checkpoint_dir / name for name in config.runs.names] if checkpoint_dir else []
    for needed in (config.output.folder, config.text.cache_dir, *of_runs):
        needed.mkdir(parents=True, exist_ok=True)


def _announcement(corpus: Corpus, params: Any, config: Config, devices: int) -> str:
    tables = _count(with_label(params, "ember"))
    tokens = config.training.batch_size * config.training.sequence_length
    return (
        f"{len(corpus.training):,} training tokens, {_count(params):,} parameters ({tables:,} in token tables), "
        f"{config.training.steps} steps of {tokens:,} tokens on {devices} x {jax.devices()[0].device_kind}"
    )


def _open_checkpoints(config: CheckpointConfig, name: str, decisive: dict[str, Any]) -> AbstractContextManager:
    return nullcontext() if config.checkpoint_dir is None else Checkpoints(config, config.checkpoint_dir / name, decisive)


def _write(results: dict[str, TrainingResult], params: Any, config: Config) -> None:
    folder, model = config.output.folder, config.model
    summaries = {name: _summary(name, result, params, config) for name, result in results.items()}
    save_results(folder / "results.json", config.settings, summaries)
    title = f"{model.width} features, {model.vocabulary_size} tokens, {model.layers} layers"
    save_picture(folder / "loss.png", results, title)
    report(f"\n{summary_table(summaries)}")
    for name in (ROW_SPARSE, FUSED):
        if name in results:
            report(f"\n{_verdict(name.removeprefix('ember, '), results['ember'], results[name])}")
    report(f"\nwrote {folder / 'results.json'} and {folder / 'loss.png'}")


def _verdict(what: str, dense: TrainingResult, other: TrainingResult) -> str:
    difference = max(abs(a - b) for a, b in zip(dense.training_losses, other.training_losses, strict=True))
    final = abs(dense.validation_losses[-1] - other.validation_losses[-1])
    return (
        f"{what} against dense Ember: training losses differ by at most {difference:.1e}, the last validation loss by {final:.1e}"
    )


def _geometry_cost(logs: dict[str, GeometryLog]) -> str:
    return ", ".join(f"{name}: {log.seconds:.1f} s for its geometry" for name, log in logs.items())


def _summary(name: str, result: TrainingResult, params: Any, config: Config) -> dict[str, Any]:
    total = state_bytes(_optimizer(name, config), params)
    of_body = state_bytes(make_body_optimizer(config.rates, config.training.steps), with_label(params, "body"))
    return {
        "validation_loss": result.validation_losses[-1],
        # The rest of the state is the body's, and that is the same transformation in every run.
        "table_state_bytes": total - of_body,
        "state_bytes": total,
        "median_seconds_per_step": result.median_seconds_per_step,
        "validation": dict(zip(result.validation_steps, result.validation_losses, strict=True)),
        "training_losses": result.training_losses,
    } | ({"geometry": result.geometry} if result.geometry else {})


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    sys.exit(main())
