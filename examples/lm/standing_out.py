"""Whether the tokens of a table that look least trained differ from what a table of random numbers shows."""

import numpy as np

from ember_optax import geometry

DRAWS = 3  # random tables
MARGIN = 1.4  # times the largest gap among the random tables
_SMALLEST_SPREAD = 1e-3  # of the scores of the bulk: rounding is no evidence


def gaps(score: np.ndarray, tied: bool) -> np.ndarray:
    r"""How far each score lies below the bulk of the scores, in units of the bulk's spread, largest first.

    .. math:: gap_i = \frac{median(s) - s_i}{median(s) - quartile(s)}

    where s is the logarithm of a norm (untied) or a cosine distance (tied). The unit of the table cancels. A row of zeros has an
    infinite gap.

    Args:
      score: of `geometry.under_trained_tokens`, (V,).
      tied: as it was told there.
    """
    with np.errstate(divide="ignore"):
        score = score.astype(np.float64) if tied else np.log(score.astype(np.float64))
    score = np.sort(score)
    median, quartile = score[len(score) // 2], score[len(score) // 4]
    spread = median - quartile if np.isfinite(quartile) else 0.0
    return (median - score) / max(spread, _SMALLEST_SPREAD)


def number_standing_out(score: np.ndarray, features: int, known_unused: list[int] | None, tied: bool, top: int) -> int:
    """How many of the `top` tokens with the lowest scores stand out.

    `DRAWS` tables of independent normal numbers of the same size get the same scores. Token number k of the order stands out
    where its gap is more than `MARGIN` times the gap of token number k of each random table. All tokens before the last that
    stands out count too.
    """
    found = gaps(score, tied)[:top]
    random = np.random.default_rng(0)
    usual = np.zeros_like(found)
    for _ in range(DRAWS):
        table = random.standard_normal((len(score), features), np.float32)
        drawn = geometry.under_trained_tokens(table, known_unused=known_unused, tied=tied).score
        usual = np.maximum(usual, gaps(np.asarray(drawn), tied)[:top])
    return int(np.max(np.flatnonzero(found > MARGIN * usual), initial=-1)) + 1
