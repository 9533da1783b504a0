"""One training run of the main job with everything measured that the statements of the paper are about."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ember_optax import geometry
from ember_optax._math.frequency import halves_by_count
from examples.lm.config import ModelConfig, RatesConfig
from examples.lm.optimizers import make_optimizer, schedule
from examples.lm.tokens import Corpus, random_batch
from examples.lm.training import init_params, next_token_loss

MODEL = ModelConfig(vocabulary_size=8192, width=128, layers=4, heads=4, tied=False)
RATES = RatesConfig(learning_rate=1e-3, ember_learning_rate=1e-2, adamw_table_learning_rate=1e-2)
BATCH_SIZE, SEQUENCE_LENGTH = 8, 128
# A row is a vector of the residual stream in every matrix, so that rows of all kinds have as many features.
TABLES = {"embed/embedding": 0, "lm_head/kernel": 1}
_HIDDEN = {"qkv": 1, "attention_out": 0, "gate_up": 1, "mlp_out": 0}
# Snapshots of the trajectories after the first one.
DISPLACEMENTS = 15
# Steps without its token after which a row counts as silent, and up to which it counts as recent.
SILENT, RECENT = 50, 3
# A silence that no short run has: the state is aged by hand.
AGED = 10_000
_WALK_SEED = 0

Numbers = dict[str, float]
Matrices = dict[str, jax.Array]


class _Record(NamedTuple):
    """What is accumulated within the compiled step: by matrix, and how often each token occurred."""

    correlations: dict[str, Any]
    squares: Matrices
    token_counts: jax.Array


def measure(
    optimizer: str,
    seed: int,
    steps: int,
    corpus: Corpus,
    *,
    model: ModelConfig = MODEL,
    tick: Callable[[float], None] = lambda loss: None,
) -> Numbers:
    """Trains and measures; numbers by name, the same names for every optimizer."""
    tx = make_optimizer(optimizer, RATES, steps)
    step, ranks_of = _compiled_step(tx, model), jax.jit(_ranks)
    first = params = init_params(model, seed)
    opt_state, record = jax.jit(tx.init)(params), _fresh(params, model)
    rays = {path: geometry.ray(token_axis=token_axis(path)) for path in matrices(params)}
    follow = jax.jit(lambda states, now: {path: rays[path].update(states[path], matrix) for path, matrix in now.items()})
    ray_states = {path: rays[path].init(matrix) for path, matrix in matrices(params).items()}
    snapshots = {round(i * steps / DISPLACEMENTS) for i in range(1, DISPLACEMENTS + 1)}
    seen_V, losses, ranks, moves, found = np.full(model.rows, -AGED), [], [], [], {}
    grads: Any = None
    ids = np.zeros(0, int)
    for i in range(1, steps + 1):
        batch = jnp.asarray(random_batch(corpus.training, BATCH_SIZE, SEQUENCE_LENGTH, (seed, i - 1)))
        before = opt_state
        params, opt_state, record, grads, loss = step(params, opt_state, record, batch)
        losses.append(float(loss))
        ids = np.unique(batch[:, :-1])
        if i % max(1, steps // 5) == 0:
            ranks.append(jax.device_get(ranks_of(matrices(grads))))
        if i > steps - steps // 5 and i % 3 == 0:
            moves.append(_moves(grads, before, ids, i - seen_V[ids]))
        seen_V[ids] = i
        if i in snapshots:
            ray_states = follow(ray_states, matrices(params))
        if i == steps // 2:  # what follows is of the second half alone
            found |= _correlations(record, "first half")
            fresh = _fresh(params, model)
            record = record._replace(correlations=fresh.correlations, squares=fresh.squares)
        tick(losses[-1])
    found |= {"loss": float(np.mean(losses[-20:]))} | _correlations(record, "second half") | _factorizations(record)
    found |= (
        _by_kind("effective rank", jax.tree.map(lambda *of_steps: np.mean(of_steps), *ranks))
        | _step_sizes(moves)
        | _after_silence(grads, opt_state, ids)
    )
    found |= _rays(rays, ray_states, record.token_counts) | _random_walk(steps, sorted(snapshots), model.width)
    found |= _anisotropies("before training", first, record.token_counts)
    return found | _anisotropies("after training", params, record.token_counts)


def matrices(tree: Any) -> Matrices:
    """The tables and the hidden matrices of the main job, or their gradients, by path."""
    leaves = {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {path: leaf for path, leaf in leaves.items() if path in TABLES or path.split("/")[1] in _HIDDEN}


def token_axis(path: str) -> int:
    """Which axis of a matrix counts its rows."""
    return TABLES[path] if path in TABLES else _HIDDEN[path.split("/")[1]]


def kind(path: str) -> str:
    """`embed`, `lm_head` or `hidden`."""
    return path.partition("/")[0] if path in TABLES else "hidden"


def _compiled_step(tx: optax.GradientTransformation, model: ModelConfig) -> Callable[..., Any]:
    loss_fn = next_token_loss(model)

    @jax.jit
    def step(params, opt_state, record, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, _recorded(record, grads, batch), grads, loss

    return step


def _fresh(params: Any, model: ModelConfig) -> _Record:
    correlations = {path: _correlation(path).init(matrix) for path, matrix in matrices(params).items()}
    return _Record(correlations, jax.tree.map(jnp.zeros_like, matrices(params)), jnp.zeros(model.rows, jnp.int32))


def _recorded(record: _Record, grads: Any, batch: jax.Array) -> _Record:
    of = matrices(grads)
    return _Record(
        {path: _correlation(path).update(record.correlations[path], of[path]) for path in of},
        {path: record.squares[path] + jnp.square(of[path]) for path in of},
        record.token_counts.at[batch[:, :-1]].add(1),
    )


def _correlation(path: str) -> geometry.Streaming:
    return geometry.gradient_autocorrelation(token_axis=token_axis(path))


def _by_kind(name: str, values: dict[str, Any]) -> Numbers:
    """The mean of a number over the matrices of each kind."""
    kinds: dict[str, list[float]] = {}
    for path, value in values.items():
        kinds.setdefault(kind(path), []).append(float(value))
    return {f"{name}/{which}": float(np.mean(of_kind)) for which, of_kind in kinds.items()}


def _ranks(of: Matrices) -> Matrices:
    return {path: geometry.effective_rank(matrix, token_axis=token_axis(path)) for path, matrix in of.items()}


def _correlations(record: _Record, when: str) -> Numbers:
    found = {path: _correlation(path).value(state) for path, state in record.correlations.items()}
    return _by_kind(f"autocorrelation/{when}", {path: value.table for path, value in found.items()})


def _factorizations(record: _Record) -> Numbers:
    found = {path: geometry.factorization_error(v, token_axis=token_axis(path)) for path, v in record.squares.items()}
    fields = ("explained_energy", "rank_one_share", "explained_log_variance")
    parts = [_by_kind(field.replace("_", " "), {path: getattr(f, field) for path, f in found.items()}) for field in fields]
    return {name: value for part in parts for name, value in part.items()}


def _moves(grads: Any, before: Any, ids: np.ndarray, silence: np.ndarray) -> dict[str, np.ndarray]:
    """Of the tokens of one batch: how long they had been silent, and how far the rows of both tables move."""
    states, of = geometry.table_states(before), matrices(grads)
    steps = {path: np.asarray(geometry.row_step(of[path], states[path], token_axis=axis))[ids] for path, axis in TABLES.items()}
    return steps | {"silence": silence}


def _step_sizes(moves: list[dict[str, np.ndarray]]) -> Numbers:
    silence = np.concatenate([move["silence"] for move in moves])
    found: Numbers = {"silent rows": float(np.sum(silence >= SILENT))}
    for path in TABLES:
        steps = np.concatenate([move[path] for move in moves])
        recent = float(np.median(steps[silence <= RECENT]))
        found[f"row step/recent/{kind(path)}"] = recent
        found[f"row step/silent/{kind(path)}"] = float(np.median(steps[silence >= SILENT]))
        found[f"row step/silent over recent/{kind(path)}"] = float(np.median(steps[silence >= SILENT])) / recent
        found[f"row step/largest over recent/{kind(path)}"] = float(np.max(steps)) / recent
    return found


def _after_silence(grads: Any, opt_state: Any, ids: np.ndarray) -> Numbers:
    """The row step of the tokens of a batch, had they been silent for `AGED` steps while the others went on."""
    path, decay = "embed/embedding", 0.999**AGED
    state: Any = geometry.table_states(opt_state)[path]
    if hasattr(state, "mu"):
        aged = state._replace(count=state.count + AGED, mu=state.mu * 0.9**AGED, nu=state.nu * decay)
    else:  # the feature statistic is of all rows, and stays
        aged = state._replace(count=state.count + AGED, nu_token=state.nu_token * decay)
    steps = np.asarray(geometry.row_step(matrices(grads)[path], aged))[ids]
    return {"row step/after a long silence/embed": float(np.median(steps))}


def _rays(rays: dict[str, geometry.Streaming], states: dict[str, Any], counts_V: jax.Array) -> Numbers:
    found: Numbers = {}
    groups: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    masks = halves(counts_V)
    for path, one in rays.items():
        of = one.value(states[path])
        values = np.stack([np.asarray(of.share), np.asarray(of.share_at_most), np.asarray(of.straightness)])
        moved = np.asarray(of.energy) > 0
        of_path = {f"{half} {kind(path)}": mask for half, mask in masks.items()} if path in TABLES else {"hidden": moved}
        for group, mask in of_path.items():
            groups.setdefault(group, []).append(tuple(values[:, moved & mask]))
    for group, parts in groups.items():
        for name, values in zip(("share", "share at most", "straightness"), zip(*parts, strict=True), strict=True):
            found[f"ray {name}/{group}"] = float(np.mean(np.concatenate(values)))
    return found


def _random_walk(steps: int, snapshots: list[int], features: int) -> Numbers:
    """The null: steps in random directions whose lengths follow the learning rate."""
    rates = jax.vmap(schedule(1.0, steps))(jnp.arange(steps))
    parts = np.split(np.asarray(rates), snapshots)[: len(snapshots)]
    lengths = [float(np.sqrt(np.sum(np.square(part)))) for part in parts]
    share, straightness = geometry.random_walk(lengths, num_features=features, key=jax.random.key(_WALK_SEED))
    return {"ray share/random walk": float(np.mean(share)), "ray straightness/random walk": float(np.mean(straightness))}


def _anisotropies(when: str, params: Any, counts_V: jax.Array) -> Numbers:
    metrics = {
        "mean cosine": geometry.mean_cosine_similarity,
        "centred mean cosine": partial(geometry.mean_cosine_similarity, centered=True),
        "IsoScore": geometry.iso_score,
        "mean norm": geometry.mean_row_norm,
    }
    of = matrices(params)
    return {
        f"{name}/{when}/{half} {kind(path)}": float(metric(of[path], token_axis=axis, weights=jnp.asarray(mask, jnp.float32)))
        for name, metric in metrics.items()
        for path, axis in TABLES.items()
        for half, mask in halves(counts_V).items()
    }


def halves(counts_V: Any) -> dict[str, np.ndarray]:
    """The rarer and the more frequent half of the tokens that occurred, as the report and the alignment regularizer have them."""
    return dict(zip(("rare", "frequent"), map(np.asarray, halves_by_count(jnp.asarray(counts_V))), strict=True))
