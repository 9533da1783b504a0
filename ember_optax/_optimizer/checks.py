"""The checks of parameters, gradients, state, mesh axes and other transformations."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._fused_heads.leaf import FusedLeaf
from .._math.axes import TableAxes
from .._math.mesh import varying_axes
from .._math.state import DTYPES, Moments, moment_shapes
from .._tree.boxes import unbox
from .._tree.describe import no_table_message, unused_patterns_message
from .._tree.inputs import check_array, listed, shown
from .._tree.tables import Leaf, Table, TableTree
from .._tree.token_ids import check_compact


def check_transformation(tx: Any, argument: str, fix: str) -> optax.GradientTransformation:
    """The transformation. Raises if `tx` is anything else, such as the function that makes a transformation."""
    if isinstance(tx, type) or not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise TypeError(f"{argument} must be an optax.GradientTransformation, got {shown(tx)}: {fix}.")
    return tx


def mesh_names(names: str | tuple[str, ...], argument: str) -> tuple[str, ...]:
    """The mesh axes of an argument, as a tuple."""
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"{argument} must be a mesh axis name or a tuple of them, got {names!r}; pass for example 'fsdp'.")
    return tuple(names)


def check_leaf(table: Leaf) -> TableAxes:
    """The axes of a leaf. Raises unless it is a real floating array with at least one element, and is declared to be a table."""
    leaf = table.array
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        number = " Write it as an array: jnp.asarray(...)." if isinstance(leaf, numbers.Number) else ""
        raise TypeError(f"parameter {table.name!r} is {shown(leaf)}, not an array; filter the tree to arrays first.{number}")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(
            f"parameter {table.name!r} of shape {leaf.shape} has dtype {leaf.dtype}; Ember needs a real floating dtype. Keep "
            f"this leaf out with optax.masked, optax.partition or the `tables` argument of ember."
        )
    if 0 in table.shape:
        raise ValueError(
            f"parameter {table.name!r} of shape {leaf.shape} is empty, so its mean squares do not exist; remove it from the "
            f"tables."
        )
    if not isinstance(table, Table):
        raise ValueError(
            f"dimension_numbers says None, no table, of {table.name!r} with shape {leaf.shape}, but scale_by_ember treats "
            f"every leaf as a table: declare EmberDimensionNumbers for it, or keep it out with optax.masked or optax.partition."
        )
    return table.axes


def check_found(found: TableTree, *, complete: bool) -> None:
    """Raises if no table was found, or if a pattern matched nothing."""
    # In an incomplete tree, for example inside an `optax.partition`, the tables may be in another part.
    if complete and (message := unused_patterns_message(found)):
        raise ValueError(message)
    required = found.finder is None or found.finder.options.required
    if complete and required and not found.tables:
        raise ValueError(no_table_message(found))


def check_kinds(found: TableTree, *, complete: bool) -> None:
    """Raises if `head_learning_rate` would be silently ignored: a table may or may not be a head, or no table is a head."""
    tables = found.tables
    if unknown := [table for table in tables if table.kind is None]:
        listed_tables = listed([f"{table.name!r} of shape {table.shape}" for table in unknown])
        raise ValueError(
            f"head_learning_rate is given, but nothing says whether these tables are heads: {listed_tables}. Declare it, "
            f'EmberDimensionNumbers({unknown[0].axes.token[0]}, kind="head") or kind="input".'
        )
    if complete and tables and not any(table.kind == "head" for table in tables):
        listed_tables = listed([f"{table.name!r} of shape {table.shape}" for table in tables])
        raise ValueError(
            f"head_learning_rate is given, but no table is a head that is not tied: {listed_tables}. Leave it out; or, if one is "
            f'such a head, declare it with EmberDimensionNumbers(..., kind="head").'
        )


def checked_params(found: TableTree, params: Any) -> list[Any]:
    """The parameter of each leaf. Raises if it and its gradient have different shapes: the decay would be broadcast silently."""
    # Only leaves that have a gradient, because an Equinox model also has functions as leaves.
    leaves = found.leaves_of(params, "parameter tree", may_have_more=True)
    for table, leaf in zip(found.leaves, leaves, strict=True):
        check_array(leaf, f"parameter {table.name!r}")
        if np.shape(unbox(leaf)) != table.shape:
            raise ValueError(
                f"parameter {table.name!r} has shape {np.shape(unbox(leaf))}, but its gradient has {table.shape}: pass "
                f"the parameters that these gradients belong to, update(updates, state, params), and token_ids if they are "
                f"compact."
            )
    return leaves


def check_state(state: Any) -> None:
    """Raises unless a state has the fields of `ScaleByEmberState`."""
    if not all(hasattr(state, field) for field in Moments._fields):
        raise TypeError(
            f"state must be the ScaleByEmberState that init or the last update returned, got {shown(state)}: call "
            f"update(updates, state, params), with the state of this transformation."
        )


def check_given(params: Any, *, with_ids: bool, decays: bool = False) -> None:
    """Raises if an update needs the parameters and they are missing."""
    if params is None and with_ids:
        raise ValueError(
            "token_ids need the parameters: call update(updates, state, params, token_ids=token_ids). A compact update does "
            "not show the shape of its table."
        )
    if params is None and decays:
        raise ValueError(
            "weight_decay needs the parameters: call update(updates, state, params). Under optax.inject_hyperparams "
            "that is so even at zero, because the decay may be changed later."
        )


def check_bound(mesh_axes: dict[str, tuple[str, ...]]) -> None:
    """Raises unless the caller is inside a `jax.shard_map` (or a `jax.vmap` with `axis_name`) over these axes."""
    for argument, names in mesh_axes.items():
        for name in names:
            try:
                jax.lax.axis_size(name)
            except (NameError, KeyError):
                raise ValueError(
                    f"{argument}_axes names {name!r}, which is no mesh axis that jax.shard_map splits arrays over at this place. "
                    f"Name an axis of the mesh, or leave the argument out under jax.jit, where arrays are whole."
                ) from None


def check_gradient(table: Leaf, g: jax.Array, moments: Moments, axes: TableAxes) -> None:
    """Raises if a gradient does not fit its state."""
    _check_split(table, g, axes)
    for field, moment in moments._asdict().items():
        check_array(moment, f"the state's {field} of {table.name!r}")
    shapes = moment_shapes(table.shape, axes)
    floats = [field for field, dtype in DTYPES._asdict().items() if jnp.issubdtype(dtype, jnp.floating)]
    for field in floats:
        moment, dtype = getattr(moments, field), jnp.dtype(getattr(DTYPES, field))
        if moment.dtype != dtype:
            raise TypeError(
                f"{field} of {table.name!r} is {moment.dtype}, but Ember's state is {dtype} whatever the parameters' dtype: do "
                f"not cast the optimizer state (fewer bits lose a step of 1 - b2), and restore it into the dtypes of "
                f"jax.eval_shape(tx.init, params)."
            )
    wanted, found = ({field: getattr(of, field) for field in floats} for of in (shapes, jax.tree.map(jnp.shape, moments)))
    if found != wanted:
        what = "gradient" if table.ids is None else "parameter"
        needs = " and ".join(f"{field} of shape {shape}" for field, shape in wanted.items())
        raise ValueError(
            f"the {what} of {table.name!r} has shape {table.shape}, so its state needs {needs}, but has "
            f"{' and '.join(map(str, found.values()))}; initialise the state from the parameters that these gradients belong "
            f"to, or pass token_ids if they are compact."
        )
    for field in (field for field in Moments._fields if field not in floats):
        counter, shape = getattr(moments, field), getattr(shapes, field)
        if np.shape(counter) != shape or not jnp.issubdtype(jnp.result_type(counter), jnp.integer):
            raise ValueError(
                f"{field} of {table.name!r} must be integers of shape {shape}, got {shown(counter)}; restore the state into the "
                f"shapes and dtypes of jax.eval_shape(tx.init, params)."
            )
    if table.ids is not None:
        check_compact(table.name, g.shape, table.ids, table.shape, axes)


def check_head(table: Leaf, gradient: FusedLeaf, axes: TableAxes) -> None:
    """Raises if a transformation cannot take the gradient of a fused head."""
    if gradient.preconditioner is not None:
        raise TypeError(f"the gradient of {table.name!r} is an update already: put one scale_by_ember into the chain.")
    if axes.token != (gradient.loss.token_axis,) or axes.batch:
        raise ValueError(
            f"the fused head {table.name!r} of shape {table.shape} has its vocabulary in axis {gradient.loss.token_axis}, but "
            f"the optimizer takes {axes.token} for it: declare the same dimension numbers in value_and_grad and in the optimizer."
        )
    layout = gradient.loss.layout
    split = layout.token_axes if layout and layout.is_manual else ()
    if axes.token_mesh != split or axes.feature_mesh:
        raise ValueError(
            f"the fused head {table.name!r} is split over {list(split)} by the token_mesh_axes of its loss, but scale_by_ember "
            f"has token_mesh_axes={axes.token_mesh} and feature_mesh_axes={axes.feature_mesh}: pass "
            f"token_mesh_axes={split} to it and no feature_mesh_axes, or leave the head out of `heads`."
        )


def _check_split(table: Leaf, g: jax.Array, axes: TableAxes) -> None:
    """Raises if the gradient is the same along a mesh axis that should split the table.

    A compact gradient may have the same rows on all devices if its ids differ.
    """
    split_over = varying_axes(g) | (frozenset() if table.ids is None else varying_axes(table.ids))
    whole = [axis for axis in axes.token_mesh + axes.feature_mesh if split_over and axis not in split_over]
    if whole:
        raise ValueError(
            f"the gradient of {table.name!r} is the same along the mesh axes {whole}, which token_mesh_axes or feature_mesh_axes "
            f"name, and differs along {sorted(split_over)}: name only axes over which this table is split."
        )
