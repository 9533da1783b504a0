"""The axes of one table: tokens, features, batch."""

from typing import NamedTuple


class TableAxes(NamedTuple):
    """The axes of one parameter, non-negative and complete: every axis is in exactly one of the first three fields.

    The mesh fields name the mesh axes over which the token and feature axes are split where the code sees one device's part
    only, inside `jax.shard_map`. They are empty everywhere else.
    """

    token: tuple[int, ...]
    feature: tuple[int, ...]
    batch: tuple[int, ...]
    token_mesh: tuple[str, ...] = ()
    feature_mesh: tuple[str, ...] = ()
