"""`check_shapes`: refuses a checkpoint of another model before it is loaded, with the names of the arrays that do not fit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._tree.inputs import listed, shown
from .._tree.paths import check_distinct, full_path_name


def check_shapes(saved: Any, target: Any) -> None:
    """Raises unless a checkpoint has exactly the arrays of the target, by path and shape.

    A vocabulary of another size is the usual reason. Libraries that load checkpoints often say only that some shape is wrong.

    Args:
      saved: the content of the checkpoint, a tree with arrays, `jax.ShapeDtypeStruct` or Orbax's metadata as leaves, for example
        `manager.item_metadata(step).tree` of an `orbax.checkpoint.CheckpointManager`. Dictionaries and lists may replace other
        containers.
      target: the tree to restore, for example `jax.eval_shape(tx.init, params)`. Keys of `jax.random.key` fit the numbers that a
        checkpoint stores for them.

    Raises:
      TypeError: a tree, or a leaf of it, has no shape.
      ValueError: a tree is empty, a shape differs, an array is in one tree only, or two arrays have the same path. The message
        names the paths.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import check_shapes
      >>> check_shapes({"embed": jnp.ones((8, 4))}, {"embed": jnp.ones((12, 4))})
      Traceback (most recent call last):
      ...
      ValueError: the checkpoint does not fit: 'embed' was saved with shape (8, 4), wanted is (12, 4). ...

    References:
      docs/checkpoints.md
    """
    ours, theirs = _shapes(target, "target"), _shapes(saved, "saved")
    other = [
        f"{name!r} was saved with shape {theirs[name]}, wanted is {ours[name]}"
        for name in ours
        if theirs.get(name, ours[name]) != ours[name]
    ]
    missing = [f"{name!r} of shape {ours[name]} is not in the checkpoint" for name in ours if name not in theirs]
    surplus = [f"{name!r} of shape {theirs[name]} is only in the checkpoint" for name in theirs if name not in ours]
    if found := other + missing + surplus:
        raise ValueError(
            f"the checkpoint does not fit: {listed(found, '; ')}. Restore it into the model and the optimizer that it was "
            f"saved with; a vocabulary is changed afterwards."
        )


def _shapes(tree: Any, argument: str) -> dict[str, tuple[int, ...]]:
    if isinstance(tree, str | bytes | optax.GradientTransformation) or callable(tree):
        raise TypeError(
            f"{argument} must be a tree of arrays or of their shapes, got {shown(tree)}; pass what was saved or is wanted."
        )
    # By names instead of key paths, because a checkpoint returns dictionaries and lists instead of other containers.
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [full_path_name(path) for path, _ in leaves]
    if not names:
        raise ValueError(
            f"{argument} has no array in it, got {shown(tree)}: pass the tree, for example jax.eval_shape(tx.init, params)."
        )
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if callable(leaf):
            raise TypeError(f"{argument} has {shown(leaf)} at {name!r}, which has no shape: filter the tree to arrays first.")
    check_distinct(names)
    return dict(zip(names, (_shape(leaf) for _, leaf in leaves), strict=True))


def _shape(leaf: Any) -> tuple[int, ...]:
    """The shape of an array. For random keys it is the shape of their numbers, which a checkpoint stores."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf).shape
    shape = getattr(leaf, "shape", None)
    return np.shape(leaf) if shape is None else tuple(shape)
