"""`over_tables`, the sum of a loss term over the tables of a model, and the checks that loss terms share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._math.axes import TableAxes
from .._optimizer.checks import check_found, check_leaf
from .._tree.boxes import is_box, unbox
from .._tree.declared import AUTO, DimensionNumbersLike, check_declaration
from .._tree.hyperparameters import checked_coefficient
from .._tree.inputs import check_tree, shown
from .._tree.suspects import warn_of_suspects
from .._tree.tables import Table, found_tables
from ..geometry._measured import checked_table
from ..row_sparse._refusals import whole_table_error
from ..row_sparse._slice import RowSlice

COEFFICIENT = "a number of either sign, for example coefficient=0.1"


def over_tables(term: Callable[..., jax.Array], params: Any, *, tables: DimensionNumbersLike = AUTO) -> jax.Array:
    r"""The sum of a loss term over the token tables of a model.

    .. math:: \sum_{W \in tables} term(W)

    Args:
      term: a function that is called as `term(table, token_axis=axis)`. Set its other arguments with `functools.partial`.
      params: the parameters.
      tables: which parameters are tables, as in `ember`. "auto" means the tables that `token_tables` finds. Each table of a stack
        counts separately. A declared parameter without features, for example the bias of a head, has no rows and is left out.

    Returns:
      A scalar. Add it to a loss of `params`.

    Raises:
      TypeError: `term` is not a function, or a table is not floating.
      ValueError: no table with features is found, or the term raises.

    Warns:
      UserWarning: the finder may have missed a head, or guesses its token axis. The message says what to write.

    Example:
      >>> import functools
      >>> import jax.numpy as jnp
      >>> from ember_optax import regularizers
      >>> params = {"wte": {"embedding": jnp.ones((8, 4))}, "lm_head": {"kernel": jnp.eye(4, 8)}}
      >>> term = functools.partial(regularizers.anisotropy, coefficient=0.1)
      >>> print(regularizers.over_tables(term, params))  # 0.1 times 1 of the embedding, 0 of the head
      0.1

    References:
      docs/regularizers.md
    """
    if not callable(term):
        raise TypeError(f"term must be a function of a table, got {shown(term)}; pass for example regularizers.anisotropy.")
    check_declaration(tables, "tables")
    check_tree(params, "params")
    # A bare `RowSlice` is a pytree of its rows and ids, so the finder sees the shape of the whole table instead.
    found = found_tables(_with_whole_shapes(params), tables)
    check_found(found, complete=True)
    warn_of_suspects(found, "over_tables")
    boxes = jax.tree.leaves(params, is_leaf=lambda node: is_box(node) or isinstance(node, RowSlice))
    values = [
        _term_of_table(term, leaf, unbox(box))
        for leaf, box in zip(found.leaves, boxes, strict=True)
        if isinstance(leaf, Table) and leaf.axes.feature
    ]
    if not values:
        raise ValueError(
            f"tables declares only {[table.name for table in found.tables]}, which have no features, "
            f"but a term is about rows: declare their tables too."
        )
    return jnp.sum(jnp.stack(values))


def _with_whole_shapes(params: Any) -> Any:
    def whole(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, RowSlice) else leaf

    return jax.tree.map(whole, params, is_leaf=lambda node: isinstance(node, RowSlice))


def _term_of_table(term: Callable[..., jax.Array], table: Table, array: Any) -> jax.Array:
    if isinstance(array, RowSlice):
        return term(array, token_axis=array.token_axis)
    axes = check_leaf(table)
    token = axes.token[0] - sum(axis < axes.token[0] for axis in axes.batch)

    def of_one(array):
        return term(array, token_axis=token)

    for axis in reversed(axes.batch):
        of_one = jax.vmap(of_one, in_axes=axis - sum(b < axis for b in axes.batch))
    return jnp.sum(of_one(array))


def checked_whole_table(table: Any, token_axis: Any, reason: str) -> tuple[jax.Array, TableAxes]:
    """A table with its axes. Raises with `reason` if it is a `RowSlice`, which has only some rows."""
    if isinstance(table, RowSlice):
        raise whole_table_error(table, reason)
    array, token = checked_table(table, token_axis)
    return array, TableAxes((token,), tuple(axis for axis in range(array.ndim) if axis != token), ())


def times(coefficient: Any, value: jax.Array) -> jax.Array:
    """The value of a term times its coefficient, after a check of the coefficient."""
    return jnp.asarray(checked_coefficient(coefficient, "coefficient", COEFFICIENT), value.dtype) * value
