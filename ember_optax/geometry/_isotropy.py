"""How evenly the rows of a table point into all directions: three measures, each with its critics (docs/geometry.md)."""

from typing import Any

import jax
import jax.numpy as jnp

from .._math.mean_cosine import mean_cosine_of
from .._math.weighted_rows import Rows, share
from ._measured import measured
from ._spectrum import Principal, gram, principal, weighted


def mean_cosine_similarity(table: Any, *, token_axis: int = 0, centered: bool = False, weights: Any = None) -> jax.Array:
    r"""The mean cosine between two different rows of a table.

    .. math::
        \frac{\sum_{i \ne j} w_i w_j \cos(x_i, x_j)}{\sum_{i \ne j} w_i w_j}
        = \frac{\|\sum_i p_i x_i / \|x_i\|\|^2 - \sum_i p_i^2}{1 - \sum_i p_i^2}, \qquad p_i = w_i / \textstyle\sum_j w_j

    In closed form from the mean of the unit rows, so O(V D). Near 0 for rows in all directions, 1 for rows in one. A few
    large coordinates can make it on their own, and it says nothing of the other directions.

    Args:
      table: as for `spectrum`.
      token_axis: the axis that counts the tokens.
      centered: subtract the (weighted) mean row first.
      weights: as for `spectrum`; a pair counts with the product of its weights.

    Returns:
      A scalar in [-1 / (V - 1), 1]. A row of zeros has no direction and is left out; NaN with less than two rows left, or if a
      row that takes part holds a NaN or is longer than 1e32.

    Raises:
      TypeError: as `spectrum`.
      ValueError: as `spectrum`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> print(geometry.mean_cosine_similarity(jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])))
      0.0

    References:
      Ethayarajh, https://arxiv.org/abs/1909.00512; criticised as a measure of isotropy by Rudman et al.,
      https://arxiv.org/abs/2108.07344; docs/geometry.md
    """
    return measured(mean_cosine_of, table, token_axis, centered, weights)


def partition_isotropy(table: Any, *, token_axis: int = 0, centered: bool = False, weights: Any = None) -> jax.Array:
    r"""How little the partition function of a log-linear model depends on the direction of the context.

    .. math:: I(W) = \frac{\min_c Z(c)}{\max_c Z(c)}, \qquad Z(c) = \sum_i w_i \exp(c^\top x_i)

    over the eigenvectors c of :math:`W^\top W`, of both signs: an eigenvector has no sign of its own, and with one sign the score
    would depend on the linear algebra library. (Published numbers are of whatever sign that one gave, and may be higher for it.)
    From logarithms of sums of exponentials, so that nothing overflows. It depends on the scale of the table. O(V D^2 + D^3).

    Args:
      table: as for `spectrum`.
      token_axis: the axis that counts the tokens.
      centered: subtract the (weighted) mean row first.
      weights: as for `spectrum`.

    Returns:
      A scalar in [0, 1], 1 for an isotropic table and for one of zeros; NaN if no token takes part, or if a row that takes part
      holds a NaN.

    Raises:
      TypeError: as `spectrum`.
      ValueError: as `spectrum`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> print(f"{geometry.partition_isotropy(jnp.array([[1.0], [1.0]])):.4f}")  # exp(-1) / exp(1)
      0.1353

    References:
      Mu and Viswanath, https://arxiv.org/abs/1702.01417; criticised as a measure of isotropy by Rudman et al.,
      https://arxiv.org/abs/2108.07344; docs/geometry.md
    """
    return measured(_partition_isotropy, table, token_axis, centered, weights)


def iso_score(table: Any, *, token_axis: int = 0, centered: bool = True, weights: Any = None) -> jax.Array:
    r"""IsoScore: the share of directions that a table fills evenly, from the eigenvalues of its covariance.

    .. math:: \frac{1}{D - 1} \Big( \frac{(\mathrm{tr}\, C)^2}{\|C\|_F^2} - 1 \Big)

    The steps of the definition (normalise the variances, measure the distance to equal ones, rescale) come down to this, without
    eigenvalues: a rescaled participation ratio. Covariance means centred rows, hence `centered=True`; False takes
    :math:`W^\top W` for C. Independent of scale, rotation and mean. O(V D^2).

    Args:
      table: as for `spectrum`.
      token_axis: the axis that counts the tokens.
      centered: subtract the (weighted) mean row first; True by definition.
      weights: as for `spectrum`.

    Returns:
      A scalar in [0, 1]: 0 for one direction, 1 for equal variances. NaN where it is not defined: one feature, rows that are all
      equal, or a NaN in a row that takes part.

    Raises:
      TypeError: as `spectrum`.
      ValueError: as `spectrum`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> print(geometry.iso_score(jnp.concatenate([jnp.eye(4), -jnp.eye(4)])))
      1.0

    References:
      Rudman et al., "IsoScore", https://arxiv.org/abs/2108.07344. Lower is often better for a task,
      https://arxiv.org/abs/2305.19358; docs/geometry.md
    """
    return measured(iso_score_of, table, token_axis, centered, weights)


def _partition_isotropy(rows: Rows) -> jax.Array:
    return partition_isotropy_of(principal(rows), rows)


def partition_isotropy_of(along: Principal, rows: Rows) -> jax.Array:
    """`partition_isotropy` from a table's coordinates along its principal directions."""
    weight_V1 = share(rows).reshape(-1, 1)
    log_z = [jax.scipy.special.logsumexp(sign * along.coordinates, 0, b=weight_V1) for sign in (1, -1)]
    return jnp.exp(jnp.min(jnp.stack(log_z)) - jnp.max(jnp.stack(log_z)))


def iso_score_of(rows: Rows) -> jax.Array:
    """`iso_score` of rows, centred or not."""
    y, _ = weighted(rows._replace(weight=share(rows)))
    # Both Gram matrices have these traces.
    size = y.size // y.shape[rows.token]
    covariance = gram(y, rows.features if size <= y.shape[rows.token] else (rows.token,))
    participation = jnp.square(jnp.trace(covariance)) / jnp.sum(jnp.square(covariance))
    # Rounding must not leave the range of the score.
    return jnp.clip((participation - 1) / (size - 1), 0, 1) if size > 1 else participation * jnp.nan
