"""One spelling for the path of a leaf in any parameter tree."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from .boxes import is_box


def path_name(key_path: tuple[Any, ...]) -> str:
    """Spells a key path as names joined by `/`, the same for the same leaf in every library's tree.

    Dictionary keys, attributes, sequence and flattened indices all become plain names. A trailing `value`
    (the inside of an NNX Variable or of a Linen box) and a leading `params` (a Linen variable collection) are dropped,
    because a library shows them in one call and not in the next.

    Args:
      key_path: a path from `jax.tree_util.tree_flatten_with_path`.

    Returns:
      For example `"decoder/embed/embedding"`; the empty string for a tree that is a single leaf.
    """
    names = [name for key in key_path for name in _key_names(key)]
    if len(names) > 1 and names[-1] == "value":
        names.pop()
    if len(names) > 1 and names[0] == "params":
        names.pop(0)
    return "/".join(names)


def full_path_name(key_path: tuple[Any, ...]) -> str:
    """The path with all of its parts, so that different leaves of one tree have different names."""
    return "/".join(name for key in key_path for name in _key_names(key))


def parent_of(name: str) -> str:
    """The path of a leaf's parent, for example of its layer."""
    return name.rpartition("/")[0]


def flatten_named(tree: Any, is_leaf: Callable[[Any], bool] = is_box) -> tuple[list[str], list[Any], Any]:
    """Path names and leaves of a tree in the order of `jax.tree.leaves`, and its structure. A box is one leaf."""
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return [path_name(path) for path, _ in paths_and_leaves], [leaf for _, leaf in paths_and_leaves], treedef


def is_complete(tree: Any) -> bool:
    """Whether a tree has all parameters, so is neither a placeholder (`optax.tree.map_params`) nor masked (`optax.partition`)."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    return bool(leaves) and not any(isinstance(leaf, optax.MaskedNode) for leaf in leaves)


def check_distinct(names: list[str]) -> None:
    """Raises if several leaves have the same name, because one would get the values of another."""
    if len(set(names)) < len(names):
        several = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"paths {several} name more than one leaf each (a leading 'params' is dropped, and the key 'a/b' is also the b in "
            f"a); rename the keys."
        )


def _key_names(key: Any) -> list[str]:
    match key:
        case DictKey(key=name) | FlattenedIndexKey(key=name):
            # A flat dictionary has tuples as keys.
            return [str(part) for part in name] if isinstance(name, tuple) else [str(name)]
        case GetAttrKey(name=name):
            return [name]
        case SequenceKey(idx=index):
            return [str(index)]
        case _:
            return [str(key)]
