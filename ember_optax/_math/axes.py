"""The axes of one table: tokens, features, batch."""

from typing import NamedTuple


class TableAxes(NamedTuple):
    """The axes of one parameter, as non-negative numbers. Every axis is in exactly one of the first three fields.

    The mesh fields name the mesh axes that shard the token axes and the feature axes. They are set only inside `jax.shard_map`,
    where an array is one device's shard. Everywhere else they are empty.
    """

    token: tuple[int, ...]
    feature: tuple[int, ...]
    batch: tuple[int, ...]
    token_mesh: tuple[str, ...] = ()
    feature_mesh: tuple[str, ...] = ()
