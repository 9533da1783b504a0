"""The page of measured statements: what is said, which numbers, and by which rule they make it true or not."""

import textwrap
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any, NamedTuple

from benchmarks.evidence.statement_effects import effects_section
from benchmarks.evidence.statement_model import model_section
from benchmarks.evidence.statement_runs import AGED, DISPLACEMENTS, RECENT, SILENT
from benchmarks.harness.report import markdown

OPTIMIZERS = {"adamw": "AdamW", "ember": "Ember"}
TRUE, NOT_TRUE, NULL = "true", "not true", "true, but no different from the null"
Of = Callable[[str, str], float]


class Statement(NamedTuple):
    """What is said and by whom, how it is measured, which numbers, and when it counts as true."""

    title: str
    says: str
    measured: str
    rows: dict[str, str]
    verdict: Callable[[Of], str]
    rule: str


def page(results: dict[str, Any]) -> str:
    """The document, from results alone."""
    values = {o: _values(results["runs"], o) for o in OPTIMIZERS}
    seeds = {OPTIMIZERS[o]: len(next(iter(of.values()), [])) for o, of in values.items()}
    command = "python -m benchmarks.evidence.statements" + ("" if results["steps"] == 300 else f" --steps {results['steps']}")
    text = _HEAD.format(
        command=command,
        steps=results["steps"],
        seeds=" and ".join(f"{count} of {name}" for name, count in seeds.items()),
        machine=results["machine"],
    )
    verdicts = [(statement.title, statement.verdict(_means(values))) for statement in STATEMENTS]
    sections = [section(statement, values) for statement in STATEMENTS]
    if results.get("effects"):
        sections.append("\n" + effects_section(results["effects"], OPTIMIZERS))
    if "SmolLM2" in results:
        sections.append("\n" + model_section(results["SmolLM2"]))
    return "\n".join([text, markdown(verdicts, ("statement", "verdict"), names=2), *sections, ""])


def section(statement: Statement, values: dict[str, dict[str, list[float]]]) -> str:
    """One statement: what was measured, the numbers, the verdict."""
    rows = [(label, *(_cell(values[o][name]) for o in OPTIMIZERS)) for label, name in statement.rows.items()]
    table = markdown(rows, ("", *OPTIMIZERS.values()))
    verdict = f"**{statement.verdict(_means(values))}** ({statement.rule})"
    parts = (
        f"## {statement.title}",
        _wrapped(statement.says),
        _wrapped(statement.measured),
        table,
        _wrapped(f"Verdict: {verdict}."),
    )
    return "\n" + "\n\n".join(parts)


def _values(runs: dict[str, dict[str, float]], optimizer: str) -> dict[str, list[float]]:
    of_runs = [numbers for name, numbers in runs.items() if name.startswith(f"{optimizer} seed")]
    return {name: [numbers[name] for numbers in of_runs] for name in of_runs[0]} if of_runs else {}


def _means(values: dict[str, dict[str, list[float]]]) -> Of:
    return lambda optimizer, name: mean(values[optimizer][name])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False)


def _cell(values: list[float]) -> str:
    return f"{mean(values):.3g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def _rank(of: Of) -> str:
    names = ("effective rank/embed", "effective rank/lm_head")
    apart = [of(o, name) / of(o, "effective rank/hidden") for o in OPTIMIZERS for name in names]
    if min(apart) > 1.1:
        return f"{TRUE}: it is higher"
    return f"{TRUE}: it is lower" if max(apart) < 1 / 1.1 else NOT_TRUE


def _no_agreement(of: Of) -> str:
    def largest(when: str) -> float:
        return max(abs(of(o, f"autocorrelation/{when}/{table}")) for o in OPTIMIZERS for table in ("embed", "lm_head"))

    if largest("second half") >= 0.1:
        return NOT_TRUE
    hidden = min(abs(of(o, "autocorrelation/second half/hidden")) for o in OPTIMIZERS)
    late = ", in the second half alone" if largest("first half") >= 0.1 else ""
    return (NULL if hidden < 0.1 else TRUE) + late


def _explained(of: Of) -> str:
    tables = [of(o, f"explained energy/{table}") for o in OPTIMIZERS for table in ("embed", "lm_head")]
    hidden = [of(o, "explained energy/hidden") for o in OPTIMIZERS]
    return NOT_TRUE if min(tables) < 0.5 else NULL if min(hidden) >= min(tables) else TRUE


def _ray(of: Of) -> str:
    groups = [f"ray share/{half} {table}" for half in ("rare", "frequent") for table in ("embed", "lm_head")]
    above = [
        of(o, group) - max(of(o, "ray share/hidden"), of(o, "ray share/random walk")) for o in OPTIMIZERS for group in groups
    ]
    return NOT_TRUE if min(of(o, group) for o in OPTIMIZERS for group in groups) < 0.8 else TRUE if min(above) > 0.05 else NULL


def _rare(of: Of) -> str:
    aged = {o: of(o, "row step/after a long silence/embed") / of(o, "row step/recent/embed") for o in OPTIMIZERS}
    ratios = {o: max(of(o, "row step/largest over recent/embed"), aged[o]) for o in OPTIMIZERS}
    said = {"Adam": ratios["adamw"] >= 100, "Ember": ratios["ember"] <= 3}
    wrong = [name for name, holds in said.items() if not holds]
    return TRUE if not wrong else f"{NOT_TRUE} of {', nor of '.join(wrong)}"


def _anisotropy(of: Of) -> str:
    lower = [
        of("ember", f"mean cosine/after training/rare {table}") < of("adamw", f"mean cosine/after training/rare {table}") - 0.02
        for table in ("embed", "lm_head")
    ]
    return TRUE if all(lower) else "true of one table" if any(lower) else NOT_TRUE


def _tables(name: str, label: str, *others: str) -> dict[str, str]:
    kinds = {"embed": "embedding", "lm_head": "head", "hidden": "hidden matrices"}
    return {f"{label}, {kinds[kind]}": f"{name}/{kind}" for kind in ("embed", "lm_head", *others)}


_HALVES = {
    f"{half} tokens, {of}": f"{half} {t}"
    for t, of in (("embed", "embedding"), ("lm_head", "head"))
    for half in ("rare", "frequent")
}

_HEAD = """# What is said of tokens, measured

Made by `{command}` from
`benchmarks/results/statements.json`; means and standard deviations over seeds ({seeds}), {steps} steps of the
main job of `examples/pretrain.py` (4 layers, 128 features, 8,192 tokens, untied; 1,024 tokens a step; learning rates of the
README, their schedule over the {steps} steps). {machine}.

This is a small model and a short run. A verdict says what holds here, not what holds at every size. The thresholds of the
verdicts were chosen after the first run had been seen. The numbers let you judge by other thresholds.

Every matrix is measured in rows of 128 features, the vectors of the residual stream. So tables and hidden matrices
(of all four blocks) can be compared. Rare and frequent tokens are the two halves of the tokens that occurred in the run.
"""

STATEMENTS = (
    Statement(
        "The rank of a table's gradient is not that of a hidden gradient",
        "The abstract (arXiv 2607.01455) says that the gradient geometry of tables is distinct from that of hidden weights.",
        "Effective rank of the gradient of one batch, mean of five batches of a run; at most 128 for every matrix.",
        _tables("effective rank", "effective rank", "hidden"),
        _rank,
        "true if it differs by a tenth, in one direction, for both tables and both optimizers",
    ),
    Statement(
        "Gradients of successive batches do not agree, so there is nothing for a first moment to add up",
        "Why Ember has no first moment.",
        "Autocorrelation of lag 1 over all pairs of successive gradients. Hidden matrices are the null.",
        _tables("autocorrelation/first half", "first half", "hidden")
        | _tables("autocorrelation/second half", "second half", "hidden"),
        _no_agreement,
        "true if below 0.1 in both tables; no different if it is that of hidden matrices too, with either optimizer",
    ),
    Statement(
        "Token times feature explains the second moment",
        "What Ember keeps instead of Adam's `nu`.",
        "Sum of g^2 over the second half of a run: the energy that Ember's product explains, that of the best product, and the "
        "share of the variance of its logarithm. Hidden matrices are the null.",
        _tables("explained energy", "explained energy", "hidden")
        | _tables("rank one share", "best product", "hidden")
        | _tables("explained log variance", "variance of logarithms", "hidden"),
        _explained,
        "true if it explains half of the energy; no different if it explains as much of hidden matrices",
    ),
    Statement(
        "Tokens move along a ray",
        "The abstract: the trajectory of tokens is well described by a one-dimensional ray.",
        f"Share of the displacement energy of each row along its best direction, {DISPLACEMENTS} snapshots after the first, mean "
        "of the rows that moved. A token seen once has the share 1, wherever it goes. Nulls: a random walk in 128 dimensions "
        "whose steps follow the learning rate, and rows of hidden matrices.",
        {label: f"ray share/{group}" for label, group in _HALVES.items()}
        | {"hidden rows": "ray share/hidden", "random walk": "ray share/random walk"}
        | {f"straightness, {label}": f"ray straightness/{group}" for label, group in _HALVES.items()}
        | {"straightness, hidden rows": "ray straightness/hidden", "straightness, random walk": "ray straightness/random walk"},
        _ray,
        "true if the share is 0.8 for all; different if it is above both nulls by 0.05",
    ),
    Statement(
        "Late in training Adam takes steps 10^2 to 10^4 times too large on rare rows, Ember 1 to 3 times",
        "From the README of the authors' code (github.com/katop1234/ember), which does not say relative to what. With b1 = "
        "0.9 and b2 = 0.999 the first step of a row "
        "without history is 3.2 learning rates with Adam, ten times that with the steps that follow, and 31.6 with Ember, more "
        "where its features are not those of the profile.",
        "Root mean square step of the rows of each batch in the last fifth of a run, in learning rates: rows whose token was "
        f"silent for {SILENT} steps or never seen, against those seen within {RECENT}; and, for a silence that no short run has, "
        f"with the state of these rows aged by {AGED:,} steps.",
        {"rows seen lately, embedding": "row step/recent/embed", "silent rows, embedding": "row step/silent/embed"}
        | {"silent / lately, embedding": "row step/silent over recent/embed"}
        | {"largest / lately, embedding": "row step/largest over recent/embed"}
        | {"silent / lately, head": "row step/silent over recent/lm_head"}
        | {"largest / lately, head": "row step/largest over recent/lm_head"}
        | {f"after {AGED:,} silent steps, embedding": "row step/after a long silence/embed"},
        _rare,
        "true of Adam if the largest step, or that after the long silence, is 100 times that of a row seen lately; of Ember "
        "if at most 3 times",
    ),
    Statement(
        "Rare tokens are less anisotropic with Ember than with AdamW",
        "Coupled Adam (arXiv 2502.08441) blames Adam's second moment for anisotropic embeddings.",
        "Mean cosine of two rows, IsoScore and mean norm after training; before it, the cosine is 0 and IsoScore 0.96.",
        {f"mean cosine, {label}": f"mean cosine/after training/{group}" for label, group in _HALVES.items()}
        | {f"mean cosine, centred, {label}": f"centred mean cosine/after training/{group}" for label, group in _HALVES.items()}
        | {f"IsoScore, {label}": f"IsoScore/after training/{group}" for label, group in _HALVES.items()}
        | {f"mean norm, {label}": f"mean norm/after training/{group}" for label, group in _HALVES.items()},
        _anisotropy,
        "true if the mean cosine of rare tokens is lower by 0.02 in both tables",
    ),
)
