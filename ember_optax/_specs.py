"""Partition specs as `jax.jit` spells them."""

from collections.abc import Iterable
from typing import Any

from jax.sharding import PartitionSpec


def spec_of(entries: Iterable[Any]) -> PartitionSpec:
    """The spec with these entries, without trailing None: to the cache of `jax.jit`, P("fsdp", None) and P("fsdp") differ."""
    kept = list(entries)
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)
