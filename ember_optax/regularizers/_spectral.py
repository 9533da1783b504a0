"""The spectral norm of a table by power iteration: as a loss term, and as a transformation that keeps it below a bound."""

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
from ._singular import norm_along, power_iteration, square_along
from ._terms import checked_whole_table, times
from ._transformation import Rule, on_tables

_REASON = "its spectral norm was asked for"


def singular_vector(table: Any, vector: Any = None, *, token_axis: int = 0, iterations: int = 1) -> jax.Array:
    r"""The first right singular vector of a table by power iteration, which starts from the vector of the last step.

    .. math:: v \leftarrow W^\top W v / \|W^\top W v\|

    The error shrinks by :math:`(\sigma_2 / \sigma_1)^2` in each iteration. The error of the norm :math:`\|W v\|`, which is never
    too large, shrinks by the square of this. Each iteration reads the table twice. A table moves slowly, so one iteration for
    each step is enough. The vector is a constant for the gradient. On a mesh, a vector of V and one of D numbers are summed over
    the devices that shard the other axis.

    Args:
      table: as for `anisotropy`.
      vector: the result of the last step, of the features' shape, (D,). Zeros or None start with a fixed vector.
      token_axis: the axis of the tokens.
      iterations: the number of iterations, 0 or more.

    Returns:
      A unit vector of the features' shape, float32 (float64 for float64). Zeros for a table of zeros.

    Raises:
      TypeError: the table is not an array of real floats, or is a `RowSlice`; `iterations` is not an integer.
      ValueError: an axis is out of range, the table is empty, the vector has another shape, or `iterations` is negative.

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
    return _iterated_vector(array, axes, vector, _checked_iterations(iterations))


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

    It uses power iteration, whose vector is a constant for the gradient. Pass the vector of `singular_vector` of the last step.
    Without it, each call starts again with 20 iterations. A positive coefficient makes the largest direction smaller. A negative
    one makes it larger without bound.

    Args:
      table: as for `anisotropy`.
      coefficient: c, of either sign, which may be traced.
      vector: as for `singular_vector`.
      token_axis: the axis of the tokens.
      iterations: the number of iterations before the vector is used. None is 20 without a vector, and 0 with a vector.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      TypeError: as `singular_vector`; the coefficient is not a number.
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
    vector = _iterated_vector(array, axes, vector, default if iterations is None else _checked_iterations(iterations))
    square = in_auto_mode(lambda x, v: square_along(x, v, axes), PartitionSpec, array, vector)
    return times(coefficient, square / 2)


class SpectralState(NamedTuple):
    """State of `normalize_spectral_norm`: the singular vector of each table, (D,) float32."""

    vector: Any


def normalize_spectral_norm(
    max_norm: jax.typing.ArrayLike, *, iterations: int = 1, tables: DimensionNumbersLike = AUTO
) -> optax.GradientTransformationExtraArgs:
    r"""Changes updates so that the spectral norm of every table is within a bound after the step. Put it last in the chain.

    .. math:: u \leftarrow W' \min(1, \; m / \|W' v\|) - W, \qquad W' = W + u

    where v is the `singular_vector` of :math:`W'`. The state holds v, which is D numbers for each table. While the norm is below
    the bound, updates do not change, bit for bit. :math:`\|W' v\|` is at most the norm, and smaller until v has converged. So in
    the first steps the norm of a table may exceed the bound by this difference. Every step reads the table `2 iterations + 1`
    times more.

    Put it after everything that scales updates, including the learning rate: `optax.chain(ember(1e-2, optax.adamw(1e-3)),
    normalize_spectral_norm(10.0))`.

    Args:
      max_norm: the bound m, above zero.
      iterations: the number of power iterations in each step.
      tables: which leaves are tables, as in `ember`. All other leaves do not change. Each table of a stack has its own norm.

    Returns:
      A `GradientTransformationExtraArgs` with state `SpectralState`. `update` needs the parameters. Row-sparse updates raise,
      because the whole table is scaled.

    Raises:
      TypeError: `max_norm` is not a number, or `iterations` is not an integer; at update, the state is that of another
        transformation.
      ValueError: `max_norm` is not above zero, or `iterations` is below 1; at init, no table is found; at update, an update is
        compact.

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


def _iterated_vector(array: jax.Array, axes: TableAxes, vector: Any, iterations: int) -> jax.Array:
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
