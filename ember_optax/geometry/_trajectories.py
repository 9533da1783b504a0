"""Whether a token moves along a ray: statistics of its trajectory over snapshots, and the same statistics of a random walk."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._math.mean_square import compute_dtype
from .._math.mesh import in_auto_mode
from .._math.weighted_rows import larger_unit, norms
from .._tree.inputs import checked_integer, checked_key, shown
from ._gradients import check_same_shape
from ._measured import checked_table, token_spec
from ._streaming import Streaming


class RayState(NamedTuple):
    """The first and last row of each token, the leading directions so far, and three sums. It has the size of `rank` + 2 tables.

    Attributes:
      first: (V, F), the first snapshot.
      last: (V, F), the last snapshot.
      unit: (V,), a power of two near the longest displacement, so that squares stay in float32's range. Zero before the first.
      sketch: (V, rank, F), the directions times their singular values, in units of `unit`.
      energy: (V,), the sum of squared displacements over the snapshots, in units of `unit^2`.
      path: (V,), the length of the path.
      num_snapshots: the number of snapshots after the first, int32.
    """

    first: jax.Array
    last: jax.Array
    unit: jax.Array
    sketch: jax.Array
    energy: jax.Array
    path: jax.Array
    num_snapshots: jax.Array


class Rays(NamedTuple):
    """How straight each token moved. NaN for a token that did not move.

    Attributes:
      share: the share of the energy of displacements along one direction, in (0, 1], (V,). It is a lower bound, and exact for up
        to `rank` displacements.
      share_at_most: an upper bound of the share.
      straightness: the net displacement divided by the length of the path, in [0, 1], (V,).
      energy: the energy of the displacements, (V,), for weighted means over tokens. In float32, it is 0 for displacements below
        1e-19 and infinite for displacements above 1e19.
      num_displacements: the number of snapshots after the first, int32.
    """

    share: jax.Array
    share_at_most: jax.Array
    straightness: jax.Array
    energy: jax.Array
    num_displacements: jax.Array


def ray(*, token_axis: int = 0, rank: int = 3) -> Streaming:
    r"""The share of each token's displacement along one direction, streaming over snapshots of a table.

    .. math::
        d_t = w_t - w_0, \qquad share = \max_{\|c\| = 1} \frac{\sum_t (c^\top d_t)^2}{\sum_t \|d_t\|^2}, \qquad
        straightness = \frac{\|w_T - w_0\|}{\sum_t \|w_t - w_{t-1}\|}

    for each row w, over the snapshots t = 1 ... T after the first. A token on a ray from its starting point has the share 1. The
    share of a random walk is not much smaller. So compare with `random_walk` of the same number of snapshots, and with `ray` of
    the rows of a hidden matrix of the same run.

    The best direction is only known at the end. So the `rank` leading directions of each token are kept (by an incremental
    singular value decomposition that drops the others), in O(rank V D) memory. The share is exact for up to `rank` displacements.
    After that, the dropped directions make it too small. `share_at_most` is an upper bound.

    Args:
      token_axis: the axis that counts the tokens.
      rank: the number of directions that are kept for each token, at least 1.

    Returns:
      A `Streaming`: `init(table)` takes the first snapshot, `update(state, table)` each later one, `value(state)` is a `Rays`.

    Raises:
      TypeError: a table is not an array of real floats, or `rank` is not an integer.
      ValueError: `rank` is below 1, an axis is out of range, a table is empty, or its shape changes.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import geometry
      >>> init, update, value = geometry.ray()
      >>> state = init(jnp.zeros((2, 3)))
      >>> for row in ([1.0, 0.0, 0.0], [1.0, 2.0, 0.0]):
      ...     state = update(state, jnp.stack([jnp.asarray(row), jnp.ones(3) * sum(row)]))
      >>> print(value(state).share.round(3))
      [0.873 1.   ]

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; docs/geometry.md
    """
    rank = _checked_rank(rank)

    def rows(table: Any) -> jax.Array:
        table, token = checked_table(table, token_axis)
        return in_auto_mode(lambda table: _rows_first(table, token), lambda: token_spec(table, token), table)

    def init(table: Any) -> RayState:
        first = rows(table)
        zeros = jnp.zeros_like(first[:, 0])
        sketch = jnp.zeros_like(jnp.broadcast_to(first[:, None], (first.shape[0], rank, first.shape[1])))
        return RayState(first, first, zeros, sketch, zeros, zeros, jnp.zeros((), jnp.int32))

    def update(state: RayState, table: Any) -> RayState:
        now = rows(table)
        check_same_shape(now, state.first, "table")
        arrays = in_auto_mode(_update, lambda: tuple(token_spec(leaf, 0) for leaf in state[:-1]), state[:-1], now)
        return RayState._make((*arrays, state.num_snapshots + 1))

    def value(state: RayState) -> Rays:
        found = in_auto_mode(_value, lambda: (token_spec(state.energy, 0),) * 4, state[:-1])
        return Rays._make((*found, state.num_snapshots))

    return Streaming(init, update, value)


def random_walk(
    step_sizes: Any, *, num_features: int | None = None, key: jax.Array | None = None, num_walks: int = 256, rank: int = 3
) -> tuple[jax.Array, jax.Array]:
    r"""The share and straightness that `ray` measures for a random walk, the null hypothesis for a trajectory.

    The steps have independent random directions. In many dimensions these are orthogonal, so :math:`\langle d_s, d_t \rangle` is
    the energy of the common steps, and share and straightness have a closed form. For T equal steps

    .. math:: share = \frac{1}{2 T (T + 1) \sin^2\frac{\pi}{4 T + 2}} \to \frac{8}{\pi^2}, \qquad straightness = 1 / \sqrt{T}

    With a key, Gaussian walks in `num_features` dimensions are simulated and measured by `ray` itself.

    Args:
      step_sizes: the number T of equal steps, which is `num_displacements` of a `Rays`, or the lengths of the steps, (T,), for a
        learning rate that changes.
      num_features: the number of dimensions of the simulated walks. None is the limit of many dimensions.
      key: a key of `jax.random`, needed for a simulation.
      num_walks: the number of simulated walks.
      rank: as for `ray`.

    Returns:
      Share and straightness, as scalars, or as (num_walks,) for simulated walks.

    Raises:
      TypeError: `step_sizes` is neither a number nor an array, another number is not an integer, or only one of `key` and
        `num_features` is given.
      ValueError: there is no step, a length is negative, or a number is below 1.

    Example:
      >>> import jax
      >>> from ember_optax import geometry
      >>> share, straightness = geometry.random_walk(16)
      >>> print(f"{share:.3f} {straightness:.3f}")
      0.812 0.250
      >>> shares, _ = geometry.random_walk(16, num_features=128, key=jax.random.key(0))
      >>> print(f"{shares.mean():.2f}")
      0.81

    References:
      Antognini and Sohl-Dickstein, "PCA of high dimensional random walks", https://arxiv.org/abs/1806.08805; docs/geometry.md
    """
    lengths_T = _checked_steps(step_sizes)
    if (key is None) != (num_features is None):
        raise TypeError("key and num_features go together: both for a simulated walk, neither for the limit of many dimensions.")
    if key is None or num_features is None:
        common_T = np.cumsum(np.square(lengths_T))
        gram_TxT = np.minimum.outer(common_T, common_T)
        largest = np.linalg.eigvalsh(gram_TxT)[-1]
        return jnp.float32(largest / np.trace(gram_TxT)), jnp.float32(np.sqrt(common_T[-1]) / np.sum(lengths_T))
    for argument, number in {"num_features": num_features, "num_walks": num_walks}.items():
        if checked_integer(number, argument, 256) < 1:
            raise ValueError(f"{argument} must be at least 1, got {number}; pass for example 256.")
    return _simulated_walks(jnp.asarray(lengths_T, jnp.float32), checked_key(key), num_walks, num_features, _checked_rank(rank))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _simulated_walks(
    lengths_T: jax.Array, key: jax.Array, num_walks: int, num_features: int, rank: int
) -> tuple[jax.Array, jax.Array]:
    """The share and straightness of simulated Gaussian walks."""
    init, update, value = ray(rank=rank)

    def step(carry, length_and_key):
        position, state = carry
        length, key = length_and_key
        direction = jax.random.normal(key, position.shape, position.dtype)
        position += length * direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
        return (position, update(state, position)), None

    start = jnp.zeros((num_walks, num_features), jnp.float32)
    (_, state), _ = jax.lax.scan(step, (start, init(start)), (lengths_T, jax.random.split(key, lengths_T.size)))
    found = value(state)
    return found.share, found.straightness


def _rows_first(table: jax.Array, token: int) -> jax.Array:
    return jnp.moveaxis(table, token, 0).reshape(table.shape[token], -1).astype(compute_dtype(table))


def _update(arrays: tuple[jax.Array, ...], now_VxF: jax.Array) -> tuple[jax.Array, ...]:
    first, last, unit, sketch, energy, path = arrays
    displacement = now_VxF - first
    unit, over_unit, kept = larger_unit(unit, displacement, (1,))
    displacement, sketch, energy = displacement * over_unit[:, None], sketch * kept[:, None, None], energy * jnp.square(kept)
    stacked = jnp.concatenate([sketch, displacement[:, None]], 1)
    # The leading left singular vectors of the rank + 1 kept directions and new displacement, from their Gram matrix.
    gram = jnp.einsum("vkf,vlf->vkl", stacked, stacked, precision="highest")
    _, vectors = jnp.linalg.eigh(gram)
    sketch = jnp.einsum("vkl,vkf->vlf", vectors[..., 1:], stacked, precision="highest")
    energy = energy + jnp.sum(jnp.square(displacement), 1)
    path = path + norms(now_VxF - last, (1,))[:, 0]
    return first, now_VxF, unit, sketch, energy, path


def _value(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    first, last, unit, sketch, energy, path = arrays
    kept_VxK = jnp.sum(jnp.square(sketch), 2)
    largest, known = jnp.max(kept_VxK, 1), jnp.sum(kept_VxK, 1)
    moved = energy > 0
    divisor = jnp.where(moved, energy, jnp.nan)
    dropped = jnp.maximum(energy - known, 0)
    share, at_most = (jnp.minimum(bound / divisor, 1) for bound in (largest, largest + dropped))
    straightness = norms(last - first, (1,))[:, 0] / jnp.where(moved, path, jnp.nan)
    return share, at_most, straightness, energy * unit * unit


def _checked_rank(rank: Any) -> int:
    if (number := checked_integer(rank, "rank", 3)) < 1:
        raise ValueError(f"rank must be at least 1, got {rank}; 3 is the default.")
    return number


def _checked_steps(step_sizes: Any) -> np.ndarray:
    fix = "pass the number of snapshots after the first, or the lengths of the steps."
    try:
        steps = np.asarray(step_sizes, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"step_sizes must be a number or a vector of lengths, got {shown(step_sizes)}; {fix}") from None
    lengths = np.ones(checked_integer(step_sizes, "step_sizes", 16)) if steps.ndim == 0 else steps
    if lengths.ndim != 1 or not lengths.size or not np.all(lengths >= 0) or not np.any(lengths):
        raise ValueError(
            f"step_sizes must be at least one step, of lengths that are not negative, got {shown(step_sizes)}; {fix}"
        )
    return lengths
