"""What the programs can do with token tables: keep them in two bytes, round updates to that, fuse the head with its step."""

from collections.abc import Sequence
from typing import Any

from .errors import UsageError
from .regularizing import Chosen


def add_table_options(add: Any) -> None:
    """The options, for `add_argument` of a group."""
    add("--table-dtype", choices=["float32", "bfloat16"], default="float32", help="of embedding and head, without another copy")
    add("--rounding", choices=["stochastic", "nearest"], default="stochastic", help="of tables in bfloat16")
    fused = "also train with Ember and a fused head, whose logits and gradient are never arrays, and compare the two"
    add("--fused-head", action="store_true", help=fused)


def rounding_seed(table_dtype: str, rounding: str, seed: int) -> int | None:
    """The seed of stochastic rounding, None without."""
    return seed if table_dtype != "float32" and rounding == "stochastic" else None


def check_table_options(chosen: Sequence[Chosen], table_dtype: str, rounding: str, *, fused_head: bool) -> None:
    """Raises UsageError for regularizers that these options do not go with."""
    if fused_head and chosen:
        raise UsageError("--fused-head takes no --regularizer: its gradient and update are no arrays; leave one of them out")
    behind = [str(one) for one in chosen if one.kind.transformation]
    if behind and rounding_seed(table_dtype, rounding, 0) is not None:
        raise UsageError(
            f"--regularizer {behind[0]} changes updates after the stochastic rounding of --table-dtype "
            f"{table_dtype}, which must come last: leave it out, or give --rounding nearest"
        )
