"""`stochastic_rounding`: the last transformation of a chain, which trains 16-bit parameters without a float32 copy."""

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from .._fused_heads.leaf import FusedLeaf
from .._math.mesh import in_auto_mode, spec_like
from .._math.rounding import bits_at, can_round_to, key_of, places_along, places_of, rounded_update
from .._math.rows import flat_ids, like_rows, rows_back, rows_first, sum_duplicates, take_rows
from .._tree.boxes import unbox
from .._tree.declared import AUTO, DimensionNumbersLike, check_declaration
from .._tree.inputs import check_array, check_tree, checked_seed, shown
from .._tree.tables import Leaf, Table, read_tree, tables_with_ids
from .._tree.token_ids import check_compact, token_ids_by_name
from .checks import checked_params


class StochasticRoundingState(NamedTuple):
    """State of `stochastic_rounding`.

    Attributes:
      count: the step, int32, of shape (); it decides, with the seed, how each number is rounded.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import stochastic_rounding
      >>> print(stochastic_rounding(0).init({"embedding": jnp.ones((8, 4), jnp.bfloat16)}).count)
      0

    References:
      docs/bfloat16_tables.md
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]


def stochastic_rounding(
    seed: jax.typing.ArrayLike, *, tables: DimensionNumbersLike = AUTO
) -> optax.GradientTransformationExtraArgs:
    r"""Rounds the new value of 16-bit parameters stochastically, so that training needs no float32 copy of them.

    .. math::
        u' = SR(p + u) - p, \qquad P(SR(x) = upper) = \frac{x - lower}{upper - lower}

    where lower and upper are the neighbours of x in the parameter's dtype. Rounding to nearest loses every update below half a
    unit in the last place. Stochastic rounding is right on average.

    Put it last in the chain. It returns float32 updates for which `optax.apply_updates`, `nnx.Optimizer` and
    `row_sparse.apply_updates` give exactly the rounded sum. (`eqx.apply_updates` leaves the sum in float32. A cast to the
    parameter's dtype then gives the rounded sum too.)

    The random bits are a hash of the seed, the step, the parameter's path and the index in the array. So there is no random
    array, and only the step is stored. The rounding is the same in dense and in row-sparse steps, on any number of devices under
    `jax.jit`, and after a restart. (Inside `jax.shard_map` the index is the one in a device's shard.)

    Edge cases: a number that the dtype represents does not change, so an update of zero moves nothing. A finite sum in the range
    of the dtype, or less than one unit beyond it, stays finite. A sum that is infinite or NaN stays so. XLA takes numbers below
    the smallest normal float32 for zero. Subnormal numbers of float16 are rounded like all others.

    Args:
      seed: an integer in 0 to 2^32 - 1.
      tables: which axis of a compact update's table is the vocabulary, as in `ember`.

    Returns:
      A `GradientTransformationExtraArgs`. Its state is the number of steps, including skipped ones, as in a schedule. Updates of
      integer parameters and of parameters of 32 bits and more do not change. `update` needs the parameters, and takes
      `token_ids`. The updates of equal ids are added up, as in `row_sparse.apply_updates`.

    Raises:
      TypeError: `seed` is not an integer; at update, a parameter has 8 bits or fewer.
      ValueError: `seed` is out of range; at update, the parameters are missing, or a parameter and its update have different
        shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import ember, stochastic_rounding
      >>> params = {"embedding": jnp.ones((1000, 64), jnp.bfloat16)}
      >>> tx = optax.chain(ember(1e-3, optax.adamw(1e-4)), stochastic_rounding(seed=0))
      >>> grads = {"embedding": jnp.ones((1000, 64), jnp.bfloat16)}
      >>> updates, opt_state = tx.update(grads, tx.init(params), params)
      >>> new = optax.apply_updates(params, updates)["embedding"]  # 0.99609375 is the next number below 1
      >>> print(new.dtype, f"{new.astype(jnp.float32).mean():.4f}")
      bfloat16 0.9990

    References:
      Gupta et al., "Deep Learning with Limited Numerical Precision", https://arxiv.org/abs/1502.02551; Zamirai et al.,
      "Revisiting BFloat16 Training", https://arxiv.org/abs/2010.06192; docs/bfloat16_tables.md
    """
    check_declaration(tables, "tables")
    word = _checked_seed(seed)

    def init_fn(params):
        check_tree(params, "params", may_be_empty=True)
        return StochasticRoundingState(jnp.zeros((), jnp.int32))

    def update_fn(updates, state, params=None, *, token_ids=None, **extra_args):
        del extra_args
        check_tree(updates, "updates", may_be_empty=True)
        if not isinstance(state, StochasticRoundingState):
            raise TypeError(f"state must be the one that init or the last update returned, got {shown(state)}.")
        if params is None:
            raise ValueError(
                "stochastic_rounding needs the parameters, whose sums with the updates it rounds: call "
                "update(updates, state, params)."
            )
        check_tree(params, "params", may_be_empty=True)
        ids = token_ids_by_name(token_ids)
        found = tables_with_ids(read_tree(updates, ids), tables, params)
        for table in found.leaves:
            check_array(table.box, f"the update of {table.name!r}")
        leaves = checked_params(found, params)
        of_leaf = [
            _rounded_leaf(table, unbox(param), key_of(word, state.count, zlib.crc32(table.name.encode())))
            for table, param in zip(found.leaves, leaves, strict=True)
        ]
        return found.rebuild(of_leaf), StochasticRoundingState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _checked_seed(seed: Any) -> Any:
    """The seed as a uint32 scalar, or a traced integer under `optax.inject_hyperparams`. Raises for anything else."""
    if isinstance(seed, jax.Array):
        if seed.shape != () or not jnp.issubdtype(seed.dtype, jnp.integer):
            raise TypeError(f"seed must be one integer, got an array of shape {seed.shape} and dtype {seed.dtype}; pass seed=0.")
        if isinstance(seed, Tracer):
            return seed
    return np.uint32(checked_seed(seed))


def _rounded_leaf(table: Leaf, param: Any, key: jax.Array) -> Any:
    p = jnp.asarray(param)
    if not jnp.issubdtype(p.dtype, jnp.floating) or p.dtype.itemsize >= 4:
        return table.array
    if not can_round_to(p.dtype):
        raise TypeError(
            f"parameter {table.name!r} of shape {p.shape} has dtype {p.dtype}; stochastic_rounding rounds to bfloat16 and "
            f"float16: keep this leaf out with optax.masked."
        )
    if isinstance(table.array, FusedLeaf):
        if table.array.preconditioner is None:
            raise TypeError(
                f"the update of {table.name!r} is still the gradient of a fused head: put stochastic_rounding last in the chain, "
                f"behind ember or scale_by_ember."
            )
        return table.array.update(table.array.preconditioner._replace(rounding_key=key))
    update = jnp.asarray(table.array)
    if table.ids is None or not isinstance(table, Table):
        return in_auto_mode(_round_all, functools.partial(spec_like, update), update, p, key)
    check_compact(table.name, update.shape, table.ids, p.shape, table.axes)
    of_rows = functools.partial(_round_rows, token_axis=table.axes.token[0])
    return in_auto_mode(of_rows, functools.partial(spec_like, update), update, p, table.ids, key)


def _round_all(update: jax.Array, param: jax.Array, key: jax.Array) -> jax.Array:
    return rounded_update(update, param, bits_at(key, places_of(param.shape)))


def _round_rows(compact: jax.Array, table: jax.Array, ids: jax.Array, key: jax.Array, *, token_axis: int) -> jax.Array:
    """The rounded updates of some rows, with the bits that these rows have in the whole table.

    The first occurrence of an id has the sum of its updates. Later occurrences and padding have zeros.
    """
    size = table.shape[token_axis]
    ids_N = flat_ids(ids, size)
    summed_NxF, first_N = sum_duplicates(rows_first(compact, token_axis, ids.ndim), ids_N, size)
    others = [axis for axis in range(table.ndim) if axis != token_axis]
    places = [(axis, places_along(place, table.shape[axis], summed_NxF.ndim)) for place, axis in enumerate(others, start=1)]
    bits = bits_at(key, sorted([(token_axis, like_rows(ids_N, summed_NxF)), *places], key=lambda of_axis: of_axis[0]))
    rows_NxF = rounded_update(summed_NxF, take_rows(table, ids_N, token_axis), bits)
    rows_NxF = jnp.where(like_rows(first_N, rows_NxF), rows_NxF, jnp.zeros((), rows_NxF.dtype))
    return rows_back(rows_NxF, compact.shape, token_axis, ids.ndim)
