"""Training some rows of a table only: new special tokens in fine-tuning, say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from ._boxes import rebox, unbox
from ._declared import DimensionNumbersLike
from ._dimension_numbers import TableAxes
from ._paths import flatten_named, is_complete
from ._row_tables import axes_by_place
from ._rows import flat_ids
from ._token_ids import check_known, token_ids_by_name


def train_only_rows(
    inner: optax.GradientTransformation, rows: Any, *, dimension_numbers: DimensionNumbersLike = None
) -> optax.GradientTransformationExtraArgs:
    """`inner`, with all rows of some tables frozen but those named: the frozen ones stay bit-identical, weight decay included.

    The gradients of frozen rows count as zero, so they do not enter the statistics either. Works for dense and for row-sparse
    steps; parameters that `rows` does not name are trained as ever.

    Args:
      inner: the transformation of all parameters, complete with its learning rate; its gradients and updates are masked.
      rows: a tree like the parameters, or a dictionary from paths such as `"embed/embedding"`, to the ids of the rows that are
        trained: integers of any shape.
      dimension_numbers: which axis of the tables is the vocabulary, as in `scale_by_ember`; the default is axis 0.

    Returns:
      A `GradientTransformationExtraArgs` with the state of `inner`.

    Raises:
      TypeError: `rows` are not integers.
      ValueError: at init or update, `rows` names a path that is no parameter, or a row that does not exist.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import ember, row_sparse
      >>> params = {"wte": jnp.ones((100, 4))}
      >>> tx = row_sparse.train_only_rows(ember(1e-3, weight_decay=0.1), {"wte": jnp.array([98, 99])})
      >>> updates, opt_state = tx.update({"wte": jnp.ones((100, 4))}, tx.init(params), params)
      >>> jnp.flatnonzero(updates["wte"].any(1))
      Array([98, 99], dtype=int32)

    References:
      docs/row_sparse.md
    """
    trained = token_ids_by_name(rows)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        names, leaves, _ = flatten_named(params)
        if is_complete(params):
            check_known(trained, names, "the parameters are")
            for place, axes in axes_by_place(trained, params, names, leaves, dimension_numbers).items():
                _check_rows(names[place], trained[names[place]], unbox(leaves[place]).shape[axes.token[0]])
        return inner.init(params)

    def update_fn(updates, state, params=None, *, token_ids=None, **extra_args):
        ids = token_ids_by_name(token_ids)
        names, leaves, treedef = flatten_named(updates)
        here = trained if is_complete(updates) else {name: rows for name, rows in trained.items() if name in names}
        check_known(here, names)
        tables = updates if params is None else params
        axes = axes_by_place(here, tables, *flatten_named(tables)[:2], dimension_numbers)
        # A frozen row of a compact update becomes padding as well.
        kept = {name: _keep(of, here[name]) if name in here else of for name, of in ids.items()}
        masks = {}
        for place, table in axes.items():
            name, array = names[place], unbox(leaves[place])
            masks[name] = _compact_mask(kept[name], array, table) if name in kept else _dense_mask(here[name], array, table)

        def mask(tree: Any, value: float) -> Any:
            masked = [
                rebox(leaf, jnp.where(masks[name], unbox(leaf), jnp.asarray(value, unbox(leaf).dtype))) if name in masks else leaf
                for name, leaf in zip(names, treedef.flatten_up_to(tree), strict=True)
            ]
            return treedef.unflatten(masked)

        given = {"token_ids": kept} if kept else {}
        updates, state = inner.update(mask(updates, 0.0), state, params, **given, **extra_args)
        # x + -0.0 is x bit for bit, also where x is -0.0.
        return mask(updates, -0.0), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _dense_mask(rows: jax.Array, table: jax.Array, axes: TableAxes) -> jax.Array:
    """True in the rows that are trained, with axes of length one for all others."""
    (token_axis,) = axes.token
    size = table.shape[token_axis]
    mask_V = jnp.zeros(size, bool).at[flat_ids(rows, size)].set(True, mode="drop")
    return jnp.expand_dims(mask_V, [axis for axis in range(table.ndim) if axis != token_axis])


def _compact_mask(kept: jax.Array, compact: jax.Array, axes: TableAxes) -> jax.Array:
    """True in the rows whose id was kept, with axes of length one for the features."""
    (token_axis,) = axes.token
    ids_axes = range(token_axis, token_axis + kept.ndim)
    return jnp.expand_dims(kept >= 0, [axis for axis in range(compact.ndim) if axis not in ids_axes])


def _keep(ids: jax.Array, rows: jax.Array) -> jax.Array:
    """The ids that are among `rows`, and padding."""
    ids = ids.astype(jnp.int32)
    return jnp.where(jnp.isin(ids, rows.astype(jnp.int32)), ids, -1)


def _check_rows(name: str, rows: jax.Array, size: int) -> None:
    if isinstance(rows, Tracer):
        return
    outside = [int(row) for row in np.asarray(rows).reshape(-1) if not 0 <= row < size]
    if outside:
        raise ValueError(f"rows of {name!r} names {outside}, but the table has the rows 0 to {size - 1}; correct the ids.")
