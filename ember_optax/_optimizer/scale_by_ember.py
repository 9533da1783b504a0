"""`scale_by_ember`: the step of one table, mapped over a tree of tables."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from .._fused_heads.leaf import FusedLeaf
from .._fused_heads.step import ember_head_step
from .._math.axes import TableAxes
from .._math.mesh import in_auto_mode, spec_like
from .._math.moments import decay_rate
from .._math.state import Moments, init_moments, kept_axes
from .._math.step import Hyperparameters, ember_step
from .._tree.boxes import rebox, rebox_axes, unbox
from .._tree.declared import AUTO, DimensionNumbersLike, check_declaration
from .._tree.find_states import ScaleByEmberState
from .._tree.hyperparameters import checked_b2, checked_eps, checked_feature_mean, checked_weight_decay
from .._tree.inputs import check_array, check_tree
from .._tree.tables import Leaf, TableTree, every_table
from .._tree.token_ids import token_ids_by_name
from .._tree.watching import tables_at_init
from .checks import check_bound, check_given, check_gradient, check_head, check_leaf, check_state, mesh_names
from .row_step import ember_row_step

FeatureMean = Literal["all_rows", "active_rows"]


def scale_by_ember(
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    feature_mean: FeatureMean = "all_rows",
    dimension_numbers: DimensionNumbersLike = AUTO,
    token_mesh_axes: str | tuple[str, ...] = (),
    feature_mesh_axes: str | tuple[str, ...] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales updates by Ember's factored second moment. Every leaf is treated as a token table.

    For a table's gradient :math:`g` of shape (V, D) at step t:

    .. math::
        \nu^{token}_i &\leftarrow b_2 \nu^{token}_i + (1 - b_2) \,\mathrm{mean}_j\, g_{ij}^2 \\
        \nu^{feature}_j &\leftarrow b_2 \nu^{feature}_j + (1 - b_2) \,\mathrm{mean}_i\, g_{ij}^2 \\
        \hat v_{ij} &= \nu^{token}_i \, \frac{\nu^{feature}_j}{\mathrm{mean}_j\, \nu^{feature}_j} \, \frac{1}{1 - b_2^t} \\
        u_{ij} &= g_{ij} / (\sqrt{\hat v_{ij}} + \epsilon)

    A leaf of rank 0 or 1 has no feature axes, so its :math:`\hat v` is :math:`\nu^{token}` itself. Several feature axes
    count as one. The state is float32 for every dtype of the parameters, and updates have the dtype of the gradients.

    A table skips the step if its mean squared gradient is not finite in float32. (The gradient has an inf, a NaN, an element
    above 1.8e19, or a row or column whose squares sum to more than 3.4e38.) Then its update is zero, `count`, `nu_token` and
    `nu_feature` stay, `total_notfinite` goes up by one, and everything afterwards is bit-identical to a run without that batch.
    Other tables take the step. A table whose averages are not finite (from a damaged checkpoint) skips and counts every step.

    Range: with the default `eps` the update is within 1e-6 of float64 for gradients from 1e-22 to 1e17. Squares below
    1.2e-38 are zero in float32. For gradients below about 3e-18 the root is therefore at least
    :math:`\sqrt{1.2 \cdot 10^{-38} / (1 - b_2^t)}`, which is 3.4e-18 in the first step with `b2=0.999`. Their steps are smaller
    than those of the formula, never larger. This matters only for an `eps` below the default.

    With constant `b2`, bias correction and `eps -> 0` this is Adafactor's factored second moment
    (`optax.scale_by_factored_rms`) without its clipping, relative step size and decay schedule.

    Args:
      b2: decay rate of both averages, in [0, 1).
      eps: added to the denominator after the root, in units of the gradient.
      feature_mean: the rows of a batch over which the feature statistic is averaged. "all_rows" is the equation above and the
        authors' code since 2026-07-20. "active_rows" is the code published with the paper of 2026-07-01. It averages the
        feature statistic over the rows with a gradient instead of over V, and divides :math:`\nu^{feature}` by
        :math:`\mathrm{mean}_i\, \nu^{token}_i` instead of its own mean. On an input table whose batches touch a share s of the
        rows, its steps are :math:`\sqrt{s}` times as large, and rows of padding change them. Use it to reproduce published runs
        and their learning rates.
      dimension_numbers: which axis is the vocabulary. It is one `EmberDimensionNumbers` for all leaves, a tree of them with the
        parameters' structure or a prefix of it, or a function from parameters to such a tree. "auto" is what `token_tables`
        finds, and axis 0 for all other leaves.
      token_mesh_axes: the mesh axes that shard the token axes. Set it only inside `jax.shard_map`, where an array is one device's
        shard. Without it, each shard would silently take its own rows for the whole vocabulary. Leave it empty under `jax.jit`
        with automatic or explicit mesh axes, where arrays are whole.
      feature_mesh_axes: the mesh axes that shard the feature axes. Set it only inside `jax.shard_map`.

    Returns:
      A `GradientTransformationExtraArgs` with state `ScaleByEmberState`. `update` takes `token_ids` for compact updates (see
      `row_sparse`). It ignores other extra arguments.

    Raises:
      TypeError: `b2` or `eps` is not a real number, or lost its digits in a dtype below float32; at init or update, a leaf is
        integer or complex.
      ValueError: `b2` or `eps` is out of range; a mesh axis is named twice; at update, a mesh axis is not in use; at init or
        update, a leaf is empty, an axis does not fit a leaf, a gradient and its table have different shapes, two leaves have the
        same path, or a tree of dimension numbers does not match or has None for a leaf.

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
    check_declaration(dimension_numbers, "dimension_numbers")
    mesh_axes = {
        "token_mesh": mesh_names(token_mesh_axes, "token_mesh_axes"),
        "feature_mesh": mesh_names(feature_mesh_axes, "feature_mesh_axes"),
    }
    names = mesh_axes["token_mesh"] + mesh_axes["feature_mesh"]
    if len(set(names)) != len(names):
        raise ValueError(
            f"token_mesh_axes={token_mesh_axes!r} and feature_mesh_axes={feature_mesh_axes!r} name a mesh axis twice; "
            f"it splits either the tokens or the features."
        )
    find = functools.partial(every_table, declaration=dimension_numbers)
    return scale_tables(find, b2=b2, eps=eps, feature_mean=feature_mean, mesh_axes=mesh_axes)


def scale_tables(
    find: Callable[..., TableTree],
    *,
    b2: Any,
    eps: Any,
    feature_mean: FeatureMean = "all_rows",
    weight_decay: Any = 0.0,
    mesh_axes: dict[str, tuple[str, ...]] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`scale_by_ember` on the tables that `find` finds in a tree, with `weight_decay * param` added to the update.

    `optax.add_decayed_weights` after `scale_by_ember` does not know that a table skipped its batch, and decays it anyway. Here a
    table that skips does not move, and the state's structure does not depend on the decay.
    """
    b2, eps, weight_decay = checked_b2(b2), checked_eps(eps), checked_weight_decay(weight_decay)
    active_rows = checked_feature_mean(feature_mean) == "active_rows"
    # A traced decay may become non-zero later, so it needs the parameters. Only a Python zero does not.
    decays = isinstance(weight_decay, jax.Array) or weight_decay != 0.0

    def axes_of(table: Leaf) -> TableAxes:
        return check_leaf(table)._replace(**(mesh_axes or {}))

    def init_fn(params):
        check_tree(params, "params")
        found = tables_at_init(find, params, feature_mean, b2)
        return _to_state(found, [_first_moments(table, axes_of(table)) for table in found.leaves])

    def update_fn(updates, state, params=None, *, token_ids=None, **extra_args):
        del extra_args
        check_tree(updates, "updates", may_be_empty=True)
        check_state(state)
        check_tree(params, "params", may_be_empty=True, may_be_missing=True)
        ids = token_ids_by_name(token_ids)
        check_given(params, with_ids=bool(ids), decays=decays)
        found = find(updates, token_ids=ids, params=params)
        check_bound(mesh_axes or {})
        weights = found.leaves_of(params, "parameter tree", may_have_more=True) if decays else [None] * len(found.leaves)
        step = functools.partial(_step_table, by=Hyperparameters(decay_rate(b2), eps, weight_decay), active_rows=active_rows)
        stepped = [
            step(table, boxes, unbox(weight), axes=axes_of(table))
            for table, boxes, weight in zip(found.leaves, _from_state(state, found), weights, strict=True)
        ]
        return found.rebuild([update for update, _ in stepped]), _to_state(found, [moments for _, moments in stepped])

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _step_table(
    table: Leaf, boxes: Moments, weight: Any, *, axes: TableAxes, by: Hyperparameters, active_rows: bool
) -> tuple[Any, Moments]:
    """The update of one table, dense or compact, and its next state in the boxes of the old state."""
    check_array(table.box, f"the gradient of {table.name!r}")
    if isinstance(table.array, FusedLeaf):
        return _step_head(table, boxes, axes=axes, by=by, active_rows=active_rows)
    g, moments = jnp.asarray(table.array), Moments(*map(unbox, boxes))
    if weight is not None:
        check_array(weight, f"parameter {table.name!r}")
    param = None if weight is None else jnp.asarray(weight)
    check_gradient(table, g, moments, axes)
    if table.ids is None:
        update, moments = ember_step(g, moments, by, param, axes=axes, active_rows=active_rows)
    else:
        row_step = functools.partial(ember_row_step, axes=axes, active_rows=active_rows)
        specs = functools.partial(jax.tree.map, spec_like, (g, moments))
        update, moments = in_auto_mode(row_step, specs, g, table.ids, moments, by, param)
    return update, Moments(*map(rebox, boxes, moments))


def _step_head(
    table: Leaf, boxes: Moments, *, axes: TableAxes, by: Hyperparameters, active_rows: bool
) -> tuple[FusedLeaf, Moments]:
    """`_step_table` for the gradient of a fused head. Weight decay is added later, where the update is applied to the table."""
    gradient, moments = table.array, Moments(*map(unbox, boxes))
    check_head(table, gradient, axes)
    check_gradient(table, gradient.table, moments, axes)
    preconditioner, moments = ember_head_step(gradient.tap, gradient.factor, moments, by, axes=axes, active_rows=active_rows)
    return gradient.update(preconditioner), Moments(*map(rebox, boxes, moments))


def _to_state(found: TableTree, moments: list[Moments]) -> ScaleByEmberState:
    """The state, with one tree per field, from one `Moments` per table. For a tree without leaves, every field is that tree."""
    return ScaleByEmberState(*(found.treedef.unflatten([one[i] for one in moments]) for i in range(len(Moments._fields))))


def _from_state(state: ScaleByEmberState, found: TableTree) -> list[Moments]:
    """One `Moments` per table, boxed as in the state."""
    fields = [found.leaves_of(getattr(state, field), "state") for field in Moments._fields]
    return list(map(Moments, *fields))


def _first_moments(table: Leaf, axes: TableAxes) -> Moments:
    """Zeros, in boxes like the parameter's with the names of the axes that each field keeps."""
    return Moments(*(rebox_axes(table.box, *of) for of in zip(init_moments(table.array, axes), kept_axes(axes), strict=True)))
