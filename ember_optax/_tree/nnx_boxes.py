"""The boxes of Flax NNX: a `Variable`, whose metadata may name the axes of the array inside.

Source: https://flax.readthedocs.io/en/latest/guides/flax_gspmd.html
"""

from typing import Any

import jax
from flax import nnx

# The metadata with a name for each axis: `out_sharding` from Flax 0.12 on, `sharding_names` before. Some copies have `sharding`.
_NAMES = ("out_sharding", "sharding_names", "sharding", "optimizer_sharding")


def is_box(node: Any) -> bool:
    """Whether a node is a `Variable`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> is_box(nnx.Param(jnp.ones((8, 4)))), is_box(jnp.ones(3))
      (True, False)
    """
    return isinstance(node, nnx.Variable)


def unbox(box: nnx.Variable) -> Any:
    """The array inside, as it is stored.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> unbox(nnx.Param(jnp.ones((8, 4)))).shape
      (8, 4)
    """
    return box.get_raw_value() if hasattr(box, "get_raw_value") else box.raw_value


def rebox(box: nnx.Variable, value: jax.Array) -> nnx.Variable:
    """The same kind of variable with the same metadata around another array with the same axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> type(rebox(nnx.Param(jnp.ones((8, 4))), jnp.zeros((8, 4)))).__name__
      'Param'
    """
    return type(box).from_metadata(value, dict(box.get_metadata()))


def rebox_axes(box: nnx.Variable, value: jax.Array, axes: tuple[int, ...]) -> nnx.Variable:
    """The variable around an array that has only the axes `axes` of the boxed parameter, with their names.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> table = nnx.Param(jnp.ones((8, 4)), out_sharding=("vocab", "embed"), eager_sharding=False)
      >>> rebox_axes(table, jnp.zeros(4), axes=(1,)).get_metadata()["out_sharding"]
      ('embed',)
    """
    metadata = dict(box.get_metadata())
    for key in _NAMES:
        if metadata.get(key):
            names = tuple(metadata[key])
            metadata[key] = tuple(names[axis] for axis in axes if axis < len(names))
    return type(box).from_metadata(value, metadata)
