"""A checksum of an array's bits that does not depend on how the array is sharded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .._math.mesh import entry_names
from .._math.rounding import mixed

_STRIDE = 0x9E3779B9  # gives each axis and each lane its own keys


@functools.partial(jax.jit, static_argnames="sharding")
def partial_checksums(x: jax.Array, sharding: NamedSharding | None = None) -> jax.Array:
    """The `checksum` of each shard of an array with this sharding, (shards, 2).

    Each device computes the checksum of its own shard, and nothing is communicated. `jax.shard_map` is needed: XLA does not
    partition a reduction of two operands, and would gather the array.
    """
    if sharding is None or sharding.mesh.size == 1:
        return checksum(x)[None]
    entries = tuple(map(entry_names, sharding.spec))
    split = PartitionSpec(tuple(name for of_axis in entries for name in of_axis) or None)
    of_part = functools.partial(checksum, mesh_axes=entries)
    parts = jax.shard_map(
        lambda part: of_part(part)[None], mesh=sharding.mesh, in_specs=sharding.spec, out_specs=split, check_vma=False
    )
    return parts(x)


def checksum(x: jax.Array, mesh_axes: tuple[tuple[str, ...], ...] = ()) -> jax.Array:
    """Two sums over all elements of an array of any dtype and shape, (2,) uint32.

        h = mix(word ^ key(index)),   g = h ^ (h >> 15)

    The first sum is over h, the second over g times an odd key of the index. Sums of uint32 are exact modulo 2^32 in any order,
    so the checksums of the shards add up to the checksum of the array. For a fixed index both summands are bijections of the
    word: a change of a single element always changes both sums. Any other change, for example two elements swapped, is missed
    with a probability of at most 2^-58. The keys of two indices are equal with probability 2^-32, and then the second sums are
    equal with probability 2^-26. If the keys differ, each of the two sums is equal with probability 2^-32.

    Inside `jax.shard_map`, `mesh_axes` names for each axis the mesh axes that shard it. The indices are those in the whole array.
    """
    words = _words(x)
    names = mesh_axes + ((),) * (words.ndim - len(mesh_axes))
    h = mixed(words ^ _keys(words.shape, 0, names))
    weighted = (h ^ (h >> np.uint32(15))) * (_keys(words.shape, 1, names) | np.uint32(1))
    # One reduction of both. XLA on CPU fuses the operands into it, while it writes the operand of a plain sum to memory.
    both = jax.lax.reduce((h, weighted), (np.uint32(0),) * 2, lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(words.ndim)))
    return jnp.stack(both)


def _words(x: jax.Array) -> jax.Array:
    """The bits of each element as uint32. Elements of eight bytes and complex ones have several words, on trailing axes."""
    if x.dtype == jnp.bool_ or (jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize <= 4):
        return x.astype(jnp.uint32)  # modulo 2^32, which maps the values of each of these dtypes one to one
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(jnp.stack([x.real, x.imag], -1))
    bits = 64 if jnp.issubdtype(x.dtype, jnp.integer) else int(jnp.finfo(x.dtype).bits)
    return jax.lax.bitcast_convert_type(x, jnp.uint32 if bits >= 32 else f"uint{bits}").astype(jnp.uint32)


def _keys(shape: tuple[int, ...], lane: int, mesh_axes: tuple[tuple[str, ...], ...]) -> jax.Array:
    """A key for each index, which is the sum of one key for each coordinate. Only vectors are stored, not an array of keys."""
    total = jnp.full((), _number((lane + 1) * _STRIDE))
    for axis, size in enumerate(shape):
        seed = _number((7 * lane + axis + 1) * _STRIDE)
        place = jnp.arange(size, dtype=jnp.uint32)
        if mesh_axes[axis]:
            place = place + size * jax.lax.axis_index(mesh_axes[axis]).astype(jnp.uint32)
        # Without the barrier XLA computes the keys again for each element of the array.
        key = jax.lax.optimization_barrier(mixed(mixed(place ^ seed) + seed))
        total = total + jnp.expand_dims(key, [other for other in range(len(shape)) if other != axis])
    return total


def _number(value: int) -> np.uint32:
    return np.uint32(value % 2**32)
