"""Tables of published models read from files, and files that are cut off or lie about what they hold."""

import json
import signal
import struct
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import tokenizers
from gguf_files import finish, tiny_llama
from hostile_files import ARCHIVES, HOSTILE, array, entry, npy_of, of_table, tensor, text
from hostile_files import gguf as gguf_bytes
from hostile_files import safetensors as safetensors_bytes
from lm.damage import read_npz
from lm.errors import UsageError
from lm.llama import read_llama
from lm.model_files import read_table

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
        (safetensors_file, "wte", "no array 'wte'; it has 'model.embed_tokens.weight', 'model.layers"),
        (tmp_path / "two.safetensors", None, "several token tables, embed.weight, lm_head.weight; say which"),
        (tmp_path / "none.safetensors", None, "no name of a token table among 'proj'; say which"),
        (tmp_path / "whole.npy", None, r"whole is int64 of shape \(2, 3\)"),
        (tmp_path / "whole.npy", "wte", "one array, without a name"),
        (tmp_path / "nowhere.npy", None, "no such file"),
        (tmp_path, None, "a folder, not a file"),
        (Path(__file__), None, "ends in .gguf, .safetensors, .safetensors.index.json, .npy, .npz; convert"),
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


@contextmanager
def bounded(seconds: int = 20, megabytes: int = 8):
    """Fails where the code in it takes longer, or more memory at once, than any refusal needs."""

    def late(*_):
        raise TimeoutError(f"not refused after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path, monkeypatch):
    """Refused by name, with what is wrong, in no time and little memory; nothing in them is executed."""
    monkeypatch.chdir(tmp_path)
    file_name, write, message = HOSTILE[name]
    write(tmp_path / file_name)
    with bounded(), pytest.raises(UsageError, match=message) as raised:
        read_table(tmp_path / file_name)
    assert str(raised.value).startswith(f"{tmp_path / file_name}: ")
    assert not (tmp_path / "trace").exists()


def test_the_builders_make_good_files(tmp_path):
    """What is not hostile in them is read: the refusals are of what each entry of the table changes."""
    values = np.arange(8, dtype=np.float32)
    for suffix, content in [
        (
            "gguf",
            gguf_bytes([entry(b"tokenizer.ggml.tokens", 9, array(8, 2, text(b"a") + text(b"b")))], [tensor()], values.tobytes()),
        ),
        ("safetensors", safetensors_bytes(of_table(), values.tobytes())),
        ("npy", npy_of("(2, 4)", data=values.tobytes())),
    ]:
        (tmp_path / f"model.{suffix}").write_bytes(content)
        np.testing.assert_array_equal(read_table(tmp_path / f"model.{suffix}").table, values.reshape(2, 4))


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archives(name, tmp_path, monkeypatch):
    """As the cache of token ids is one."""
    monkeypatch.chdir(tmp_path)
    content, message = ARCHIVES[name]
    (tmp_path / "cache.npz").write_bytes(content)
    with bounded(), pytest.raises(UsageError, match=message):
        read_npz(tmp_path / "cache.npz")
    assert not (tmp_path / "trace").exists()


def test_there_are_enough():
    assert len(HOSTILE) + len(ARCHIVES) >= 100


def test_archives_as_numpy_writes_them(tmp_path):
    arrays = {"a": np.arange(5, dtype=np.uint16), "b": np.asfortranarray(TABLE), "c": np.array(3.0), "d": np.empty((0, 3))}
    np.savez(tmp_path / "arrays.npz", **arrays)
    found = read_npz(tmp_path / "arrays.npz")
    assert list(found) == list(arrays)
    for name, wanted in arrays.items():
        np.testing.assert_array_equal(found[name], wanted, strict=True)


def test_a_tokenizer_with_ids_beyond_the_table(tmp_path):
    """Four thousand million texts are not made for twelve rows."""
    np.save(tmp_path / "model.npy", TABLE)
    model = {"type": "WordLevel", "vocab": {"zero": 0, "far": 2**32 - 1}, "unk_token": "zero"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with bounded():
        found = read_table(tmp_path / "model.npy")
    assert found.texts is None
    assert "tokenizer.json has 4,294,967,296 tokens and the table 12 rows, which may be of other tokens" in found.notes[-1]


_DAMAGED = "the file is damaged, or not what its name says"


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("llama.block_count", 3, "no array 'blk.2.attn_norm.weight'"),
        ("llama.block_count", 2**32 - 1, "no array 'blk.2.attn_norm.weight'"),
        ("llama.block_count", 1, "more blocks than the 1 that it claims"),
        ("llama.block_count", 0, "llama.block_count is 0, and has to be a positive number"),
        ("llama.attention.head_count", 3, _DAMAGED),
        ("llama.attention.head_count", 2**32 - 1, _DAMAGED),
        ("llama.attention.head_count_kv", 0, "llama.attention.head_count_kv is 0, and has"),
        ("llama.rope.freq_base", 0x7FC00000, "llama.rope.freq_base is nan, and has"),
        ("llama.block_count", None, "llama.block_count is None, and has"),
        ("general.architecture", None, "a model of architecture None"),
        ("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens is missing"),
        ("tokenizer.ggml.merges", None, "tokenizer.ggml.merges is missing"),
        ("tokenizer.ggml.token_type", None, "does not hold one number for each of the 259 tokens"),
        ("blk.1.ffn_up", None, "no array 'blk.1.ffn_up.weight'"),
    ],
)
def test_hostile_models(key, value, message, tmp_path):
    """A whole model one of whose entries is changed, or has another name."""
    path = tiny_llama(tmp_path / "model.gguf")
    content = path.read_bytes()
    name = key.encode()
    assert content.count(name) >= 1
    if value is None:
        content = content.replace(name, name[:-1] + b"?", 1)
    else:
        place = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4
        content = content[:place] + struct.pack("<I", value) + content[place + 4 :]
    path.write_bytes(content)
    with bounded(), pytest.raises(UsageError, match=message) as raised:
        read_llama(path)
    assert str(raised.value).startswith(f"{path}: ")
