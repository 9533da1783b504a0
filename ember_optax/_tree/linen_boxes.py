"""The boxes of Flax Linen: `nn.Partitioned` and `nn.LogicallyPartitioned`.

Source: https://flax.readthedocs.io/en/latest/guides/parallel_training/flax_on_pjit.html
"""

from typing import Any

import flax.linen as nn
import jax


def is_box(node: Any) -> bool:
    """Whether a node is a Linen box with a name for each axis: `nn.Partitioned` or `nn.LogicallyPartitioned`.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> is_box(nn.Partitioned(jnp.ones((8, 4)), names=("vocab", "embed"))), is_box(jnp.ones(3))
      (True, False)
    """
    return isinstance(node, nn.Partitioned)


def unbox(box: nn.Partitioned) -> Any:
    """The array inside, without applying a sharding constraint.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> unbox(nn.Partitioned(jnp.ones((8, 4)), names=("vocab", "embed"))).shape
      (8, 4)
    """
    return box.value


def rebox(box: nn.Partitioned, value: jax.Array) -> nn.Partitioned:
    """The same box around another array with the same axes.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> rebox(nn.Partitioned(jnp.ones((8, 4)), names=("vocab", "embed")), jnp.zeros((8, 4))).names
      ('vocab', 'embed')
    """
    return box.replace(value=value)


def rebox_axes(box: nn.Partitioned, value: jax.Array, axes: tuple[int, ...]) -> nn.Partitioned:
    """The box around an array that has only the axes `axes` of the boxed parameter, with their names.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> table = nn.Partitioned(jnp.ones((8, 4)), names=("vocab", "embed"))
      >>> rebox_axes(table, jnp.zeros(4), axes=(1,)).names
      ('embed',)
    """
    return box.replace(value=value, names=tuple(box.names[axis] for axis in axes if axis < len(box.names)))
