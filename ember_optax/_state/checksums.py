"""`checksums` and `verify_checksums`: whether the arrays that were restored from a checkpoint are those that were saved."""

import functools
import hashlib
import numbers
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._math.mesh import named_sharding
from .._tree.inputs import check_array, listed, shown
from .._tree.paths import check_distinct, full_path_name
from .array_checksum import partial_checksums


def checksums(tree: Any) -> dict[str, int]:
    """A checksum of each array's bits. Save it with the arrays, and verify it when they are restored.

        sum over all indices i of mix(bits_i ^ key_i) mod 2^32, and of the same times another key, combined with dtype and shape

    A change of one element of an array, in any of its bits, is always found. Every other change, such as two swapped elements or
    a restored array of another step, is found with probability 1 - 2^-58. This protects against faults, not against forgery.

    Each device sums its own shards, on any mesh and in any number of processes. All processes must call this, and exchange two
    numbers for each shard of an array. The sums do not depend on the sharding, so a checkpoint that is restored on other devices
    has the same checksums. The function blocks until they are computed.

    Args:
      tree: a tree of arrays of any shapes and of any dtypes of numbers, also random keys, for example
        `{"params": params, "opt_state": opt_state}`. NumPy arrays and Python numbers count too.

    Returns:
      A dictionary from the path of each array to an integer from 0 to 2^64 - 1, which JSON can hold.

    Raises:
      TypeError: the function is called under a transformation such as `jax.jit`, or a leaf is not an array of numbers.
      ValueError: two leaves have the same path, or there is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import checksums
      >>> saved = checksums({"embed": jnp.ones((4, 2)), "step": jnp.int32(3)})
      >>> saved["step"] == checksums({"step": jnp.int32(3)})["step"]
      True
      >>> saved["embed"] == checksums({"embed": jnp.ones((4, 2)).at[1, 0].set(1.0001)})["embed"]
      False

    References:
      docs/checkpoints.md
    """
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [full_path_name(path) for path, _ in paths_and_leaves]
    if not names:
        raise ValueError(f"tree has no array in it, got {shown(tree)}: pass what a checkpoint holds.")
    check_distinct(names)
    arrays = [_as_array(leaf, name) for name, (_, leaf) in zip(names, paths_and_leaves, strict=True)]
    sums = _sums([array for array, _ in arrays])
    return {
        name: (int(low) | int(high) << 32) ^ _number_of(kind)
        for name, (low, high), (_, kind) in zip(names, sums, arrays, strict=True)
    }


def verify_checksums(tree: Any, saved: Mapping[str, int]) -> None:
    """Raises unless a tree has the checksums that it had when it was saved.

    Args:
      tree: the restored tree, as `checksums` takes it. Its containers may differ if the paths are the same.
      saved: the result of `checksums` before the tree was saved.

    Raises:
      TypeError: `saved` is not a dictionary from paths to integers, or `checksums` raises for the tree.
      ValueError: an array is not the one that was saved, or is only in the tree or only in `saved`. The message names the paths.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import checksums, verify_checksums
      >>> saved = checksums({"embed": jnp.ones((4, 2)), "step": jnp.int32(3)})
      >>> verify_checksums({"embed": jnp.ones((4, 2)), "step": jnp.int32(4)}, saved)
      Traceback (most recent call last):
      ...
      ValueError: what was restored is not what was saved: 'step' has other bits. Restore another checkpoint.

    References:
      docs/checkpoints.md
    """
    if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
        raise TypeError(
            f"saved must be the dictionary that `checksums` returned, got {shown(saved)}; pass it from the checkpoint."
        )
    for name, value in saved.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"saved has {shown(value)} for {name!r}, not an integer; pass what `checksums` returned.")
    found = checksums(tree)
    other = [f"{name!r} has other bits" for name, value in found.items() if saved.get(name, value) != value]
    missing = [f"{name!r} is not there" for name in saved if name not in found]
    surplus = [f"{name!r} was not saved" for name in found if name not in saved]
    if faults := other + missing + surplus:
        raise ValueError(f"what was restored is not what was saved: {listed(faults, '; ')}. Restore another checkpoint.")


def _sums(arrays: list[jax.Array | np.ndarray]) -> list[np.ndarray]:
    """The checksum of each array."""
    jax.block_until_ready(arrays)
    found = []
    for array in arrays:
        sharding = named_sharding(array)
        # Set the array's own mesh, which may differ from the mesh in use.
        with nullcontext() if sharding is None else jax.set_mesh(sharding.mesh):  # pyright: ignore[reportArgumentType]
            found.append(partial_checksums(array, sharding))
    return [np.asarray(_in_every_process(parts)).sum(0, dtype=np.uint32) for parts in found]


def _in_every_process(parts: jax.Array) -> jax.Array:
    """The checksums of all shards, replicated. Blocks, because concurrent collectives on a CPU can deadlock."""
    if parts.is_fully_addressable or parts.is_fully_replicated:
        return parts
    return jax.block_until_ready(_replicating(parts.sharding.mesh)(parts))  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _replicating(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _as_array(leaf: Any, name: str) -> tuple[jax.Array | np.ndarray, str]:
    """A leaf as an array that the compiled sum takes, and the dtype and shape of the leaf."""
    if isinstance(leaf, Tracer):
        raise TypeError(f"{name!r} is traced, and has no bits yet: call this outside of jax.jit and other transformations.")
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(f"{name!r} is {shown(leaf)}, a shape without values: pass the arrays.")
    if isinstance(leaf, jax.Array):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = jax.random.key_data(leaf) if is_key else leaf
        return array, f"{leaf.dtype} {leaf.shape}"
    check_array(leaf, repr(name))
    array = np.asarray(leaf)
    array = array.astype(array.dtype.newbyteorder("="))
    kind = f"{array.dtype} {array.shape}"
    if array.dtype.itemsize > 16 or array.dtype == np.longdouble:
        raise TypeError(f"{name!r} of shape {array.shape} has dtype {array.dtype}, which JAX does not know: convert it.")
    # Split elements of eight bytes, because JAX without x64 would convert them to four bytes.
    parts = {"complex128": np.float64, "float64": np.uint32, "int64": np.uint32, "uint64": np.uint32}
    while (part := parts.get(array.dtype.name)) is not None:
        array = np.ascontiguousarray(array)[..., None].view(part)
    return array, kind


def _number_of(kind: str) -> int:
    return int.from_bytes(hashlib.blake2b(kind.encode(), digest_size=8).digest(), "little")
