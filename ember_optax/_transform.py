"""`scale_by_ember`: the mathematics of one table mapped over a tree of them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._auto_mode import in_auto_mode, spec_like
from ._boxes import rebox, rebox_axes, unbox
from ._declared import DimensionNumbersLike, declared_dimension_numbers
from ._dimension_numbers import EmberDimensionNumbers, TableAxes, table_axes
from ._hyperparameters import check_b2, check_eps, check_weight_decay
from ._moments import Moments, decay_rate, ember_step, init_moments, moment_shapes
from ._paths import flatten_named, is_complete
from ._row_step import ember_row_step
from ._token_ids import check_compact, check_known, token_ids_by_name
from ._varying import varying_axes


class MeshAxes(NamedTuple):
    """The fields of `TableAxes` that come from the caller: mesh axes over which tables are split inside `jax.shard_map`."""

    token_mesh: tuple[str, ...] = ()
    feature_mesh: tuple[str, ...] = ()


class ScaleByEmberState(NamedTuple):
    """State of `scale_by_ember`: trees of the parameters' structure, O(V + D) numbers for a (V, D) table.

    Attributes:
      count: steps each table has taken, int32, () or the shape of the batch axes. Skipped batches do not count.
      nu_token: moving average of the mean squared gradient of each token, float32, (V,).
      nu_feature: moving average of the mean squared gradient of each feature, float32, (D,).
      total_notfinite: batches that were skipped because their mean squared gradient was not finite, int32, as `count`.
        `optax.tree.get(opt_state, "total_notfinite")` reads it from a nested state with one such field;
        `optax.tree_utils.tree_get_all_with_path` finds several (`optax.apply_if_finite` has one of the same name).

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import scale_by_ember
      >>> tx = scale_by_ember()
      >>> state = tx.init({"embedding": jnp.ones((8, 4))})
      >>> _, state = tx.update({"embedding": jnp.full((8, 4), jnp.nan)}, state)
      >>> print(optax.tree.get(state, "total_notfinite")["embedding"], state.count["embedding"])
      1 0

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455
    """

    count: Any
    nu_token: Any
    nu_feature: Any
    total_notfinite: Any


def scale_by_ember(
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    dimension_numbers: DimensionNumbersLike = None,
    token_mesh_axes: str | tuple[str, ...] = (),
    feature_mesh_axes: str | tuple[str, ...] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales updates by Ember's factored second moment; every leaf is treated as a token table.

    For a table's gradient :math:`g` of shape (V, D) at step t:

    .. math::
        \nu^{token}_i &\leftarrow b_2 \nu^{token}_i + (1 - b_2) \,\mathrm{mean}_j\, g_{ij}^2 \\
        \nu^{feature}_j &\leftarrow b_2 \nu^{feature}_j + (1 - b_2) \,\mathrm{mean}_i\, g_{ij}^2 \\
        \hat v_{ij} &= \nu^{token}_i \, \frac{\nu^{feature}_j}{\mathrm{mean}_j\, \nu^{feature}_j} \, \frac{1}{1 - b_2^t} \\
        u_{ij} &= g_{ij} / (\sqrt{\hat v_{ij}} + \epsilon)

    A leaf of rank 0 or 1 has no feature axes, so its :math:`\hat v` is :math:`\nu^{token}` itself. Several feature axes
    count as one. State is float32 whatever the parameters' dtype; updates come back in the gradients' dtype.

    A table whose mean squared gradient is not finite in float32 (an inf, a NaN, an element above 1.8e19, a row or
    column whose squares sum to more than 3.4e38) skips the step: its update is zero, `count`, `nu_token` and `nu_feature` stay,
    `total_notfinite` goes up by one, and everything afterwards is bit-identical to a run that never saw that batch. Other
    tables go on.

    With constant `b2`, bias correction and `eps -> 0` this is Adafactor's factored second moment
    (`optax.scale_by_factored_rms`) without its clipping, relative step size and decay schedule.

    Args:
      b2: decay rate of both averages, in [0, 1).
      eps: added to the denominator after the root, in units of the gradient.
      dimension_numbers: which axis is the vocabulary: one `EmberDimensionNumbers` for all leaves (None means the
        default, token axis 0), a tree of them with the parameters' structure or a prefix of it, or a function from
        parameters to such a tree.
      token_mesh_axes: only inside `jax.shard_map`, where the code sees one device's part of a table: the mesh axes over which
        the token axes are split. Without it each part would silently take its own rows for the whole vocabulary. Under
        `jax.jit` with automatic or explicit mesh axes leave it empty: the arrays are whole there.
      feature_mesh_axes: likewise, the mesh axes over which the feature axes are split.

    Returns:
      A `GradientTransformationExtraArgs` with state `ScaleByEmberState`. `update` takes `token_ids` for compact updates (see
      `row_sparse`); other extra arguments are accepted and ignored.

    Raises:
      TypeError: `b2` or `eps` is not a real number or arrives in less than float32; at init or update, a leaf is
        integer or complex.
      ValueError: `b2` or `eps` out of range; a mesh axis named twice, or at update one that is not in use; at init or update, a
        leaf is empty, an axis does not fit it, a gradient has another shape than its table, or a tree of dimension numbers does
        not match or says None of a leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ember_optax import scale_by_ember
      >>> params = {"embedding": jnp.ones((8, 4))}
      >>> tx = optax.chain(scale_by_ember(), optax.scale_by_learning_rate(1e-3))
      >>> state = tx.init(params)
      >>> state[0].nu_token["embedding"].shape, state[0].nu_feature["embedding"].shape
      ((8,), (4,))
      >>> updates, state = tx.update({"embedding": jnp.full((8, 4), 0.5)}, state)
      >>> print(f"{updates['embedding'][0, 0]:.6f}")
      -0.001000

    References:
      Ember, "Token Geometry", https://arxiv.org/abs/2607.01455; Shazeer and Stern, "Adafactor", https://arxiv.org/abs/1804.04235
    """
    mesh_axes = MeshAxes(_mesh_names(token_mesh_axes, "token_mesh_axes"), _mesh_names(feature_mesh_axes, "feature_mesh_axes"))
    names = mesh_axes.token_mesh + mesh_axes.feature_mesh
    if len(set(names)) != len(names):
        raise ValueError(
            f"token_mesh_axes={token_mesh_axes!r} and feature_mesh_axes={feature_mesh_axes!r} name a mesh axis twice; "
            f"it splits either the tokens or the features."
        )
    return scale_by_ember_with_decay(b2, eps, 0.0, dimension_numbers, mesh_axes)


def scale_by_ember_with_decay(
    b2: jax.typing.ArrayLike,
    eps: jax.typing.ArrayLike,
    weight_decay: jax.typing.ArrayLike,
    dimension_numbers: DimensionNumbersLike,
    mesh_axes: MeshAxes | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`scale_by_ember` that adds `weight_decay * param` to its update.

    `optax.add_decayed_weights` behind `scale_by_ember` cannot know that a table skipped its batch and would decay it all
    the same. Here a skipped table does not move, and the state's structure does not depend on the decay.
    """
    check_b2(b2)
    check_eps(eps)
    check_weight_decay(weight_decay)
    mesh_axes = mesh_axes or MeshAxes()
    # A traced decay may become non-zero later, a Python zero may not: only the latter does without parameters.
    decays = isinstance(weight_decay, jax.Array) or weight_decay != 0.0

    def init_fn(params):
        names, leaves, treedef = flatten_named(params)
        axes = _resolve_axes(dimension_numbers, mesh_axes, params, names, leaves)
        moments = [_boxed(init_moments(unbox(leaf), table), leaf, table) for leaf, table in zip(leaves, axes, strict=True)]
        return _to_state(moments, treedef)

    def update_fn(updates, state, params=None, *, token_ids=None, **extra_args):
        del extra_args
        ids = token_ids_by_name(token_ids)
        if ids and params is None:
            raise ValueError(
                "token_ids need the parameters: call update(updates, state, params, token_ids=token_ids). A compact update does "
                "not tell the shape of its table."
            )
        if decays and params is None:
            raise ValueError(
                "weight_decay needs the parameters: call update(updates, state, params). Under optax.inject_hyperparams "
                "that is so even at zero, because the decay may be changed later."
            )
        names, grads, treedef = flatten_named(updates)
        if is_complete(updates):
            check_known(ids, names)
        weights = _leaves_of(params, names, "parameter tree") if decays or ids else [None] * len(grads)
        # Where the updates are compact, the dense gradient that they stand for.
        dense = [
            rebox(grad, _dense_gradient(unbox(grad), unbox(weight))) if name in ids else grad
            for name, grad, weight in zip(names, grads, weights, strict=True)
        ]
        axes = _resolve_axes(dimension_numbers, mesh_axes, treedef.unflatten(dense), names, dense)
        boxed_moments = _from_state(state, names)
        _check_bound(mesh_axes)
        rate = decay_rate(b2)
        new_updates, new_moments = [], []
        for name, grad, like, boxes, table, weight in zip(names, grads, dense, boxed_moments, axes, weights, strict=True):
            g, moments = jnp.asarray(unbox(grad)), Moments(*map(unbox, boxes))
            _check_gradient(name, g, unbox(like).shape, moments, table)
            if name in ids:
                check_compact(name, g.shape, ids[name], unbox(weight), table)
            decayed = unbox(weight) if decays else None
            update, moments = step_table(g, ids.get(name), moments, table, rate=rate, decayed=decayed)
            new_updates.append(rebox(grad, update))
            new_moments.append(Moments(*map(rebox, boxes, moments)))
        return treedef.unflatten(new_updates), _to_state(new_moments, treedef)

    def step_table(g, ids, moments, axes, *, rate, decayed):
        if ids is None:
            return ember_step(g, moments, axes, rate, eps, decayed_VxD=_decay(decayed, weight_decay) if decays else None)
        row_step = functools.partial(ember_row_step, axes=axes, rate=rate, eps=eps, weight_decay=weight_decay)
        return in_auto_mode(row_step, lambda: jax.tree.map(spec_like, (g, moments)), g, ids, moments, decayed)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _dense_gradient(compact: Any, table: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(table.shape, jnp.asarray(compact).dtype)


def _decay(param: jax.Array, weight_decay: jax.typing.ArrayLike) -> jax.Array:
    param = jnp.asarray(param)
    dtype = jnp.promote_types(jnp.float32, param.dtype)
    return jnp.asarray(weight_decay, dtype) * param.astype(dtype)


def _to_state(moments: list[Moments], treedef) -> ScaleByEmberState:
    """One tree per field from one `Moments` per table; without leaves (a placeholder tree) the tree itself, four times."""
    return ScaleByEmberState(*(treedef.unflatten([getattr(table, field) for table in moments]) for field in Moments._fields))


def _from_state(state: ScaleByEmberState, names: list[str]) -> list[Moments]:
    """One `Moments` per table, boxed as in the state."""
    fields = [_leaves_of(getattr(state, field), names, "state") for field in Moments._fields]
    return [Moments(*values) for values in zip(*fields, strict=True)]


def _leaves_of(tree: Any, names: list[str], what: str) -> list[Any]:
    """The leaves of a tree that must have the updates' tables; compared by path because boxes make equal trees differ."""
    found, leaves, _ = flatten_named(tree)
    if found != names:
        raise ValueError(
            f"the updates have the tables {names}, but the {what} has {found}; pass the {what} that belongs to these updates."
        )
    return leaves


def _boxed(moments: Moments, parameter: Any, axes: TableAxes) -> Moments:
    """Puts each field into the parameter's box, if it has one, with the names of the axes that the field has."""
    token, feature = tuple(sorted(axes.batch + axes.token)), tuple(sorted(axes.batch + axes.feature))
    return Moments(
        count=rebox_axes(parameter, moments.count, axes.batch),
        nu_token=rebox_axes(parameter, moments.nu_token, token),
        nu_feature=rebox_axes(parameter, moments.nu_feature, feature),
        total_notfinite=rebox_axes(parameter, moments.total_notfinite, axes.batch),
    )


def _mesh_names(names: str | tuple[str, ...], argument: str) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"{argument} must be a mesh axis name or a tuple of them, got {names!r}.")
    return tuple(names)


def _resolve_axes(
    dimension_numbers: DimensionNumbersLike, mesh_axes: MeshAxes, tree: Any, names: list[str], leaves: list[Any]
) -> list[TableAxes]:
    # `dimension_numbers=None` as a whole is the default for every leaf; None for one leaf contradicts giving it here.
    default = EmberDimensionNumbers() if dimension_numbers is None else dimension_numbers
    declared = declared_dimension_numbers(default, tree)
    axes = []
    for name, leaf, numbers in zip(names, leaves, declared, strict=True):
        _check_leaf(name, unbox(leaf))
        if numbers is None:
            raise ValueError(
                f"dimension_numbers says None, no table, of {name!r} with shape {unbox(leaf).shape}, but scale_by_ember treats "
                f"every leaf as one: declare EmberDimensionNumbers for it, or keep it out with optax.masked or optax.partition."
            )
        axes.append(table_axes(numbers, unbox(leaf).shape, name)._replace(**mesh_axes._asdict()))
    return axes


def _check_leaf(name: str, leaf: Any) -> None:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise TypeError(
            f"parameter {name!r} is {leaf!r} of type {type(leaf).__name__}, not an array; filter the tree to arrays first."
        )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(
            f"parameter {name!r} of shape {leaf.shape} has dtype {leaf.dtype}; Ember needs a real floating dtype. Keep this "
            f"leaf out with optax.masked, optax.partition or the `tables` argument of ember."
        )
    if 0 in leaf.shape:
        raise ValueError(
            f"parameter {name!r} of shape {leaf.shape} is empty, so its mean squares do not exist; remove it from the tables."
        )


def _check_bound(mesh_axes: MeshAxes) -> None:
    """Whether the caller is inside a `jax.shard_map` (or a `jax.vmap` with `axis_name`) over these axes."""
    for argument, names in mesh_axes._asdict().items():
        for name in names:
            try:
                jax.lax.axis_size(name)
            except (NameError, KeyError):
                raise ValueError(
                    f"{argument}_axes names {name!r}, which is no mesh axis that jax.shard_map splits arrays over at this place. "
                    f"Name an axis of the mesh, or leave the argument out under jax.jit, where arrays are whole."
                ) from None


def _check_gradient(name: str, g: Any, shape: tuple[int, ...], moments: Moments, axes: TableAxes) -> None:
    split_over = varying_axes(g)
    whole = [axis for axis in axes.token_mesh + axes.feature_mesh if split_over and axis not in split_over]
    if whole:
        raise ValueError(
            f"the gradient of {name!r} is the same along the mesh axes {whole}, which token_mesh_axes or feature_mesh_axes "
            f"name, and differs along {sorted(split_over)}: name only axes over which this table is split."
        )
    for field, moment in zip(("nu_token", "nu_feature"), (moments.nu_token, moments.nu_feature), strict=True):
        if moment.dtype != jnp.float32:
            raise TypeError(
                f"{field} of {name!r} is {moment.dtype}, but Ember's state is float32 whatever the parameters' dtype: a step of "
                f"1 - b2 is lost in fewer bits. Do not cast the optimizer state, and restore it into the dtypes of "
                f"jax.eval_shape(tx.init, params)."
            )
    shapes = moment_shapes(shape, axes)
    if (moments.nu_token.shape, moments.nu_feature.shape) != (shapes.nu_token, shapes.nu_feature):
        raise ValueError(
            f"the gradient of {name!r} has shape {shape}, so its state needs nu_token of shape {shapes.nu_token} and "
            f"nu_feature of shape {shapes.nu_feature}, but has {moments.nu_token.shape} and {moments.nu_feature.shape}; "
            f"initialise the state from the parameters that these gradients belong to, or pass token_ids if they are compact."
        )
