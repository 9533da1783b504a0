"""Tables of published models read from files, and files that are cut off or lie about what they hold."""

import struct
import sys
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import tokenizers
from gguf_files import finish

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from lm.errors import UsageError  # isort: skip
from lm.model_files import read_table  # isort: skip

TABLE = np.arange(12 * 32, dtype=np.float32).reshape(12, 32) / 64
TEXTS = ["a", " the", "é", *(str(i) for i in range(9))]


@pytest.fixture
def gguf_file(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    encode = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([encode.pre_tokenize_str(text)[0][0] for text in TEXTS])
    writer.add_tensor(
        "token_embd.weight", gguf.quantize(TABLE, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    finish(writer)
    return path


@pytest.fixture
def safetensors_file(tmp_path):
    path = tmp_path / "model.safetensors"
    arrays = {
        "model.embed_tokens.weight": jnp.asarray(TABLE, jnp.bfloat16),
        "model.layers.0.mlp.up_proj.weight": jnp.ones((4, 4)),
    }
    safetensors.flax.save_file(arrays, path)
    return path


def test_gguf(gguf_file):
    found = read_table(gguf_file)
    assert (found.name, found.texts, found.table.dtype) == ("token_embd.weight", TEXTS, np.float32)
    np.testing.assert_allclose(found.table, TABLE, atol=TABLE.max() / 127)


def test_safetensors_with_a_tokenizer_next_to_it(safetensors_file):
    assert read_table(safetensors_file).texts is None
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"zero": 0, "one": 1}, "zero"))
    tokenizer.save(str(safetensors_file.with_name("tokenizer.json")))
    found = read_table(safetensors_file)
    assert (found.name, found.texts) == ("model.embed_tokens.weight", ["zero", "one", *[""] * 10])
    np.testing.assert_array_equal(found.table, np.asarray(jnp.asarray(TABLE, jnp.bfloat16), np.float32))
    assert read_table(safetensors_file, "model.layers.0.mlp.up_proj.weight").table.shape == (4, 4)


def test_npy(tmp_path):
    np.save(tmp_path / "table.npy", TABLE.astype(np.float16))
    found = read_table(tmp_path / "table.npy")
    assert (found.name, found.texts, found.table.dtype) == ("table", None, np.float32)
    np.testing.assert_array_equal(found.table, TABLE)


def test_choices_are_explained(gguf_file, safetensors_file, tmp_path):
    np.save(tmp_path / "whole.npy", np.arange(6).reshape(2, 3))
    safetensors.flax.save_file(
        {"embed.weight": jnp.ones((4, 2)), "lm_head.weight": jnp.ones((4, 2))}, tmp_path / "two.safetensors"
    )
    safetensors.flax.save_file({"proj": jnp.ones((4, 2))}, tmp_path / "none.safetensors")
    for path, name, message in [
        (gguf_file, "wte", r"no array 'wte'; it has 'token_embd.weight', 'output_norm.weight'"),
        (gguf_file, "output_norm.weight", r"output_norm.weight is float32 of shape \(32,\)"),
        (safetensors_file, "wte", "no array 'wte'; it has 'model.embed"),
        (tmp_path / "two.safetensors", None, "several token tables, embed.weight, lm_head.weight; say which"),
        (tmp_path / "none.safetensors", None, "no name of a token table among 'proj'; say which"),
        (tmp_path / "whole.npy", None, r"whole is int64 of shape \(2, 3\)"),
        (tmp_path / "whole.npy", "wte", "one array, without a name"),
        (tmp_path / "nowhere.npy", None, "no such file"),
        (tmp_path, None, "a folder, not a file"),
        (Path(__file__), None, "ends in .gguf, .safetensors, .npy"),
    ]:
        with pytest.raises(UsageError, match=message):
            read_table(path, name)


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "npy"])
def test_files_that_are_cut_off(kind, gguf_file, safetensors_file, tmp_path):
    np.save(tmp_path / "model.npy", TABLE)
    whole = (tmp_path / f"model.{kind}").read_bytes()
    cut_off = tmp_path / f"cut.{kind}"
    for length in [0, 1, 7, 20, 100, len(whole) // 2, len(whole) - 33]:
        cut_off.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="the file is damaged, or not what its name says"):
            read_table(cut_off)


def hostile_gguf(kind, length):
    """A header whose only entry is an array of `length` elements of a type, and the file ends there."""
    entry = struct.pack("<Q1sIIQ", 1, b"k", 9, kind, length)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry


@pytest.mark.parametrize(
    "suffix, content",
    [
        # A byte array longer than memory, at the end of the file: the reader alone would append nothing, for ever.
        (".gguf", hostile_gguf(0, 2**62)),
        (".gguf", hostile_gguf(8, 2**62)),
        # Arrays of arrays, deeper than any stack.
        (".gguf", hostile_gguf(9, 1) + struct.pack("<IQ", 9, 1) * 50_000),
        (".safetensors", struct.pack("<Q", 2**62) + b"{}"),
        (".safetensors", struct.pack("<Q", 70) + b'{"embed.weight":{"dtype":"F32","shape":[9,9],"data_offsets":[0,324]}}  '),
        (
            ".npy",
            b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 999999), }".ljust(117)
            + b"\n",
        ),
        (
            ".npy",
            b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
            + b"\ncos\nsystem\n",
        ),
    ],
    ids=["bytes without end", "strings without end", "nested", "header without end", "offsets", "larger than memory", "pickle"],
)
def test_files_that_lie(tmp_path, suffix, content):
    (tmp_path / f"model{suffix}").write_bytes(content)
    with pytest.raises(UsageError, match="the file is damaged, or not what its name says"):
        read_table(tmp_path / f"model{suffix}")


def test_nothing_is_executed(tmp_path):
    """A pickle inside a .npy file is refused before it is loaded."""
    np.save(tmp_path / "model.npy", np.array([Path(tmp_path / "trace").touch], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="Python objects"):
        read_table(tmp_path / "model.npy")
