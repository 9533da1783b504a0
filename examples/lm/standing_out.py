"""Whether the tokens of a table that look least trained differ from what a table of random numbers shows."""

import numpy as np

from ember_optax import geometry

DRAWS = 3  # random tables
MARGIN = 1.5  # gaps of random tables count as this much larger
TIMES = 10  # what stands out is this many times as many tokens as random tables have
_SMALLEST_SPREAD = 1e-3  # of the bulk's scores: differences of rounding are no evidence


def gaps(score: np.ndarray, tied: bool) -> np.ndarray:
    r"""How far each score is below the bulk of the scores, in units of the bulk's spread, largest first.

    .. math:: gap_i = \frac{median(s) - s_i}{median(s) - quartile(s)}

    where s is the logarithm of a norm (untied) or a cosine distance (tied). The unit of the table cancels. Rows of zeros are not
    part of the bulk of norms; their gap is infinite.

    Args:
      score: of `geometry.under_trained_tokens`, (V,).
      tied: as it was told there.
    """
    bulk = score if tied else np.log(score[score > 0])
    bulk = np.sort(bulk.astype(np.float64))
    if not bulk.size:
        return np.zeros(len(score))
    median, quartile = bulk[len(bulk) // 2], bulk[len(bulk) // 4]
    found = (median - bulk) / max(median - quartile, _SMALLEST_SPREAD)
    return np.concatenate([np.full(len(score) - len(bulk), np.inf), found])


def number_standing_out(score: np.ndarray, features: int, known_unused: list[int] | None, tied: bool) -> int:
    """How many of the lowest scores stand out.

    `DRAWS` tables of independent normal numbers of the same size get the same scores. The first k tokens stand out where each
    random table has at most k / `TIMES` gaps that are as large as gap number k after multiplication by `MARGIN`. The largest
    such k is returned, 0 where there is none.

    The tokens that a distance is measured from are near to their own mean in every table. So the lowest scores are also compared
    without the first r, where r is the number of these tokens.

    Args:
      score: of `geometry.under_trained_tokens`, (V,).
      features: D.
      known_unused: as it was told there.
      tied: as it was told there.
    """
    found = gaps(score, tied)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        table = random.standard_normal((len(score), features), np.float32)
        of_table = geometry.under_trained_tokens(table, known_unused=known_unused, tied=tied)
        drawn.append(gaps(np.asarray(of_table.score), tied))
    references = len(set(known_unused)) if known_unused else max(1, len(score) // 1000)  # as `under_trained_tokens` has it
    return max(_number(found, drawn, first) for first in ({0, references} if tied else {0}))


def _number(found: np.ndarray, drawn: list[np.ndarray], first: int) -> int:
    """The largest k of the definition, after the `first` gaps of each table."""
    place = 1 + np.arange(len(found) - first)
    usual = [
        len(place) - np.searchsorted(MARGIN * of_table[: first - 1 if first else None : -1], found[first:]) for of_table in drawn
    ]
    most = np.max(place[np.max(usual, 0) * TIMES <= place], initial=0)
    return int(first + most if most else 0)
