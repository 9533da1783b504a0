"""Three measures of how evenly the rows of a table point in all directions. docs/geometry.md has the criticism of each."""

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

    It is computed in closed form from the mean of the unit rows, in O(V D). It is near 0 for rows in all directions, and 1 for
    rows in one direction. A few large coordinates alone can make it large, and it does not show the other directions.

    Args:
      table: as for `spectrum`.
      token_axis: the axis of the tokens.
      centered: subtract the (weighted) mean row first.
      weights: as for `spectrum`. The weight of a pair is the product of its weights.

    Returns:
      A scalar in [-1 / (V - 1), 1]. A row of zeros has no direction and is left out. NaN if fewer than two rows are left, or if a
      row with a weight above 0 has a NaN or a norm above 1e32.

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

    over the eigenvectors c of :math:`W^\top W` with both signs. The sign of an eigenvector is arbitrary, so with one sign the
    score would depend on the linear algebra library. (Published numbers use the sign that the library gave, and may be higher.)
    It is computed by logsumexp, so that nothing overflows. It depends on the scale of the table. O(V D^2 + D^3).

    Args:
      table: as for `spectrum`.
      token_axis: the axis that counts the tokens.
      centered: subtract the (weighted) mean row first.
      weights: as for `spectrum`.

    Returns:
      A scalar in [0, 1], which is 1 for an isotropic table and for a table of zeros. NaN if all weights are 0, or if a row with a
      weight above 0 has a NaN.

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

    The steps of the definition (normalise the variances, measure the distance to equal ones, rescale) simplify to this formula,
    a rescaled participation ratio, which needs no eigenvalues. C is the covariance, so rows are centred by default.
    `centered=False` takes :math:`W^\top W` for C. The score does not depend on scale, rotation and mean. O(V D^2).

    Args:
      table: as for `spectrum`.
      token_axis: the axis that counts the tokens.
      centered: subtract the (weighted) mean row first; True by definition.
      weights: as for `spectrum`.

    Returns:
      A scalar in [0, 1]: 0 for one direction, 1 for equal variances. NaN for one feature, for rows that are all equal, and if a
      row with a weight above 0 has a NaN.

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
    """`iso_score` of rows, which may be centred."""
    y, _ = weighted(rows._replace(weight=share(rows)))
    # Both Gram matrices have these traces.
    size = y.size // y.shape[rows.token]
    covariance = gram(y, rows.features if size <= y.shape[rows.token] else (rows.token,))
    participation = jnp.square(jnp.trace(covariance)) / jnp.sum(jnp.square(covariance))
    # Clipped, because rounding could leave the range of the score.
    return jnp.clip((participation - 1) / (size - 1), 0, 1) if size > 1 else participation * jnp.nan
