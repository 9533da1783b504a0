"""The spectral norm of a table: as a loss term, and held below a bound, by power iteration with a vector of D numbers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from .._math.axes import TableAxes
from .._math.mean_square import compute_dtype
from .._math.mesh import in_auto_mode, spec_entries, spec_of
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.hyperparameters import checked_positive
from .._tree.inputs import check_array, checked_integer
from .._tree.tables import Table
from ._over_updates import Rule, on_tables
from ._singular import norm_along, power_iteration, square_along
from ._terms import checked_whole_table, times

_REASON = "its spectral norm was asked for"


def singular_vector(table: Any, vector: Any = None, *, token_axis: int = 0, iterations: int = 1) -> jax.Array:
    r"""The first right singular vector of a table by power iteration, from a vector that is carried from step to step.

    .. math:: v \leftarrow W^\top W v / \|W^\top W v\|

    The error shrinks by :math:`(\sigma_2 / \sigma_1)^2` in each iteration; that of the norm :math:`\|W v\|`, which is never too
    large, by the square of this. Each reads the table twice. As a table moves slowly, one iteration a step follows it. Constant
    for the gradient. On a mesh a vector of V and one of D numbers are summed over the devices that share the other axis.

    Args:
      table: as for `anisotropy`.
      vector: of the features' shape, (D,): what the last step returned; zeros or None for a fixed vector to start with.
      token_axis: the axis that counts the tokens.
      iterations: how many, 0 or more.

    Returns:
      A unit vector of the features' shape, float32 (float64 for float64), zeros for a table of zeros.

    Raises:
      TypeError: the table is no array of real floats, or a `RowSlice`; `iterations` is no integer.
      ValueError: an axis out of range, an empty table, a vector of another shape, negative `iterations`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> v = regularizers.singular_vector(jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), iterations=20)
      >>> print(abs(v.round(4)))
      [1. 0.]

    References:
      Yoshida and Miyato, https://arxiv.org/abs/1705.10941; docs/regularizers.md
    """
    array, axes = checked_whole_table(table, token_axis, _REASON)
    return _iterated(array, axes, vector, _checked_iterations(iterations))


def spectral_penalty(
    table: Any,
    coefficient: jax.typing.ArrayLike = 1.0,
    vector: Any = None,
    *,
    token_axis: int = 0,
    iterations: int | None = None,
) -> jax.Array:
    r"""Half the squared spectral norm of a table, times a coefficient.

    .. math:: \frac{c}{2} \sigma_1(W)^2, \qquad \text{with gradient}\quad c\, \sigma_1\, u_1 v_1^\top

    by power iteration, whose vector counts as a constant. Pass the vector of `singular_vector` that is carried through
    training; without it 20 iterations start afresh each time. A positive coefficient makes the largest direction smaller, a
    negative one larger, without bound.

    Args:
      table: as for `anisotropy`.
      coefficient: c, of either sign; may be traced.
      vector: as for `singular_vector`.
      token_axis: the axis that counts the tokens.
      iterations: of the vector before it is used; None is 20 without a vector, and 0 with one.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      TypeError: as `singular_vector`; the coefficient is no number.
      ValueError: as `singular_vector`; the coefficient is not finite.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> table = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> v = regularizers.singular_vector(table, iterations=20)  # in a train step: one iteration, from the last step's vector
      >>> print(f"{regularizers.spectral_penalty(table, 0.1, v):.3f}")
      0.450
      >>> print(jax.grad(regularizers.spectral_penalty)(table).round())
      [[3. 0.]
       [0. 0.]]

    References:
      Yoshida and Miyato, "Spectral norm regularization", https://arxiv.org/abs/1705.10941; docs/regularizers.md
    """
    array, axes = checked_whole_table(table, token_axis, _REASON)
    default = 20 if vector is None else 0
    vector = _iterated(array, axes, vector, default if iterations is None else _checked_iterations(iterations))
    square = in_auto_mode(lambda x, v: square_along(x, v, axes), PartitionSpec, array, vector)
    return times(coefficient, square / 2)


class SpectralState(NamedTuple):
    """State of `normalize_spectral_norm`: for each table the singular vector, (D,) float32."""

    vector: Any


def normalize_spectral_norm(
    max_norm: jax.typing.ArrayLike, *, iterations: int = 1, tables: DimensionNumbersLike = AUTO
) -> optax.GradientTransformationExtraArgs:
    r"""Changes updates so that no table's spectral norm exceeds a bound after the step: the last transformation of a chain.

    .. math:: u \leftarrow W' \min(1, \; m / \|W' v\|) - W, \qquad W' = W + u

    with v from `singular_vector` of :math:`W'`, carried in the state: D numbers for each table. While the norm is below the bound
    an update passes bit for bit. :math:`\|W' v\|` is at most the norm; until v has converged, in the first steps, tables may
    be larger than the bound by what it lacks. Every step reads the table `2 iterations + 1` times more.

    Put it behind everything that scales updates, the learning rate too: `optax.chain(ember(1e-2, optax.adamw(1e-3)),
    normalize_spectral_norm(10.0))`.

    Args:
      max_norm: the bound m, above zero.
      iterations: of power iteration in each step.
      tables: which leaves are tables, as in `ember`; all others pass unchanged. Each table of a stack has a norm of its own.

    Returns:
      A `GradientTransformationExtraArgs` with state `SpectralState`. `update` needs the parameters. Row-sparse updates are
      refused: the whole table is scaled.

    Raises:
      TypeError: `max_norm` is no number, `iterations` no integer; at update, a state of something else.
      ValueError: `max_norm` is not above zero, `iterations` below 1; at init, no table is found; at update, compact updates.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember, regularizers
      >>> params = {"wte": {"embedding": jnp.full((8, 4), 2.0)}, "dense": {"kernel": jnp.ones((4, 4))}}  # norms 11.3 and 4
      >>> tx = optax.chain(ember(1e-2, optax.adamw(1e-3)), regularizers.normalize_spectral_norm(10.0))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(f"{jnp.linalg.norm(params['wte']['embedding'], 2):.3f}")
      10.000

    References:
      Miyato et al., "Spectral normalization", https://arxiv.org/abs/1802.05957; docs/regularizers.md
    """
    bound = checked_positive(max_norm, "max_norm", "the largest spectral norm, for example max_norm=10.0")
    count = _checked_iterations(iterations, least=1)

    def step(table: Table, update, param, kept, given):
        del given
        axes = table.axes
        assert axes is not None
        moved = param.astype(compute_dtype(param)) + update.astype(compute_dtype(param))
        vector = power_iteration(moved, kept, axes, count)
        norm = norm_along(moved, vector, axes)
        norm = jnp.expand_dims(norm, [axis for axis in range(param.ndim) if axis not in axes.batch])
        limit = jnp.asarray(bound, norm.dtype)
        scaled = moved * (limit / jnp.where(norm > limit, norm, limit)) - param.astype(moved.dtype)
        return jnp.where(norm > limit, scaled.astype(update.dtype), update), vector.astype(kept.dtype)

    rule = Rule(
        "normalize_spectral_norm",
        step,
        keeps="nu_feature",
        needs_params="It bounds the norm of what they will be.",
        needs_all_rows="it scales the whole table.",
    )
    return on_tables(rule, tables, SpectralState)


def _iterated(array: jax.Array, axes: TableAxes, vector: Any, iterations: int) -> jax.Array:
    shape = tuple(array.shape[axis] for axis in axes.feature)
    if vector is None:
        vector = jnp.zeros(shape, compute_dtype(array))
    check_array(vector, "vector", floating=True)
    if jnp.shape(vector) != shape:
        raise ValueError(
            f"vector must have the shape of the features, {shape}, for a table of shape {array.shape} with the token axis "
            f"{axes.token[0]}, got {jnp.shape(vector)}; pass what singular_vector returned, or None."
        )

    def iterate(array, vector):
        return power_iteration(array, vector, axes, iterations)

    def spec():
        return spec_of(spec_entries(array)[axis] for axis in axes.feature)

    return in_auto_mode(iterate, spec, jax.lax.stop_gradient(array), jax.lax.stop_gradient(jnp.asarray(vector)))


def _checked_iterations(iterations: Any, least: int = 0) -> int:
    count = checked_integer(iterations, "iterations", 1)
    if count < least:
        raise ValueError(f"iterations must be at least {least}, got {count}; pass a number like 1.")
    return count
