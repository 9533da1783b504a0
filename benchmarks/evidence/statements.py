"""What is said of tokens, measured on the main job: trains with AdamW and with Ember, and writes docs/statements.md.

An interrupted measurement goes on with the runs that are missing; the page is made at the end.
"""

import sys
from pathlib import Path

import jax
from tqdm import tqdm

from benchmarks.evidence.statement_model import measure_model
from benchmarks.evidence.statement_page import OPTIMIZERS, page
from benchmarks.evidence.statement_runs import MODEL, measure
from benchmarks.harness.results import RESULTS, ROOT, load, machine, parser, save
from examples.lm.text import read_documents
from examples.lm.tokens import Corpus, default_cache_dir, load_corpus

PAGE = ROOT / "docs" / "statements.md"


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
    missing = [(o, seed) for seed in options.seeds for o in OPTIMIZERS if run_name(o, seed) not in results["runs"]]
    corpus = load_corpus(read_documents(None), MODEL.vocabulary_size, default_cache_dir()) if missing else None
    for optimizer, seed in missing:
        results["runs"][run_name(optimizer, seed)] = one_run(optimizer, seed, results["steps"], corpus)
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


def one_run(optimizer: str, seed: int, steps: int, corpus: Corpus | None) -> dict[str, float]:
    """What one run measured, in as many digits as a page shows, and some."""
    assert corpus is not None
    with tqdm(total=steps, desc=run_name(optimizer, seed), unit="step", mininterval=5) as bar:
        numbers = measure(optimizer, seed, steps, corpus, tick=lambda _: _advance(bar))
    jax.clear_caches()
    return _rounded(numbers)


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in numbers.items()}


def _advance(bar: tqdm) -> None:
    bar.update()


if __name__ == "__main__":
    main()
