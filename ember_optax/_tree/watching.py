"""Watches `init`: collects the tables that each Ember in a transformation found, and makes `init` take the same ones again.

`_state/origins.py` uses it to find the table of a state array. `train_only_rows` and `vocab` use it to find the token axes.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from .tables import TableTree, read_tree

# The tables that each `init` found, in the order of the calls.
_seen: contextvars.ContextVar[list[TableTree] | None] = contextvars.ContextVar("seen", default=None)
_known: contextvars.ContextVar[Iterator[TableTree] | None] = contextvars.ContextVar("known", default=None)
_is_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("is_quiet", default=False)


@contextlib.contextmanager
def watched_tables(*, is_quiet: bool = True) -> Iterator[list[TableTree]]:
    """Collects the tables that `init` of each Ember in a transformation reads while the context is open.

    With `is_quiet`, `init` does not warn, because only the tables are wanted and not the state.
    """
    outer, seen = _seen.get(), []
    tokens = [(_seen, _seen.set(seen)), (_is_quiet, _is_quiet.set(is_quiet or _is_quiet.get()))]
    try:
        yield seen
    finally:
        for variable, token in tokens:
            variable.reset(token)
        if outer is not None:
            outer.extend(seen)


def check_same_axes(ours: dict[str, tuple[int, ...]], seen: list[TableTree], what: str, where: str, fix: str) -> None:
    """Raises if an Ember whose `init` was watched took another token axis for a table than `ours`, which is by path."""
    for table in (table for found in seen for table in found.tables):
        if table.name in ours and ours[table.name] != table.axes.token:
            raise ValueError(
                f"{what} of {table.name!r} of shape {table.shape} are counted along axis {ours[table.name][0]}, but in {where} "
                f"along axis {table.axes.token[0]}: {fix}."
            )


@contextlib.contextmanager
def repeated_tables(seen: list[TableTree]) -> Iterator[None]:
    """While the context is open, each `init` takes the axes that it took while `seen` was collected, for any new sizes."""
    token = _known.set(iter(seen))
    try:
        yield
    finally:
        _known.reset(token)


def is_observed() -> bool:
    """Whether `init` is called only for its axes. Then it does not warn, because it has warned before, or will."""
    return _is_quiet.get() or _known.get() is not None


def tables_at_init(find: Callable[[Any], TableTree], params: Any, feature_mean: str | None = None, b2: Any = None) -> TableTree:
    """`find(params)`, which is added to the watched tables or replaced by the repeated ones."""
    if (known := _known.get()) is not None:
        of_before = next(known)
        before = {table.name: table for table in of_before.tables}
        found = read_tree(params)
        leaves = [
            leaf.as_table(before[leaf.name].axes, before[leaf.name].kind) if leaf.name in before else leaf
            for leaf in found.leaves
        ]
        return TableTree(leaves, found.treedef, finder=of_before.finder)
    found = find(params)
    if (seen := _seen.get()) is not None:
        seen.append(found._replace(feature_mean=feature_mean, b2=b2))
    return found
