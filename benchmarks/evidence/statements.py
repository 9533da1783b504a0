"""What is said of tokens, measured on the main job: trains with AdamW and with Ember, and writes docs/statements.md.

An interrupted measurement goes on with the runs that are missing; the page is made at the end.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
from tqdm import tqdm

from benchmarks.evidence.statement_effects import measure_effects
from benchmarks.evidence.statement_model import measure_model
from benchmarks.evidence.statement_page import OPTIMIZERS, page
from benchmarks.evidence.statement_runs import MODEL, Numbers, measure
from benchmarks.harness.results import RESULTS, ROOT, load, machine, parser, save
from examples.lm.text import read_documents
from examples.lm.tokens import Corpus, default_cache_dir, load_corpus

PAGE = ROOT / "docs" / "statements.md"
# What is measured of each run, by its name in the results.
PARTS = {"runs": measure, "effects": measure_effects}


def main() -> None:
    """Makes the runs that are missing, one after the other, and the page."""
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=300, help="steps of each run; the main job has 300")
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of parameters and batches")
    arguments.add_argument("--output", type=Path, default=RESULTS / "statements.json", help="results")
    arguments.add_argument("--page", type=Path, default=PAGE, help="the page")
    arguments.add_argument("--smollm2", type=Path, metavar="FILE", help="the .gguf file of the model, for one gradient of it")
    options = arguments.parse_args()
    results = load(options.output) or {"steps": options.steps, "machine": machine(), "runs": {}}
    if results["steps"] != options.steps:
        sys.exit(f"{options.output} holds runs of {results['steps']} steps; pass --steps {results['steps']} or another --output")
    corpus = None
    for part, measured in PARTS.items():
        runs = results.setdefault(part, {})
        for optimizer, seed in [(o, s) for s in options.seeds for o in OPTIMIZERS if run_name(o, s) not in runs]:
            corpus = corpus or load_corpus(read_documents(None), MODEL.vocabulary_size, default_cache_dir())
            runs[run_name(optimizer, seed)] = one_run(measured, optimizer, seed, results["steps"], corpus)
            save(options.output, results)
    if options.smollm2 and "SmolLM2" not in results:
        results["SmolLM2"] = _rounded(measure_model(options.smollm2))
        save(options.output, results)
    if lacking := [o for o in OPTIMIZERS if not any(name.startswith(f"{o} seed") for name in results["runs"])]:
        sys.exit(f"{options.output} has no run of {' or '.join(lacking)} to compare with; pass --seeds 0")
    options.page.write_text(page(results), encoding="utf-8")


def run_name(optimizer: str, seed: int) -> str:
    """The name of one run in the results."""
    return f"{optimizer} seed {seed}"


def one_run(measured: Callable[..., Numbers], optimizer: str, seed: int, steps: int, corpus: Corpus) -> Numbers:
    """What one run measured, in as many digits as a page shows, and some."""
    with tqdm(total=steps, desc=run_name(optimizer, seed), unit="step", mininterval=5) as bar:
        numbers = measured(optimizer, seed, steps, corpus, tick=lambda *_: _advance(bar))
    jax.clear_caches()
    return _rounded(numbers)


def _rounded(numbers: Numbers) -> Numbers:
    return {name: float(f"{value:.5g}") for name, value in numbers.items()}


def _advance(bar: tqdm) -> None:
    bar.update()


if __name__ == "__main__":
    main()
