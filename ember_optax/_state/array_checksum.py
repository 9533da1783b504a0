"""A checksum of an array's bits, the same wherever its parts lie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .._math.mesh import entry_names
from .._math.rounding import mixed

_STRIDE = 0x9E3779B9  # keeps the keys of axes and lanes apart


@functools.partial(jax.jit, static_argnames="sharding")
def partial_checksums(x: jax.Array, sharding: NamedSharding | None = None) -> jax.Array:
    """The `checksum` of each part of an array with this sharding, (parts, 2), each where the part lies: nothing is sent.

    Without naming the parts, the compiler would gather the array: it does not split a reduction of two operands.
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
    """Two sums, (2,) uint32, over all numbers of an array of any dtype and shape: of h, and of g times an odd key of the place,

        h = mix(word ^ key(place)),   g = h ^ (h >> 15)

    Sums of uint32 are exact modulo 2^32 in any order, so those of the parts add up to that of the whole. For one place both
    summands are bijections of the word: a change of a single number always changes both sums. Everything else, such as two
    numbers that change places, goes unseen with probability 2^-58 at most: the keys of two places agree with 2^-32, and the
    second sum then with 2^-26; where they do not agree, each sum with 2^-32.

    Inside `jax.shard_map`, `mesh_axes` names for each axis the mesh axes that split it: the places are those in the whole array.
    """
    words = _words(x)
    names = mesh_axes + ((),) * (words.ndim - len(mesh_axes))
    h = mixed(words ^ _keys(words.shape, 0, names))
    weighted = (h ^ (h >> np.uint32(15))) * (_keys(words.shape, 1, names) | np.uint32(1))
    # One reduction of both: XLA on a CPU fuses what it reads into it, where it writes the operand of a plain sum to memory.
    both = jax.lax.reduce((h, weighted), (np.uint32(0),) * 2, lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(words.ndim)))
    return jnp.stack(both)


def _words(x: jax.Array) -> jax.Array:
    """The bits of each number as uint32, of which numbers of eight bytes and complex ones have several, on axes at the end."""
    if x.dtype == jnp.bool_ or (jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize <= 4):
        return x.astype(jnp.uint32)  # modulo 2^32: no two numbers of these dtypes have the same word
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(jnp.stack([x.real, x.imag], -1))
    bits = 64 if jnp.issubdtype(x.dtype, jnp.integer) else int(jnp.finfo(x.dtype).bits)
    return jax.lax.bitcast_convert_type(x, jnp.uint32 if bits >= 32 else f"uint{bits}").astype(jnp.uint32)


def _keys(shape: tuple[int, ...], lane: int, mesh_axes: tuple[tuple[str, ...], ...]) -> jax.Array:
    """A key for each place, as a sum of one for each coordinate: vectors that take no memory, whatever the array has."""
    total = jnp.full((), _number((lane + 1) * _STRIDE))
    for axis, size in enumerate(shape):
        seed = _number((7 * lane + axis + 1) * _STRIDE)
        place = jnp.arange(size, dtype=jnp.uint32)
        if mesh_axes[axis]:
            place = place + size * jax.lax.axis_index(mesh_axes[axis]).astype(jnp.uint32)
        # Behind a barrier, or the compiler makes them anew for each number of the array.
        key = jax.lax.optimization_barrier(mixed(mixed(place ^ seed) + seed))
        total = total + jnp.expand_dims(key, [other for other in range(len(shape)) if other != axis])
    return total


def _number(value: int) -> np.uint32:
    return np.uint32(value % 2**32)
