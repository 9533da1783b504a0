"""Checksums of arrays: which changes they see, and that they are those of the numbers and not of where the numbers lie."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import SPECS, D, V, make_mesh
from quickly import fully_compiled
from x64 import enable_x64

from benchmarks.drills import bit_flips
from benchmarks.harness.compiled import collectives
from ember_optax import checksums, ember, verify_checksums
from ember_optax._state.array_checksum import checksum, partial_checksums

STRICT = pytest.mark.usefixtures("strict_promotion")
DTYPES = ["bool", "int8", "uint4", "int32", "bfloat16", "float16", "float8_e4m3fn", "float32", "complex64"]
WIDE = ["int64", "uint64", "float64", "complex128"]


def of(array):
    return checksums({"x": array})["x"]


@STRICT
@pytest.mark.parametrize("dtype", [dtype for dtype in [*DTYPES, *WIDE] if dtype not in ("bool", "uint4")])
def test_every_bit_of_every_number_counts(dtype):
    """All flips of single bits of an array are seen, and all differ from each other."""
    values = np.random.default_rng(0).integers(0, 100, (3, 2)).astype(jnp.dtype(dtype))
    found = {of(values)}
    for bit in range(8 * values.nbytes):
        raw = bytearray(values.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        found.add(of(np.frombuffer(raw, values.dtype).reshape(values.shape)))
    assert len(found) == 8 * values.nbytes + 1


def test_places_count():
    """Every exchange of two numbers, also of bfloat16, whose differences are multiples of a power of two; moved rows; signs."""
    table = np.arange(24, dtype=jnp.bfloat16).reshape(6, 4)
    found = {of(table), of(table.T), of(table.reshape(4, 6)), of(table[::-1]), of(table[:, ::-1]), of(table.reshape(6, 4, 1))}
    for i in range(24):
        for j in range(i):
            changed = table.copy().reshape(-1)
            changed[[i, j]] = changed[[j, i]]
            found.add(of(changed.reshape(table.shape)))
    assert len(found) == 6 + 24 * 23 // 2
    ones = np.ones((64, 8), np.float32)
    assert len({of(np.where(np.arange(64)[:, None] < rows, -ones, ones)) for rows in range(65)}) == 65


def test_each_sum_alone_sees_every_number_and_its_place():
    """All 65,536 values of one number at four places: neither sum has one twice at a place; and all exchanges in both."""

    def at(place):
        values = jnp.arange(2**16, dtype=jnp.uint16)
        return jax.jit(jax.vmap(lambda value: checksum(jnp.zeros((2, 4), jnp.uint16).at[place].set(value))))(values)

    for place in [(0, 0), (0, 3), (1, 1), (1, 2)]:
        for one_sum in np.asarray(at(place)).T:
            assert len(np.unique(one_sum)) == 2**16
    order = np.arange(24)
    exchanged = [
        order if i == j else np.where(order == i, j, np.where(order == j, i, order)) for i in order for j in range(i + 1)
    ]
    tables = jnp.asarray(np.unique(exchanged, axis=0).reshape(-1, 6, 4), jnp.bfloat16)
    for one_sum in np.asarray(jax.jit(jax.vmap(checksum))(tables)).T:
        assert len(np.unique(one_sum)) == len(tables) == 1 + 24 * 23 // 2


def test_dtypes_and_shapes_count():
    """Zeros are zeros in every one of them."""
    kinds = [((4,), dtype) for dtype in [*DTYPES, *WIDE]] + [(shape, "float32") for shape in ((), (2, 2), (0, 4), (0, 5))]
    found = [of(np.zeros(shape, jnp.dtype(dtype))) for shape, dtype in kinds]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "shape, dtype, saved",
    [
        ((2, 3, 2), "float32", 7518860585709426449),
        ((5,), "bfloat16", 9879900719998886218),
        ((), "int8", 2581584636695763087),
        ((2, 2), "complex64", 8229498471031735048),
        ((3,), "uint64", 14077060388800664488),
    ],
)
def test_those_of_earlier_versions(shape, dtype, saved):
    """They lie beside checkpoints: another value here is another format, and no checkpoint saved before can be verified."""
    assert of(np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(jnp.dtype(dtype))) == saved


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_for_numpy_and_jax(dtype):
    values = np.arange(6).astype(jnp.dtype(dtype)).reshape(2, 3)
    assert of(values) == of(jnp.asarray(values)) == of(np.asfortranarray(values))


@pytest.mark.parametrize("dtype", WIDE)
def test_eight_bytes(dtype):
    values = np.arange(6).astype(dtype).reshape(2, 3) + np.asarray(2**40).astype(dtype)
    with enable_x64(True):
        assert of(values) == of(jnp.asarray(values))
    assert of(values) != of(values.astype({"complex128": "complex64"}.get(dtype, "float32")).astype(dtype) + 1)
    assert of(values) == of(values.astype(values.dtype.newbyteorder(">")))


@STRICT
@pytest.mark.parametrize("spec, axis_type", [*((spec, AxisType.Auto) for spec in SPECS), (("fsdp", "tp"), AxisType.Explicit)])
def test_the_layout_is_of_no_matter(spec, axis_type):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(V, D)), jnp.bfloat16)
    sharding = NamedSharding(make_mesh(axis_type), P(*spec))
    placed = jax.device_put(table, sharding)
    assert of(placed) == of(table)


def test_nothing_is_sent():
    """And programs that send, of which several at once can wait for each other for ever on a CPU, are not in flight."""
    sharding = NamedSharding(make_mesh(AxisType.Auto), P("fsdp", "tp"))
    with fully_compiled():
        compiled = partial_checksums.lower(jax.ShapeDtypeStruct((V, D), jnp.float32, sharding=sharding), sharding).compile()
    assert collectives(compiled) == []


def test_another_mesh_in_use():
    """A checkpoint may be restored beside a mesh that the arrays do not lie on."""
    table = jnp.arange(32.0).reshape(8, 4)
    two = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    placed = jax.device_put(table, NamedSharding(two, P("rows")))
    with jax.set_mesh(make_mesh(AxisType.Auto)):
        assert of(placed) == of(table)


def test_no_temporaries_and_one_program_for_a_shape():
    compiled = partial_checksums.lower(jax.ShapeDtypeStruct((4096, 64), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 64 * 4 / 50
    before = partial_checksums._cache_size()
    checksums({str(i): jnp.full((5, 7), float(i)) for i in range(10)})
    assert partial_checksums._cache_size() == before + 1


def test_names_what_differs():
    params = {"embed": {"embedding": jnp.ones((8, 4))}, "mlp": {"kernel": jnp.ones((4, 4), jnp.bfloat16)}}
    tree = {"params": params, "opt_state": ember(1e-3, optax.adamw(1e-3)).init(params), "key": jax.random.key(0), "step": 3}
    saved = checksums(tree)
    verify_checksums(tree, saved)
    assert all(0 <= value < 2**64 for value in saved.values())
    # Containers may become dictionaries, as a checkpoint returns them.
    verify_checksums({**tree, "params": {"embed": {"embedding": np.ones((8, 4), np.float32)}, "mlp": params["mlp"]}}, saved)
    other = {**tree, "params": jax.tree.map(lambda leaf: leaf.at[2, 1].set(-1.0), params)}
    with pytest.raises(
        ValueError, match=r"'params/embed/embedding' has other bits; 'params/mlp/kernel' has other bits\. Restore"
    ):
        verify_checksums(other, saved)
    with pytest.raises(ValueError, match="'key' has other bits; 'step' is not there; 'steps' was not saved"):
        verify_checksums({**{k: v for k, v in tree.items() if k != "step"}, "key": jax.random.key(1), "steps": 3}, saved)


@pytest.mark.slow  # thirty restores
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what Orbax leaves behind when it refuses
def test_bits_on_the_disk(tmp_path):
    """A flipped bit of a checkpoint's files never comes back unnoticed; the drill has 600, this is some of each kind."""
    found = bit_flips.measure(tmp_path, flips=15, seed=1)
    for drawn in ("every bit alike", "every file alike"):
        assert found[drawn]["restored wrong"] == 0
    assert found["every bit alike"]["refused by checksums"] > 0
