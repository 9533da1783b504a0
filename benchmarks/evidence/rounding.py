"""Tables of two bytes on the main job: rounded stochastically and to the nearest, against tables in float32.

Ember on the tables and AdamW on the body, as in `examples/pretrain.py`; the same seeds for all, so differences are within pairs.
An interrupted measurement goes on with the runs that are missing.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import optax
from tqdm import tqdm

from benchmarks.evidence.pretraining import SETTINGS, Setting, corpus, validation
from benchmarks.evidence.statistics import paired_difference, spread
from benchmarks.harness.report import markdown, put
from benchmarks.harness.results import RESULTS, ROOT, load, machine, parser, save
from examples.lm.config import RatesConfig
from examples.lm.optimizers import make_optimizer
from examples.lm.tokens import random_batch
from examples.lm.training import init_params, next_token_loss

PAGE = ROOT / "docs" / "bfloat16_tables.md"
TABLE_RATE = 1e-2
WHOLE = "float32"
# The dtype of the tables, and whether their updates are rounded stochastically.
FORMS = {WHOLE: ("float32", False), "bfloat16, stochastic": ("bfloat16", True), "bfloat16, nearest": ("bfloat16", False)}


def main() -> None:
    """Makes the runs that are missing, seed by seed, and the table of docs/bfloat16_tables.md."""
    arguments = parser(__doc__)
    arguments.add_argument("--setting", choices=list(SETTINGS), default="2.1M, main job", help="model, batch and steps")
    arguments.add_argument("--seeds", nargs="*", type=int, default=list(range(5)), help="of parameters, batches and rounding")
    arguments.add_argument("--output", type=Path, default=RESULTS / "rounding.json", help="results")
    options = arguments.parse_args()
    results = load(options.output) or {"setting": options.setting, "machine": machine(), "losses": {form: {} for form in FORMS}}
    setting = SETTINGS[results["setting"]]
    for seed in options.seeds:
        for form in FORMS:
            if str(seed) not in results["losses"][form]:
                with tqdm(total=setting.steps, desc=f"{form}, seed {seed}", unit="step", mininterval=5) as bar:
                    loss = run(setting, form, seed, bar.update)
                results["losses"][form][str(seed)] = round(loss, 6)
                save(options.output, results)
    put(PAGE, "ROUNDING", table(results))


def run(setting: Setting, form: str, seed: int, tick: Any = lambda: None) -> float:
    """The validation loss after the last step, in nats per token."""
    dtype, stochastic = FORMS[form]
    model = dataclasses.replace(setting.model, table_dtype=dtype)
    rates = RatesConfig(setting.body_rate, TABLE_RATE, TABLE_RATE)
    tx = make_optimizer("ember", rates, setting.steps, rounding_seed=seed if stochastic else None)
    loss_fn = next_token_loss(model)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, batch):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = init_params(model, seed)
    carry = params, tx.init(params)
    for i in range(setting.steps):
        carry = step(carry, random_batch(corpus(setting.vocabulary).training, setting.batch, setting.length, (seed, i)))
        tick()
    return validation(setting)(carry[0])


def table(results: dict[str, Any]) -> str:
    """What the page shows: losses of each form, and the paired difference from float32."""
    losses = {form: list(of_seed.values()) for form, of_seed in results["losses"].items()}
    setting, rows = SETTINGS[results["setting"]], []
    for form, ours in losses.items():
        found, difference = spread(ours), paired_difference(ours, losses[WHOLE])
        low, high = difference.mean - difference.half, difference.mean + difference.half
        against = ("", "") if form == WHOLE else (f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]", difference.verdict)
        rows.append((form, f"{found.mean:.4f} ± {found.deviation:.4f}", *against))
    headers = ("tables", "validation loss", "against float32, 95 %", "so the loss is")
    return (
        f"{markdown(rows, headers)}\n\n"
        f"Setting {results['setting']}: {setting.vocabulary:,} tokens, {setting.width} features, {setting.layers} layers, "
        f"{setting.steps} steps of {setting.batch * setting.length:,} tokens, peak rate of the tables {TABLE_RATE:g}; "
        f"{len(losses[WHOLE])} seeds; {results['machine']}.\n"
    )


if __name__ == "__main__":
    main()
