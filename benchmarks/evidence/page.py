"""docs/evidence.md and docs/evidence_runs.md, made from the finished runs and nothing else."""

from pathlib import Path

from benchmarks.evidence import conclusions, missing_runs, pair_tables, tables
from benchmarks.evidence.claims import claims
from benchmarks.evidence.comparison import results
from benchmarks.evidence.pair_comparison import PairResults, pair_results
from benchmarks.evidence.records import Records
from benchmarks.evidence.studies import FULL, REPLACED, TASKS, Study
from benchmarks.evidence.verdicts import refusals
from benchmarks.harness.report import markdown, put

_HEAD = """# Evidence

What training token tables with Ember costs or gains. `python -m benchmarks.evidence` makes the runs, and `--write` makes this
page. Within a comparison only what trains the tables differs. Model, text, batches and the body's AdamW with its rate are
the same. The runs are lines of JSON in `benchmarks/results/evidence/`. [Every run](evidence_runs.md) has each setting
with all its methods and rates.

These are small models and short runs on two processor cores. They can show that the saved memory costs something. They
cannot show that it never does.
"""

_MEMORY_NOT_LOSS = """
Expect memory, not loss. Up to 1,200 steps most of what Ember gains over AdamW is what AdamW gains when its tables have less
momentum. After 4,800 steps little of either is left.
"""

_RUNS_HEAD = """
# Every run

All settings of [Evidence](evidence.md), which has the conclusions and says how a comparison is made. `python -m
benchmarks.evidence --write` writes both pages.
"""

_PARTS_OF_THE_GAIN = """
Adam without momentum has the full second moment, V x D numbers, and no first moment. The columns are:

* what no momentum on the tables is worth;
* what less momentum is worth;
* what a user gains who swaps AdamW for Ember;
* what Ember's factored second moment adds or costs.

With "two" rates, input table and head have a rate each, and each method has its own best pair.
"""

_HOW = """
* With one rate, every method is run with seed 0 at each rate of the same grid (1, 2, 5, 10, ...). The grid is extended until the
  best rate has worse neighbours on both sides. "At the edge": the best rate is the last one tried.
* With two rates, every method is run at a grid of pairs with the seeds 0, 101 and 102 (4,800 steps: with seed 0 alone). The grid
  is extended until the best pair has worse neighbours on all four sides. A neighbour that is 0.05 worse with one seed is not
  run with the others.
* At its own best rate or pair each method is run again with fresh seeds, 1, 2, ..., the same for all methods. They decide initial
  parameters (of what is trained from scratch), batches and random completions. n counts them. Seeds that chose a rate are in no
  difference.
* Losses are those after the last step, at the end of the decay; lower is better. A run whose loss is not finite, or in
  pretraining not below ln V, has diverged and counts as infinite.
* Differences are taken within pairs of equal seeds; the interval is Student's t, 95 %. Where it contains zero, no difference was
  seen, which is not that there is none. One interval of twenty misses zero by chance, and there are many here.
* AdamW has its defaults on the tables, b2 = 0.999 and a decay of 1e-4 (a decay of 0.1 changes its loss by 0.001 here). Adam
  without momentum and Ember have no decay.
"""


def page(study: Study, records: dict[str, Records]) -> str:
    """What was found: conclusions first."""
    found, two = results(study.cells, records), pair_results(study.pairs, records)
    parts = [_HEAD, "## In short", _MEMORY_NOT_LOSS, conclusions.conclusions(found, two, study), conclusions.WORDS]
    parts += ["## What the gain is made of", _PARTS_OF_THE_GAIN, conclusions.table(found, two, study), _PICTURES]
    if any(task == "reinforcement" for task, _, _ in two):
        parts += [_REWARDS]
    parts += ["## What the paper claims", _claims(found, two, study)]
    if of_estimates := conclusions.estimates(found):
        parts += ["## Could the estimate be better?", _ESTIMATES, of_estimates]
    parts += [_ADVICE, tables.best_rates(found), "## How a comparison is made", _HOW, _what_was_run(study, records)]
    parts += ["## Runs that were withdrawn", _WITHDRAWN] if study is FULL else []
    if missing := missing_runs.missing(study, records):
        parts += ["## What is missing", _MISSING, missing]
    reasons = [*(result.refused for result in found.values() if result.refused), *refusals(found, two)]
    if refused := [f"* {reason}" for reason in dict.fromkeys(reasons)]:
        parts += ["## What was refused", _REFUSED, "\n".join(refused)]
    return _joined(parts)


def runs_page(study: Study, records: dict[str, Records]) -> str:
    """Every setting, with all its methods and rates."""
    found, two = results(study.cells, records), pair_results(study.pairs, records)
    parts = [_RUNS_HEAD, *_two_rates(two)]
    if worth := conclusions.second_rates(found, two):
        parts += ["## What a second rate is worth", _SECOND_RATE, worth]
    parts += ["## One rate for all tables", tables.headline(found, study)]
    for task in TASKS:
        parts += _task(found, task)
    return _joined([*parts, _FORMS, tables.forms_of_ember(found)])


def write(study: Study, records: dict[str, Records], folder: Path) -> None:
    """Writes both."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in (("evidence", page), ("evidence_runs", runs_page)):
        (folder / f"{name}.md").write_text(made(study, records), encoding="utf-8")


def write_lengths(study: Study, records: dict[str, Records], readme: Path) -> None:
    """Writes the table over the length of a run into the README."""
    put(readme, "LENGTHS", f"\n{conclusions.lengths(pair_results(study.pairs, records), study)}\n")


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _what_was_run(study: Study, records: dict[str, Records]) -> str:
    runs = [record for of_task in records.values() for record in of_task.values()]
    per_task = ", ".join(f"{len(of_task)} of {TASKS[task].title.lower()}" for task, of_task in records.items())
    machines = sorted({record.details["machine"] for record in runs})
    diverged = sum(record.loss is None for record in runs)
    cells = {(type(cell), *cell[:3]): cell for cell in (*study.cells, *study.pairs)}.values()
    complete = sum(not cell.missing(records.get(cell.task, {})) for cell in cells)
    return (
        f"{len(runs)} runs are finished ({per_task}), {diverged} of them diverged. {complete} of {len(cells)} methods in a "
        f"setting have all their rates and seeds. Machine: {'; '.join(machines)}."
    )


def _two_rates(found: PairResults) -> list[str]:
    if not found:
        return []
    parts = ["## Two rates", _PAIRS, pair_tables.headline(found)]
    for task, setting in pair_tables.settings(found):
        parts += [f"### {setting}, two rates", pair_tables.methods(found, task, setting)]
        parts += ["Mean over the seeds of the grid (the best in bold; with fewer seeds in brackets):"]
        parts += [pair_tables.grids(found, task, setting)]
    return parts


def _claims(one: tables.Results, two: PairResults, study: Study) -> str:
    rows = [tuple(claim) for claim in claims(one, two, study)]
    return markdown(rows, ("claim of the paper", "here", "what would change that"), names=3)


def _task(found: tables.Results, task: str) -> list[str]:
    settings = dict.fromkeys(setting for of_task, setting, _ in found if of_task == task)
    parts = [f"## {TASKS[task].title}", f"Loss: {TASKS[task].loss}."] if settings else []
    for setting in settings:
        parts += [f"### {setting}", _REPLACED if setting in REPLACED else "", tables.methods(found, task, setting)]
        parts += ["With seed 0, at each rate (the best in bold):", tables.rates(found, task, setting)]
    return parts


_PAIRS = """
Here input table and head have a peak rate each. Every method is run at a grid of pairs with the same three seeds, which is
extended until the best pair has worse neighbours on all four sides; then it is run at that pair alone with fresh seeds. A run
of 4,800 steps takes long, so its pairs are tried with one seed. Momentum is compared apart: AdamW with b1 = 0.9 as it is used,
with 0.5, and Adam without momentum. "The best of the others" is the one of these three that is best on the seeds of the grid.
"""

_REPLACED = """
The text of this setting is what packages are installed, so nobody else can repeat it. No conclusion counts it; another one with a
text in the repository replaces it.
"""

_SECOND_RATE = """
Each method at its best pair of rates minus itself at its best single rate, on the fresh seeds that both have.
"""

_MISSING = """
A method that was not begun in a setting is counted with as many runs as finished ones took. Times are those of the finished runs
of the setting. For a setting without any they are estimated, from numbers times tokens (completions in reinforcement learning).
"""

_WITHDRAWN = """
196 earlier runs of reinforcement learning are in commit f0b77c0 and not here. Each process made their base model anew, so runs
that were compared had begun elsewhere, and what they measured was mostly the noise of sampling. Ember minus AdamW, one rate,
n = 8: +0.0032 [-0.0032, +0.0097] with 8 completions, +0.0020 [-0.0039, +0.0078] with 64, and +0.0084 [+0.0029, +0.0140] with
256. The runs with two rates that replace them begin with one file and are rewarded for working a sum out.
"""

_REFUSED = """
Runs are compared only where text, base model and settings are the same. These are not, so no difference is shown:
"""

_ESTIMATES = """
Where tables are tied, the full second moment is better than Ember's. These estimates have O(V + D) numbers too
(`benchmarks/evidence/variants.py`): a profile in which each active row counts the same; a profile for each of eight classes of
tokens, by the size of their gradient; a flatter profile (its root); and an average that forgets when a token occurs and not in
each step. Each is at its own best rate. On the tied table no difference to Ember was seen for any of them, so what
the full second moment has there is not explained yet.
"""

_PICTURES = """
Below zero Ember is better; the grey band is the margin of 0.01.

![Ember minus AdamW and minus Adam without momentum, over the number of steps](images/evidence_lengths.png)

![The same over the size of the tables and of the batch](images/evidence_scaling.png)

![Loss against the bytes of the tables' state](images/evidence_pareto.png)
"""

_REWARDS = """
Reinforcement learning: sums that have to be right and worked out, learnt in the tables alone, the body frozen. The loss is the
share of held-out sums without reward.

![Reward over the run](images/evidence_rewards.png)
"""

_ADVICE = """
## What to make of it

* **Rate of the tables.** The table below has the best rates as multiples of the body's. Begin there, and try a third and three
  times of it.
* **b2.** Keep 0.999. Between 0.99 and 0.9999 it hardly matters in runs of this length, and b2 by half-life in tokens was no
  better; at 0.9 and below the loss is clearly higher ([forms of Ember](evidence_runs.md#forms-of-ember)).
* **When not to.** Above, Ember is nowhere higher than AdamW with b1 = 0.9; in reinforcement learning that is open. Where V x D
  numbers of state fit, Adam without momentum is better in reinforcement learning, and a little with tied tables and in
  fine-tuning.

![Loss against the rate of the tables](images/evidence_rates.png)
"""

_FORMS = """
## Forms of Ember

`feature_mean="active_rows"` is the estimator that the paper came with. One setting does not decide for another: below is where
it was better and where worse, each at its own best rate.
"""
