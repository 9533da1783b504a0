"""The anisotropy of a table as a loss term."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from .._math.mean_cosine import differentiable_mean_cosine
from .._math.mesh import in_auto_mode
from ..geometry._measured import checked_weights
from ._terms import checked_whole_table, times


def anisotropy(table: Any, coefficient: jax.typing.ArrayLike = 1.0, *, token_axis: int = 0, weights: Any = None) -> jax.Array:
    r"""The mean cosine between two different rows of a table, times a coefficient of either sign.

    .. math::
        c \, \frac{\|\sum_i p_i u_i\|^2 - \sum_i p_i^2}{1 - \sum_i p_i^2}, \qquad
        u_i = x_i / \|x_i\|, \quad p_i = w_i / \textstyle\sum_j w_j

    For equal weights this is :math:`c\, (|\sum_i u_i|^2 - n) / (n (n - 1))`, with gradient
    :math:`c\, \frac{2 p_i}{1 - \sum p^2} (s - (s \cdot u_i) u_i) / \|x_i\|`, :math:`s = \sum_i p_i u_i`. With a positive
    coefficient, rows turn away from their common direction (cosine regularization). With a negative one, they turn towards it.
    Lower isotropy was often better for the task (I-STAR, whose measure is IsoScore of hidden states). The gradient is orthogonal
    to each row, so norms hardly change. O(V D), without a temporary of the table's size (docs/regularizers.md has the compiled
    memory). It needs every row, so it does not work for a table in row-sparse steps. On a mesh, vectors of D numbers (of V if
    features are sharded) and scalars are summed over the devices.

    Args:
      table: (V, D), or any layout with `token_axis`. All other axes together are features. Any real floating dtype.
      coefficient: c, which may be traced.
      token_axis: the axis of the tokens.
      weights: (V,) numbers that are not negative, which are constants for the gradient. None is a weight of one for each. A token
        of weight 0 is left out, for example a row of padding.

    Returns:
      A scalar, float32 (float64 for float64). A row of zeros has no direction, so it is left out and gets no gradient. NaN if
      fewer than two rows are left.

    Raises:
      TypeError: the table is not an array of real floats, or is a `RowSlice`; the coefficient is not a number.
      ValueError: an axis is out of range, the table is empty, weights have another shape or are negative, or the coefficient is
        not finite.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> table = jnp.array([[1.0, 0.0], [1.0, 1.0]])
      >>> print(f"{regularizers.anisotropy(table, 0.1):.4f}")  # a tenth of cos(45 degrees)
      0.0707
      >>> print(jax.grad(regularizers.anisotropy)(table)[0].round(3))  # away from the other row
      [0.    0.707]

    References:
      Gao et al., "Representation degeneration problem", https://arxiv.org/abs/1907.12009 (positive coefficient, of a head);
      Rudman and Eickhoff, "Stable anisotropic regularization", https://arxiv.org/abs/2305.19358 (both signs);
      docs/regularizers.md
    """
    array, axes = checked_whole_table(table, token_axis, "the mean cosine of all its rows was asked for")
    (token,) = axes.token
    weights = checked_weights(weights, array, token)
    value = in_auto_mode(lambda x, w: differentiable_mean_cosine(x, w, token), PartitionSpec, array, weights)
    return times(coefficient, value)
