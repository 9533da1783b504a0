"""What the ray of a row is worth to the loss, and the rank of gradients by batch size."""

from collections.abc import Callable
from functools import partial
from statistics import mean, stdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.evidence.statement_runs import (
    BATCH_SIZE,
    DISPLACEMENTS,
    MODEL,
    RATES,
    SEQUENCE_LENGTH,
    TABLES,
    Numbers,
    kind,
    matrices,
    token_axis,
)
from benchmarks.harness.report import markdown
from ember_optax import geometry
from examples.lm.config import ModelConfig
from examples.lm.optimizers import make_optimizer
from examples.lm.tokens import Corpus, random_batch, validation_batches
from examples.lm.training import init_params, next_token_loss

# Sequences of a batch; a sequence has 64 tokens here, so that the smallest batch is one.
RANK_BATCHES = (1, 4, 16, 64, 128)
RANK_LENGTH = 64
VALIDATION_BATCHES = 8
KINDS = ("embed", "lm_head", "hidden")
# What is done to the rows of one kind of matrix at the end of a run.
CHANGES = ("back to the start", "on its ray", "moved at random by as much")


def measure_effects(
    optimizer: str,
    seed: int,
    steps: int,
    corpus: Corpus,
    *,
    model: ModelConfig = MODEL,
    tick: Callable[[], object] = lambda: None,
) -> Numbers:
    """Trains one model; numbers by name, the same names for every optimizer."""
    tx, loss_fn = make_optimizer(optimizer, RATES, steps), next_token_loss(model)

    @jax.jit
    def step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = init_params(model, seed)
    first, opt_state = matrices(params), jax.jit(tx.init)(params)
    snapshots = {round(i * steps / DISPLACEMENTS) for i in range(1, DISPLACEMENTS + 1)}
    kept: list[dict[str, np.ndarray]] = []
    for i in range(1, steps + 1):
        batch = jnp.asarray(random_batch(corpus.training, BATCH_SIZE, SEQUENCE_LENGTH, (seed, i - 1)))
        params, opt_state, _ = step(params, opt_state, batch)
        if i in snapshots:
            kept.append(jax.device_get(matrices(params)))
        tick()
    return _losses(params, first, kept, corpus, loss_fn) | _ranks_by_batch(params, corpus, loss_fn, seed)


def _losses(params: Any, first: Any, kept: list[dict[str, np.ndarray]], corpus: Corpus, loss_fn: Callable[..., Any]) -> Numbers:
    """The validation loss of the trained model, and after each change of the rows of one kind of matrix."""
    batches = [jnp.asarray(b) for b in validation_batches(corpus.validation, BATCH_SIZE, SEQUENCE_LENGTH, VALIDATION_BATCHES)]
    loss = jax.jit(loss_fn)
    of = lambda tree: float(np.mean([float(loss(tree, batch)) for batch in batches]))  # noqa: E731
    found = {"loss": of(params)}
    for which in KINDS:
        paths = [path for path in first if kind(path) == which]
        changed = {path: _changed(path, np.asarray(first[path]), [at[path] for at in kept]) for path in paths}
        for name in CHANGES:
            found[f"loss/{name}/{which}"] = of(_with(params, {path: changed[path][name] for path in paths}))
    return found


def _changed(path: str, start: np.ndarray, kept: list[np.ndarray]) -> dict[str, np.ndarray]:
    """A matrix after each of `CHANGES`."""
    rows = partial(np.moveaxis, source=token_axis(path), destination=0)
    start, moved = rows(start), np.stack([rows(at) for at in kept]) - rows(start)  # (V, D), (snapshots, V, D)
    # The best direction of each row, (V, D), from the products of its 15 displacements. A row that never moved has none.
    _, of_displacements = np.linalg.eigh(np.einsum("svd,tvd->vst", moved, moved))
    along = np.einsum("svd,vs->vd", moved, of_displacements[..., -1])
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    on_ray = np.sum(moved[-1] * along, 1, keepdims=True) * along
    off_ray = np.linalg.norm(moved[-1] - on_ray, axis=1, keepdims=True)
    random = np.random.default_rng(0).standard_normal(start.shape)
    random *= off_ray / np.linalg.norm(random, axis=1, keepdims=True)
    after = dict(zip(CHANGES, (start, start + on_ray, start + moved[-1] + random), strict=True))
    return {name: np.moveaxis(x, 0, token_axis(path)).astype(np.float32) for name, x in after.items()}


def _with(params: Any, replaced: dict[str, np.ndarray]) -> Any:
    def one(path, leaf):
        return replaced.get("/".join(str(key.key) for key in path), leaf)

    return jax.tree_util.tree_map_with_path(one, params)


def _ranks_by_batch(params: Any, corpus: Corpus, loss_fn: Callable[..., Any], seed: int) -> Numbers:
    """The effective rank of the gradient. Hidden matrices get as many rows as the embedding has rows with a gradient."""
    gradient, found = jax.jit(jax.grad(loss_fn)), {}
    for sequences in RANK_BATCHES:
        batch = random_batch(corpus.training, sequences, RANK_LENGTH, (seed, 10**6))
        active = len(np.unique(batch[:, :-1]))
        ranks: dict[str, list[float]] = {}
        for path, g in matrices(gradient(params, jnp.asarray(batch))).items():
            rows = np.moveaxis(np.asarray(g), token_axis(path), 0)
            if path not in TABLES:
                rows = rows[np.random.default_rng(seed).permutation(len(rows))[:active]]
            ranks.setdefault(kind(path), []).append(float(geometry.effective_rank(jnp.asarray(rows))))
        found |= {f"rank/{sequences * RANK_LENGTH}/{which}": float(np.mean(of_kind)) for which, of_kind in ranks.items()}
    return found


def effects_section(runs: dict[str, Numbers], optimizers: dict[str, str]) -> str:
    """Both questions for the page."""

    def cell(optimizer: str, of: Callable[[Numbers], float], digits: int) -> str:
        values = [of(numbers) for name, numbers in runs.items() if name.startswith(f"{optimizer} seed")]
        return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")

    labels: dict[str, str] = dict(zip(KINDS, ("embedding", "head", "hidden matrices"), strict=True))
    rows = [("as trained", *(cell(o, lambda n: n["loss"], 3) for o in optimizers))]
    for which, label in labels.items():
        for name in CHANGES:
            key = f"loss/{name}/{which}"
            rows.append((f"{label}, {name}", *(cell(o, lambda n, key=key: n[key], 3) for o in optimizers)))
    losses = markdown(rows, ("validation loss", *optimizers.values()))
    rows = []
    for sequences in RANK_BATCHES:
        keys = [f"rank/{sequences * RANK_LENGTH}/{which}" for which in KINDS]
        rows.append((f"{sequences * RANK_LENGTH:,}", *(cell("ember", lambda n, key=key: n[key], 1) for key in keys)))
    ranks = markdown(rows, ("tokens in the batch", "embedding", "head", "hidden matrices"))
    return _TEXT.format(losses=losses, kept=_kept(runs, labels), ranks=ranks)


def _kept(runs: dict[str, Numbers], labels: dict[str, str]) -> str:
    """The share of what training gained that is left on the ray, mean over all runs."""
    start, ray, _ = CHANGES

    def share(numbers: Numbers, which: str) -> float:
        at_start = numbers[f"loss/{start}/{which}"]
        return (at_start - numbers[f"loss/{ray}/{which}"]) / (at_start - numbers["loss"])

    shares = (f"{mean(share(numbers, which) for numbers in runs.values()):.1%} of the {label}" for which, label in labels.items())
    return ", ".join(shares)


_TEXT = """## The ray, by function

Shares of energy do not say what the rest does. So the rows of one kind of matrix are changed at the end of a run, and the loss
is measured again. Each row goes back to where it began. Or it is put on its ray, the best direction of its 15 displacements from
the start. Or it stays as trained, and a random vector as long as its part off the ray is added. Hidden matrices are the null.

{losses}

The ray keeps most of what training gained, the difference between the start and the end: {kept}. So a row's path is mostly
one ray to the loss as well, and that is true of hidden rows too. What is off the ray is small, but it is not noise: to lose it
costs several times as much as a random vector of its length does.

## The rank of gradients by batch size

Effective rank of one gradient of the model that Ember trained, in rows of 128 features. A table's gradient has rows for the
tokens of the batch alone, so of each hidden matrix as many random rows are taken (at most all of them).

{ranks}"""
