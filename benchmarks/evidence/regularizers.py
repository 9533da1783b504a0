"""Regularizers on the main job: does each move the geometry that it is meant to move, and what does it do to the loss.

Every run has Ember on the tables and AdamW on the body, as in `examples/pretrain.py`, with models and batches of
`benchmarks.evidence.pretraining`; one of them has no regularizer. The same seeds for all, so differences are within pairs. An
interrupted measurement goes on with the runs that are missing.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.evidence.pretraining import SETTINGS, Setting
from benchmarks.evidence.statement_runs import TABLES, halves
from benchmarks.evidence.statistics import paired_difference, spread
from benchmarks.harness.report import markdown, put
from benchmarks.harness.results import RESULTS, ROOT, load, machine, parser, save
from ember_optax import geometry
from examples.lm.config import RatesConfig
from examples.lm.optimizers import make_optimizer, schedule
from examples.lm.regularizing import Chosen, Subject, regularizer, token_weights, with_terms, with_transformations
from examples.lm.text import read_documents
from examples.lm.tokens import Corpus, default_cache_dir, load_corpus, random_batch, validation_batches
from examples.lm.training import init_params, next_token_loss

NONE = "none"
PAGE = ROOT / "docs" / "regularizers.md"
RESULTS_OF_PAGE = (RESULTS / "regularizers.json", RESULTS / "regularizers_small.json")
_VALIDATION_TOKENS = 20_480
_TABLE_RATE = 1e-2
_LAST = 20  # steps whose row steps are looked at
Numbers = dict[str, float]


class Entry(NamedTuple):
    """A regularizer as it was run, the metric that it is meant to move, and where to: -1 down, 1 up."""

    setting: str
    metric: str
    direction: int


ENTRIES = (
    Entry("anisotropy=0.3", "mean cosine", -1),
    Entry("anisotropy=-0.3", "mean cosine", 1),
    Entry("spectral=0.001", "spectral norm", -1),
    Entry("spectral-norm=20", "spectral norm", -1),
    Entry("alignment=0.3", "rare-frequent distance", -1),
    Entry("center", "norm of the head's mean row", -1),
    Entry("weighted-rows=0.25", "frequent over rare row norm", -1),
    Entry("weighted-loss=0.25", "loss of rare tokens", -1),
    Entry("cap=3", "largest row step", -1),
)


def main() -> None:
    """Makes the runs that are missing, seed by seed, and the table of docs/regularizers.md."""
    arguments = parser(__doc__)
    setting = "model and batch, for a new file of results"
    arguments.add_argument("--setting", choices=list(SETTINGS), default="2.1M, main job", help=setting)
    arguments.add_argument("--steps", type=int, default=300, help="steps of each run, for a new file of results")
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of parameters and batches")
    arguments.add_argument("--output", type=Path, default=RESULTS_OF_PAGE[0], help="results")
    options = arguments.parse_args()
    results = load(options.output) or {"setting": options.setting, "steps": options.steps, "machine": machine(), "runs": {}}
    setting = SETTINGS[results["setting"]]._replace(steps=results["steps"])
    names = [NONE, *(entry.setting for entry in ENTRIES)]
    missing = [(name, seed) for seed in options.seeds for name in names if run_name(name, seed) not in results["runs"]]
    corpus = load_corpus(read_documents(None), setting.vocabulary, default_cache_dir()) if missing else None
    programs: dict[str, Any] = {}
    for name, seed in missing:
        assert corpus is not None
        if name not in programs:
            programs[name] = program(name, setting, corpus)
        with tqdm(total=setting.steps, desc=run_name(name, seed), unit="step", mininterval=5) as bar:
            numbers = measure(programs[name], seed, setting, corpus, bar.update)
        results["runs"][run_name(name, seed)] = {metric: float(f"{value:.6g}") for metric, value in numbers.items()}
        save(options.output, results)
    put(PAGE, options.output.stem, table(results))


def run_name(name: str, seed: int) -> str:
    """The name of one run in the results."""
    return f"{name} seed {seed}"


def program(name: str, setting: Setting, corpus: Corpus) -> Any:
    """The optimizer, the compiled step (parameters and state, the loss, the largest row step in learning rates) and the rate."""
    chosen: list[Chosen] = [] if name == NONE else [regularizer(name)]
    rate = schedule(_TABLE_RATE, setting.steps)
    subject = Subject(counts_of(corpus, setting), "embed/embedding", rate)
    rates = RatesConfig(setting.body_rate, _TABLE_RATE, _TABLE_RATE)
    tx = with_transformations(make_optimizer("ember", rates, setting.steps), chosen, subject)
    loss_fn = with_terms(next_token_loss(setting.model, token_weights(chosen, subject)), chosen, subject)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, batch, rate):
        params, opt_state = carry
        (_, loss), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        moved = {name: _row_rms(table, axis) / rate for name, (table, axis) in tables_of(updates).items()}
        largest = jnp.max(jnp.stack([jnp.max(of_rows) for of_rows in moved.values()]))
        return (optax.apply_updates(params, updates), opt_state), loss, largest

    return tx, step, rate


def measure(made: Any, seed: int, setting: Setting, corpus: Corpus, tick: Any = lambda: None) -> Numbers:
    """Trains once; losses, and the geometry of both tables at the end."""
    tx, step, rate = made
    params = init_params(setting.model, seed)
    carry, largest = (params, tx.init(params)), []
    for i in range(setting.steps):
        batch = random_batch(corpus.training, setting.batch, setting.length, (seed, i))
        carry, _, row_step = step(carry, batch, jnp.float32(max(float(rate(i)), 1e-12)))
        if i >= setting.steps - _LAST:
            largest.append(float(row_step))
        tick()
    counts_V = counts_of(corpus, setting)
    return _losses(carry[0], corpus, setting, counts_V) | _geometry(carry[0], counts_V) | {"largest row step": max(largest)}


def counts_of(corpus: Corpus, setting: Setting) -> np.ndarray:
    """How often each row's token occurs in the training text."""
    return np.bincount(corpus.training, minlength=setting.model.rows).astype(np.float32)


def tables_of(tree: Any) -> dict[str, tuple[jax.Array, int]]:
    """Both tables, or their updates, with their token axes."""
    leaves = {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {name: (leaves[name], axis) for name, axis in TABLES.items()}


def _losses(params: Any, corpus: Corpus, setting: Setting, counts_V: np.ndarray) -> Numbers:
    """The validation loss without any weights, and that of the rarer half of the tokens."""
    is_rare_V = np.zeros(setting.model.rows, np.float32)
    is_rare_V[halves(counts_V)["rare"]] = 1
    batches = validation_batches(corpus.validation, 8, setting.length, _VALIDATION_TOKENS // (8 * setting.length))
    plain, rare = _evaluate(setting)
    found = np.asarray([(plain(params, batch), rare(params, batch, is_rare_V)) for batch in batches], np.float64)
    shares = [float(np.mean(is_rare_V[batch[:, 1:]])) for batch in batches]
    return {"loss": float(found[:, 0].mean()), "loss of rare tokens": float(found[:, 1].sum() / np.sum(shares))}


@functools.cache
def _evaluate(setting: Setting) -> tuple[Any, Any]:
    model = setting.model
    return jax.jit(next_token_loss(model)), jax.jit(lambda params, batch, weights: next_token_loss(model, weights)(params, batch))


def _geometry(params: Any, counts_V: np.ndarray) -> Numbers:
    """Means over both tables, of the tokens that occur; the mean row of the head alone."""
    seen = (counts_V > 0).astype(np.float32)
    groups = halves(counts_V)
    found: list[Numbers] = []
    for name, (array, axis) in tables_of(params).items():
        norms = np.asarray(geometry.row_norms(array, token_axis=axis))
        rows = np.moveaxis(np.asarray(array, np.float64), axis, 0)
        rare, frequent = (rows[groups[half]] for half in ("rare", "frequent"))
        of_table = {
            "mean cosine": float(geometry.mean_cosine_similarity(array, token_axis=axis, weights=seen)),
            "IsoScore": float(geometry.iso_score(array, token_axis=axis, weights=seen)),
            "spectral norm": float(geometry.spectrum(array, token_axis=axis)[0]),
            "rare-frequent distance": float(
                np.linalg.norm(rare.mean(0) - frequent.mean(0)) / np.sqrt(np.mean(np.square(norms[seen > 0])))
            ),
            "frequent over rare row norm": float(norms[groups["frequent"]].mean() / norms[groups["rare"]].mean()),
        }
        if name.startswith("lm_head"):
            of_table["norm of the head's mean row"] = float(np.linalg.norm(rows.mean(0)))
        found.append(of_table)
    names = dict.fromkeys(name for of_table in found for name in of_table)
    return {name: float(np.mean([of_table[name] for of_table in found if name in of_table])) for name in names}


def _row_rms(table: jax.Array, axis: int) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(table), tuple(a for a in range(table.ndim) if a != axis)))


def table(results: dict[str, Any]) -> str:
    """What the page shows: the metric and the loss with each regularizer against none, means of paired seeds."""
    rows = [_row(entry, results["runs"]) for entry in ENTRIES]
    headers = (
        "regularizer",
        "its metric",
        "none",
        "with it",
        "moved as meant",
        "loss against none",
        "so the loss is",
        "IsoScore",
    )
    without, setting = _values(results["runs"], NONE), SETTINGS[results["setting"]]._replace(steps=results["steps"])
    loss, iso = spread(without["loss"]), spread(without["IsoScore"])
    return (
        f"{markdown(rows, headers, names=2)}\n\n"
        f"Without a regularizer: validation loss {loss.mean:.4f} ± {loss.deviation:.4f} nats per token, IsoScore {iso.mean:.3f}. "
        f"{loss.size} seeds.\n"
        f"Setting {results['setting']}: {setting.vocabulary:,} tokens, {setting.width} features, {setting.layers} layers, "
        f"{setting.steps} steps of {setting.batch * setting.length:,} tokens; {results['machine']}.\n"
    )


def _row(entry: Entry, runs: dict[str, Numbers]) -> tuple[str, ...]:
    ours, theirs = _values(runs, entry.setting), _values(runs, NONE)
    metric = paired_difference(ours[entry.metric], theirs[entry.metric])
    loss = paired_difference(ours["loss"], theirs["loss"])
    moved = "yes" if metric.half < abs(metric.mean) and metric.mean * entry.direction > 0 else "no"
    verdict = {"lower": "lower: helps", "higher": "higher: hurts"}.get(loss.verdict, loss.verdict)
    values = (f"{spread(of[entry.metric]).mean:.3g}" for of in (theirs, ours))
    difference = f"{loss.mean:+.4f} [{loss.mean - loss.half:+.4f}, {loss.mean + loss.half:+.4f}]"
    return entry.setting, entry.metric, *values, moved, difference, verdict, f"{spread(ours['IsoScore']).mean:.3f}"


def _values(runs: dict[str, Numbers], setting: str) -> dict[str, list[float]]:
    of_runs = [numbers for name, numbers in runs.items() if name.startswith(f"{setting} seed ")]
    return {name: [numbers[name] for numbers in of_runs] for name in of_runs[0]}


if __name__ == "__main__":
    main()
