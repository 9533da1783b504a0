"""Weights from token counts, for the loss of each token and for the update of each row."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._math.frequency import added_counts, weights_of_counts
from .._math.mean_square import compute_dtype
from .._math.mesh import in_auto_mode, spec_like
from .._math.rows import flat_ids, rows_back, rows_first, take_rows
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.hyperparameters import checked_coefficient, checked_number, checked_positive
from .._tree.inputs import check_array, shown
from .._tree.tables import Table
from ..geometry._measured import known_to_hold
from ..row_sparse._checks import checked_ids
from ._transformation import Rule, expanded, on_tables

_POWER = "a number, for example power=0.5; 0 weighs all tokens alike, a negative one favours frequent tokens"
_SMOOTHING = "a number above 0, for example smoothing=1.0"


def frequency_weights(
    token_counts: Any, power: jax.typing.ArrayLike = 0.5, *, smoothing: jax.typing.ArrayLike = 1.0
) -> jax.Array:
    r"""A weight for each token that depends on its count. Multiply the loss of the token or the update of its row by it.

    .. math:: w_i = (c_i + a)^{-p} \Big/ \frac{\sum_j c_j (c_j + a)^{-p}}{\sum_j c_j}

    The mean weight over the text is one, so the loss keeps its scale. With p = 1, every token that occurs has nearly the same
    share of the loss. With p = 0, nothing changes. A negative power favours frequent tokens. The loss with these weights is
    another objective. Its minimum is no longer the text's distribution, so a validation loss without weights rises. It works in
    row-sparse steps. O(V).

        weights = regularizers.frequency_weights(counts, 0.25)
        loss = jnp.mean(weights[labels] * losses)

    Args:
      token_counts: (V,) numbers that are not negative, from a corpus or streamed (`updated_counts`).
      power: p, of either sign, which may be traced.
      smoothing: a, above zero, which is added to every count.

    Returns:
      (V,) float32, all ones if all counts are zero.

    Raises:
      TypeError: an argument is not a number, or not an array of numbers.
      ValueError: `token_counts` is not a vector, `power` is not finite, or `smoothing` is not above zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> print([f"{weight:.2f}" for weight in regularizers.frequency_weights(jnp.array([0, 3, 15]), 0.5) * 7])
      ['24.00', '12.00', '6.00']

    References:
      Cui et al., "Class-balanced loss", https://arxiv.org/abs/1901.05555 (weights from counts between inverse frequency and
      none); Mikolov et al., https://arxiv.org/abs/1310.4546 (the root of the frequency, by leaving out); docs/regularizers.md
    """
    counts_V = checked_counts(token_counts, "token_counts")
    number, added = _checked_power(power, smoothing)
    return in_auto_mode(lambda c: weights_of_counts(c, number, added, 0), lambda: spec_like(counts_V), counts_V)


def updated_counts(counts: Any, ids: Any, decay: jax.typing.ArrayLike = 1.0) -> jax.Array:
    r"""The token counts after one more batch. Call this pure function for each batch to stream counts.

    .. math:: c_i \leftarrow d\, c_i + \#\{n : ids_n = i\}

    Args:
      counts: (V,) floats, `jnp.zeros(V)` before the first batch. float32 counts exactly up to 16,777,216.
      ids: integers of any shape. Ids below zero, or V and above, are padding.
      decay: d in [0, 1], which may be traced. 1 never forgets, and 0.99 forgets half in 69 batches.

    Returns:
      (V,), with the dtype and sharding of `counts`.

    Raises:
      TypeError: counts are not floats, ids are not integers, or `decay` is not a number.
      ValueError: `counts` is not a vector, or `decay` is not in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> print(regularizers.updated_counts(jnp.array([4.0, 0.0, 2.0]), jnp.array([[1, 1, -1]]), 0.5))
      [2. 2. 1.]

    References:
      docs/regularizers.md
    """
    array = checked_counts(counts, "counts")
    check_array(counts, "counts", floating=True)
    decay = _checked_decay(decay)
    ids = checked_ids(ids)
    return in_auto_mode(added_counts, lambda: spec_like(array), array, ids, decay)


class FrequencyState(NamedTuple):
    """State of `scale_by_frequency` with streamed counts: the token counts of each table, (V,) float32."""

    token_counts: Any


def scale_by_frequency(
    power: jax.typing.ArrayLike = 0.5,
    *,
    token_counts: Any = None,
    smoothing: jax.typing.ArrayLike = 1.0,
    decay: float = 1.0,
    tables: DimensionNumbersLike = AUTO,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the update of each row of the tables by a weight that depends on the count of its token.

    .. math:: u_{ij} \leftarrow w_i\, u_{ij}

    with the weights of `frequency_weights`. Put it after `scale_by_ember` (`optax.chain(ember(1e-2, optax.adamw(1e-3)),
    scale_by_frequency(...))`). Before `scale_by_ember`, the second moment of the row would cancel the weight. A positive power
    gives rare rows larger steps, and a negative power smaller ones.

    Args:
      power: as for `frequency_weights`.
      token_counts: (V,), the counts of a corpus. None streams the counts: then every `update` takes `token_counts=`, (V,) of its
        batch, for example `jnp.bincount(ids.reshape(-1), length=V)`.
      smoothing: as for `frequency_weights`.
      decay: the decay of streamed counts, in [0, 1], as for `updated_counts`.
      tables: which leaves are tables, as in `ember`. All other leaves do not change. The tables need one vocabulary.

    Returns:
      A `GradientTransformationExtraArgs` for dense and row-sparse updates. With streamed counts its state is `FrequencyState`, V
      numbers for each table. Otherwise the state is empty.

    Raises:
      TypeError: `power`, `smoothing` or `decay` is not a number, or `token_counts` are not numbers; at update, the state is that
        of another transformation.
      ValueError: a number is out of range; at init, no table is found; at update, streamed `token_counts` are missing, or do not
        have the size of a table's vocabulary.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> params = {"wte": {"embedding": jnp.ones((3, 2))}}
      >>> tx = regularizers.scale_by_frequency(0.5, token_counts=jnp.array([0, 3, 15]))
      >>> updates, _ = tx.update(params, tx.init(params))
      >>> print([f"{update:.2f}" for update in updates["wte"]["embedding"][:, 0] * 7])
      ['24.00', '12.00', '6.00']

    References:
      As `frequency_weights`; Yu et al., https://arxiv.org/abs/2109.03127 (a part of the gradient of rare rows, gated);
      docs/regularizers.md
    """
    number, added = _checked_power(power, smoothing)
    decay = checked_number(decay, "decay", "a number in [0, 1], for example decay=0.999")
    if decay > 1.0:
        raise ValueError(f"decay must be in [0, 1], got {decay!r}; pass 1.0 to keep all counts.")
    fixed = None if token_counts is None else checked_counts(token_counts, "token_counts")
    if fixed is not None and decay != 1.0:
        raise ValueError(f"decay={decay!r} is of streamed counts, but token_counts are given once; leave one of the two out.")

    step = functools.partial(_scaled_step, power=number, smoothing=added, decay=decay)
    given = functools.partial(_counts_for_table, fixed=fixed)
    rule = Rule("scale_by_frequency", step, keeps=None if fixed is not None else "nu_token", given=given)
    return on_tables(rule, tables, None if fixed is not None else FrequencyState)


def _counts_for_table(table: Table, extra_args: dict[str, Any], *, fixed: jax.Array | None) -> jax.Array:
    """The counts of a table's tokens, which are fixed or those of this batch."""
    found = extra_args.get("token_counts") if fixed is None else fixed
    if found is None:
        raise ValueError(
            "scale_by_frequency streams counts: call update(updates, state, params, token_counts=counts) with those of the "
            "batch, (V,), or pass token_counts to scale_by_frequency."
        )
    counts_V, axes = checked_counts(found, "token_counts"), table.axes
    if not axes.token or counts_V.shape[0] != table.shape[axes.token[0]]:
        raise ValueError(
            f"token_counts has {counts_V.shape[0]} counts, but {table.name!r} has the shape {table.shape} with the token axes "
            f"{axes.token}; count every token of its vocabulary, or leave it out of `tables`."
        )
    return counts_V


def _scaled_step(table: Table, update, param, kept, counts_V, *, power, smoothing, decay: float):
    """The update times the weights, and the streamed counts after this batch."""
    del param
    axes = table.axes
    counts = jnp.expand_dims(counts_V, [axis for axis in range(len(table.shape)) if axis not in axes.token])
    if kept is not None:
        counts = expanded(kept, table, "nu_token") * jnp.float32(decay) + counts.astype(jnp.float32)
        kept = counts.reshape(kept.shape)
    return _weighted_rows(table, update, weights_of_counts(counts, power, smoothing, axes.token[0])), kept


def _weighted_rows(table: Table, update: jax.Array, weights: jax.Array) -> jax.Array:
    """The rows of an update times the weights of their tokens. Compact rows take the weights of their ids."""
    dtype = compute_dtype(update)
    if table.ids is None:
        return (update.astype(dtype) * weights.astype(dtype)).astype(update.dtype)
    (token,) = table.axes.token
    ids_N = flat_ids(table.ids, table.shape[token])
    of_rows = take_rows(weights, ids_N, token).astype(dtype)
    rows_NxF = rows_first(update, token, table.ids.ndim)
    scaled = (rows_NxF.astype(dtype) * of_rows).astype(update.dtype)
    return rows_back(scaled, update.shape, token, table.ids.ndim)


def checked_counts(token_counts: Any, argument: str) -> jax.Array:
    """The counts as an array. Raises unless there is one number for each token, finite and not negative if it is known."""
    check_array(token_counts, argument)
    counts = jnp.asarray(token_counts)
    if counts.ndim != 1 or not counts.size or jnp.iscomplexobj(counts):
        raise ValueError(
            f"{argument} must be real numbers of shape (V,), one for each token, got {counts.dtype} of shape {counts.shape}; "
            f"pass jnp.bincount(ids.reshape(-1), length=V)."
        )
    if counts.dtype == jnp.bool_:
        counts = counts.astype(jnp.int32)  # under strict promotion, JAX does not compare a mask with numbers
    if not known_to_hold(counts, lambda c: (c >= 0) & jnp.isfinite(c)):
        raise ValueError(f"{argument} must be finite and not negative, got {shown(counts)}; count tokens.")
    return counts


def _checked_power(power: Any, smoothing: Any) -> tuple[Any, Any]:
    return checked_coefficient(power, "power", _POWER), checked_positive(smoothing, "smoothing", _SMOOTHING)


def _checked_decay(decay: Any) -> Any:
    fix = "a number in [0, 1], for example decay=0.99"
    decay = checked_coefficient(decay, "decay", fix)
    if known_to_hold(jnp.asarray(decay), lambda d: (d >= 0) & (d <= 1)):
        return decay
    raise ValueError(f"decay must be in [0, 1], got {decay!r}; pass {fix}.")
