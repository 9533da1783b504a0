"""Sound files of tables, in every byte order, number type and layout: read as they were written, or refused by name."""

import json
import struct
from pathlib import Path

import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from gguf_files import tiny_llama, write_gguf
from hostile_files import array, entry, tensor
from hostile_files import gguf as gguf_bytes
from lm.errors import UsageError
from lm.llama import read_llama
from lm.model_files import read_table

TABLE = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
HEAD = np.random.default_rng(1).normal(size=(16, 256)).astype(np.float32)
Type = gguf.GGMLQuantizationType
NAME = "token_embd.weight"


def refused(path, message, *arguments):
    with pytest.raises(UsageError, match=message) as raised:
        read_table(path, *arguments)
    assert str(raised.value).startswith(f"{path}: ")
    assert "damaged" not in str(raised.value)


def write_safetensors(path: Path, arrays: dict[str, tuple[str, list[int], bytes]]) -> Path:
    """Writes arrays of any number type, given as its name, the shape and the bytes."""
    header, data = {}, b""
    for name, (dtype, shape, content) in arrays.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


class TestByteOrder:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
    @pytest.mark.parametrize("big_endian", [False, True])
    def test_plain_numbers(self, dtype, big_endian, tmp_path):
        path = write_gguf(tmp_path / "model.gguf", {NAME: TABLE.astype(dtype)}, tokens=["a", "b"], big_endian=big_endian)
        found = read_table(path)
        np.testing.assert_array_equal(found.table, TABLE.astype(dtype).astype(np.float32), strict=True)
        assert found.table.dtype.isnative
        assert found.texts == ["a", "b", *[""] * 14]

    @pytest.mark.parametrize("kind", [Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q5_1])
    def test_blocks(self, kind, tmp_path):
        """In the other byte order, nothing in the file says which bytes of a block were swapped."""
        path = write_gguf(tmp_path / "little.gguf", {NAME: TABLE}, types={NAME: kind})
        np.testing.assert_array_equal(read_table(path).table, gguf.dequantize(gguf.quantize(TABLE, kind), kind))
        path = write_gguf(tmp_path / "big.gguf", {NAME: TABLE}, types={NAME: kind}, big_endian=True)
        refused(path, f"{NAME} is big-endian {kind.name}, .*; get the little-endian file, or get the model as F32, F16 or Q8_0")

    @pytest.mark.parametrize("big_endian", [False, True])
    def test_blocks_of_single_bytes(self, big_endian, tmp_path):
        content = np.random.default_rng(2).integers(100, 140, (16, 8 * 17), np.uint8)
        writer = gguf.GGUFWriter(
            tmp_path / "model.gguf", "llama", endianess=gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
        )
        writer.add_tensor(NAME, content, raw_dtype=Type.MXFP4)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        np.testing.assert_array_equal(read_table(tmp_path / "model.gguf").table, gguf.dequantize(content, Type.MXFP4))

    def test_a_model(self, tmp_path):
        little, big = (read_llama(tiny_llama(tmp_path / f"{order}.gguf", big_endian=order)) for order in (False, True))
        assert little.config == big.config
        for name in ("query", "attention_norm"):
            np.testing.assert_array_equal(little.params["blocks"][name]["weight"], big.params["blocks"][name]["weight"])
        np.testing.assert_array_equal(little.params["embed_tokens"]["weight"], big.params["embed_tokens"]["weight"])

    def test_numpy(self, tmp_path):
        np.save(tmp_path / "big.npy", TABLE.astype(">f4"))
        np.testing.assert_array_equal(read_table(tmp_path / "big.npy").table, TABLE, strict=True)


class TestNumberTypes:
    @pytest.mark.parametrize("kind, dtype", [
        ("F64", np.float64), ("F16", np.float16), ("BF16", jnp.bfloat16), ("F8_E4M3", jnp.float8_e4m3fn),
        ("F8_E5M2", jnp.float8_e5m2), ("F8_E4M3FNUZ", jnp.float8_e4m3fnuz), ("F8_E5M2FNUZ", jnp.float8_e5m2fnuz),
    ])  # fmt: skip
    def test_safetensors(self, kind, dtype, tmp_path):
        written = TABLE.astype(dtype)
        arrays = {"other": ("U8", [3], b"abc"), "embed.weight": (kind, [16, 256], written.tobytes())}
        found = read_table(write_safetensors(tmp_path / "model.safetensors", arrays))
        np.testing.assert_array_equal(found.table, written.astype(np.float32), strict=True)

    @pytest.mark.parametrize("kind, bits", [("F4", 4), ("F6_E2M3", 6), ("F8_E8M0", 8)])
    def test_types_that_cannot_be_read(self, kind, bits, tmp_path):
        arrays = {"embed.weight": (kind, [16, 256], bytes(16 * 256 * bits // 8))}
        path = write_safetensors(tmp_path / "model.safetensors", arrays)
        refused(path, f"embed.weight has numbers of the type {kind}, which cannot be read here; save the table as F32")

    @pytest.mark.parametrize("kind, dtype", [("U8", "uint8"), ("BOOL", "bool")])
    def test_no_numbers_of_a_table(self, kind, dtype, tmp_path):
        path = write_safetensors(tmp_path / "model.safetensors", {"embed.weight": (kind, [16, 256], bytes(16 * 256))})
        refused(path, rf"embed.weight is {dtype} of shape \(16, 256\), .*; name another array with --table, or save")

    def test_int8(self, tmp_path):
        written = np.clip(np.round(TABLE * 30), -127, 127).astype(np.int8)
        safetensors.numpy.save_file({"embeddings": written}, tmp_path / "model.safetensors")
        np.save(tmp_path / "model.npy", written)
        for name in ("model.safetensors", "model.npy"):
            found = read_table(tmp_path / name)
            np.testing.assert_array_equal(found.table, written.astype(np.float32), strict=True)
            assert "is int8 without a scale" in found.notes[0]

    @pytest.mark.parametrize("scale", ["embed.SCB", "embed.weight_scale_inv", "embed.scales", "embed.weight_scale"])
    @pytest.mark.parametrize("kind", ["I8", "F8_E4M3"])
    def test_scales_in_another_array(self, scale, kind, tmp_path):
        arrays = {"embed.weight": (kind, [16, 256], bytes(16 * 256)), scale: ("F32", [16], bytes(64))}
        path = write_safetensors(tmp_path / "model.safetensors", arrays)
        refused(path, f"with '{scale}' beside it, and what these do to it is not known here; save the table as float32")

    def test_numbers_beyond_float32(self, tmp_path):
        np.save(tmp_path / "model.npy", TABLE.astype(np.float64) * 1e300)
        refused(tmp_path / "model.npy", "model has numbers beyond 3.4e38, the largest of float32; scale the table down")
        safetensors.numpy.save_file({"embed.weight": TABLE.astype(np.float64) * 1e300}, tmp_path / "model.safetensors")
        refused(tmp_path / "model.safetensors", "embed.weight has numbers beyond 3.4e38")
        write_gguf(tmp_path / "model.gguf", {NAME: TABLE.astype(np.float64) * 1e300})
        refused(tmp_path / "model.gguf", "token_embd.weight has numbers beyond 3.4e38")

    @pytest.mark.parametrize("kind", [Type.Q8_1, Type.Q8_K])
    def test_gguf_types_without_a_reader(self, kind, tmp_path):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        writer.add_tensor(NAME, np.zeros((4, 256 // block * size), np.uint8), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        refused(tmp_path / "model.gguf", f"{NAME} is of the number type {kind.name}, which gguf .* cannot read; update gguf, or")

    def test_another_array_of_a_new_gguf_type(self, tmp_path):
        """The table can be read all the same."""
        path = write_gguf(tmp_path / "model.gguf", {NAME: TABLE, "blk.0.ffn_up.weight": HEAD})
        content = path.read_bytes()
        place = content.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 16
        assert content[place : place + 4] == struct.pack("<I", Type.F32)
        path.write_bytes(content[:place] + struct.pack("<I", 999) + content[place + 4 :])
        np.testing.assert_array_equal(read_table(path).table, TABLE)
        refused(path, "blk.0.ffn_up.weight is of the number type 999, which gguf .* does not know", "blk.0.ffn_up.weight")

    def test_gguf_scales(self, tmp_path):
        path = write_gguf(tmp_path / "model.gguf", {NAME: TABLE, "token_embd.scale": np.ones(1, np.float32)})
        refused(path, "token_embd.weight is to be multiplied by token_embd.scale, which is not done here; get another")

    def test_bfloat16_of_numpy(self, tmp_path):
        """NumPy saves it as two bytes without a type."""
        written = TABLE.astype(ml_dtypes.bfloat16)
        np.save(tmp_path / "model.npy", written)
        np.savez(tmp_path / "model.npz", written)
        for name in ("model.npy", "model.npz"):
            found = read_table(tmp_path / name)
            np.testing.assert_array_equal(found.table, written.astype(np.float32), strict=True)
            assert "2-byte numbers without a type, read as bfloat16" in found.notes[0]

    def test_8_bit_floats_of_numpy(self, tmp_path):
        """One byte without a type can be any of ten."""
        np.save(tmp_path / "e4m3.npy", TABLE.astype(jnp.float8_e4m3fn))
        refused(tmp_path / "e4m3.npy", r"e4m3 is \|V1 of shape \(16, 256\), .* or save the table as float32")
        np.save(tmp_path / "e5m2.npy", TABLE.astype(jnp.float8_e5m2))
        refused(tmp_path / "e5m2.npy", "it has numbers of the type '<f1', which NumPy does not know; save the table as float32")


class TestHeads:
    def test_gguf(self, tmp_path):
        path = write_gguf(tmp_path / "untied.gguf", {NAME: TABLE, "output.weight": HEAD})
        found, head = read_table(path), read_table(path, "output.weight")
        np.testing.assert_array_equal(found.table, TABLE)
        np.testing.assert_array_equal(head.table, HEAD)
        assert (found.has_own_head, head.has_own_head) == (True, False)
        assert found.notes == ("the model has a head of its own, output.weight",)
        path = write_gguf(tmp_path / "twice.gguf", {NAME: TABLE, "output.weight": TABLE})
        assert not read_table(path).has_own_head

    def test_gguf_with_a_head_alone(self, tmp_path):
        path = write_gguf(tmp_path / "model.gguf", {"output.weight": HEAD})
        refused(path, "no array 'token_embd.weight', .*; it has 'output.weight'; say which one to read with --table NAME")

    def test_safetensors(self, tmp_path):
        path = tmp_path / "model.safetensors"
        for head, own in ((HEAD, True), (TABLE, False)):
            safetensors.numpy.save_file({"model.embed_tokens.weight": TABLE, "lm_head.weight": head}, path)
            refused(path, "several token tables, .*; say which one to read with --table NAME")
            assert read_table(path, "model.embed_tokens.weight").has_own_head == own
            assert not read_table(path, "lm_head.weight").has_own_head

    def test_safetensors_with_a_head_alone(self, tmp_path):
        safetensors.numpy.save_file({"lm_head.weight": HEAD, "norm.weight": HEAD[0]}, tmp_path / "model.safetensors")
        found = read_table(tmp_path / "model.safetensors")
        assert (found.name, found.has_own_head) == ("lm_head.weight", False)

    def test_parts(self, tmp_path):
        names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        safetensors.numpy.save_file({"model.embed_tokens.weight": TABLE}, tmp_path / names[0])
        found = read_table(tmp_path / names[0])
        assert found.notes[0] == "the model has 2 parts and only this one was read: say --untied if it has a head of its own"
        safetensors.numpy.save_file({"lm_head.weight": HEAD}, tmp_path / names[1])
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": names[0], "lm_head.weight": names[1]}}))
        for path in (index, tmp_path / names[0], tmp_path / names[1]):
            found = read_table(path, "model.embed_tokens.weight")
            np.testing.assert_array_equal(found.table, TABLE)
            assert found.has_own_head
        np.testing.assert_array_equal(read_table(index, "lm_head.weight").table, HEAD)
        (tmp_path / names[1]).unlink()
        with pytest.raises(UsageError, match=f"{names[1]}: no such file"):
            read_table(index)

    def test_a_part_without_a_table(self, tmp_path):
        path = tmp_path / "model-00002-of-00003.safetensors"
        safetensors.numpy.save_file({"norm.weight": HEAD}, path)
        refused(path, "no name of a token table among 'norm.weight' in this one of 3 parts, and no index next to it")

    def test_a_part_of_gguf(self, tmp_path):
        path = tiny_llama(tmp_path / "model-00001-of-00003.gguf", more={"split.count": 3})
        assert read_table(path).notes == (
            "the model has 3 parts and only this one was read: say --untied if it has a head of its own",
        )


class TestRowsThatAreNotTokens:
    MAPPING = np.array([3, 3, 0, 15, 7, 0], np.int64)
    WEIGHTS = np.array([1.0, 0.5, 2.0, 0.25, 1.0, 0.0])

    def test_clustered_vocabulary(self, tmp_path):
        """As static embeddings are saved whose vocabulary is quantized."""
        path = tmp_path / "model.safetensors"
        arrays = {"embeddings": TABLE, "mapping": self.MAPPING}
        safetensors.numpy.save_file(arrays, path)
        found = read_table(path)
        np.testing.assert_array_equal(found.table, TABLE[self.MAPPING])
        assert found.notes[0] == "6 tokens share 16 rows: the table is embeddings[mapping]"
        safetensors.numpy.save_file(arrays | {"weights": self.WEIGHTS}, path)
        np.testing.assert_allclose(read_table(path).table, TABLE[self.MAPPING] * self.WEIGHTS[:, None], rtol=1e-6)
        np.savez(tmp_path / "model.npz", **arrays, weights=self.WEIGHTS)
        np.testing.assert_allclose(
            read_table(tmp_path / "model.npz").table, TABLE[self.MAPPING] * self.WEIGHTS[:, None], rtol=1e-6
        )
        safetensors.numpy.save_file({"embeddings": TABLE, "weights": np.arange(16.0)}, path)
        np.testing.assert_array_equal(read_table(path).table, TABLE * np.arange(16, dtype=np.float32)[:, None])

    def test_texts_follow_the_mapping(self, tmp_path):
        arrays = {"embeddings": TABLE[:3], "mapping": np.array([0, 2, 1, 2])}
        safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
        save_tokenizer(tmp_path, ["a", "b", "c", "d"])
        assert read_table(tmp_path / "model.safetensors").texts == ["a", "b", "c", "d"]

    @pytest.mark.parametrize(
        "more, message",
        [
            ({"mapping": np.array([0.0, 1.0])}, r"mapping is float64 of shape \(2,\), not a row for each token"),
            ({"mapping": np.array([0, 16])}, "mapping names the rows 0 to 16, but embeddings has 16; get it again"),
            ({"weights": np.ones(3)}, r"weights is float64 of shape \(3,\), not a number for each of 16 tokens"),
        ],
    )
    def test_arrays_that_do_not_fit(self, more, message, tmp_path):
        safetensors.numpy.save_file({"embeddings": TABLE} | more, tmp_path / "model.safetensors")
        refused(tmp_path / "model.safetensors", message)

    @pytest.mark.parametrize("suffix", ["gguf", "npy"])
    def test_fewer_and_more_rows_than_tokens(self, suffix, tmp_path):
        def read(tokens):
            if suffix == "gguf":
                return read_table(write_gguf(tmp_path / "model.gguf", {NAME: TABLE}, tokens=tokens))
            np.save(tmp_path / "model.npy", TABLE)
            save_tokenizer(tmp_path, tokens)
            return read_table(tmp_path / "model.npy")

        tokens = [f"t{i}" for i in range(40)]
        found = read(tokens)
        assert found.texts is None
        assert "40 tokens and the table 16 rows, which may be of other tokens: texts are not shown" in found.notes[-1]
        assert read(tokens[:16])[1:] == (tokens[:16], found.name, False, found.notes[:-1])
        found = read(tokens[:10])
        assert found.texts == [*tokens[:10], *[""] * 6]
        assert "6 of the 16 rows are beyond the 10 tokens" in found.notes[-1]

    def test_an_empty_vocabulary(self, tmp_path):
        entries = [entry(b"tokenizer.ggml.tokens", 9, array(8, 0))]
        (tmp_path / "model.gguf").write_bytes(gguf_bytes(entries, [tensor()], bytes(32)))
        found = read_table(tmp_path / "model.gguf")
        assert found.texts == ["", ""]
        assert found.notes == ("2 of the 2 rows are beyond the 0 tokens of the file's vocabulary",)


class TestLayouts:
    def test_features_first_by_name(self, tmp_path):
        np.savez(tmp_path / "model.npz", **{"lm_head/kernel": HEAD.T, "step": np.array(3)})
        np.testing.assert_array_equal(read_table(tmp_path / "model.npz").table, HEAD)

    def test_features_first_is_asked_for(self, tmp_path):
        np.save(tmp_path / "model.npy", TABLE.T)
        save_tokenizer(tmp_path, [f"t{i}" for i in range(16)])
        path = tmp_path / "model.npy"
        refused(path, "256 rows and 16 columns, and tokenizer.json has 16 tokens: say which axis .*, --token-axis 1, or 0 if")
        np.testing.assert_array_equal(read_table(path, token_axis=1).table, TABLE)
        assert read_table(path, token_axis=0).table.shape == (256, 16)

    def test_more_features_than_tokens(self, tmp_path):
        np.save(tmp_path / "model.npy", TABLE)
        assert "more features than tokens: if the file has the features first, say --token-axis 1" in read_table(
            tmp_path / "model.npy"
        ).notes[0]  # fmt: skip
        assert not read_table(tmp_path / "model.npy", token_axis=0).notes

    def test_an_archive(self, tmp_path):
        path = tmp_path / "model.npz"
        np.savez(path, **{"params/embed/embedding": TABLE, "params/mlp/kernel": HEAD, "step": np.array(3)})
        found = read_table(path)
        np.testing.assert_array_equal(found.table, TABLE)
        assert found.name == "params/embed/embedding"
        np.testing.assert_array_equal(read_table(path, "params/mlp/kernel").table, HEAD)
        refused(path, "no array 'wte'; it has 'params/embed/embedding', 'params/mlp/kernel', 'step'", "wte")
        np.savez(path, TABLE, HEAD)
        refused(path, "no name of a token table among 'arr_0', 'arr_1'; say which one to read with --table NAME")
        np.testing.assert_array_equal(read_table(path, "arr_1").table, HEAD)

    def test_archives_that_are_refused(self, tmp_path):
        path = tmp_path / "model.npz"
        np.savez_compressed(path, embed=TABLE)
        refused(path, "embed.npy is compressed, and a short file could claim any size; save it again with numpy.savez")
        np.savez(path, embed=TABLE, vocabulary=np.array(["a", None], object))
        refused(path, "it has Python objects in it, which are never loaded here: .*; save arrays of numbers")

    def test_a_scalar_and_an_empty_table(self, tmp_path):
        for shape in ((), (0, 8), (8, 0), (8,), (2, 4, 2)):
            value = np.ones(shape, np.float32)
            np.save(tmp_path / "model.npy", value)
            np.savez(tmp_path / "model.npz", embed=value)
            safetensors.numpy.save_file({"embed": value}, tmp_path / "model.safetensors")
            for suffix, name in (("npy", "model"), ("npz", "embed"), ("safetensors", "embed")):
                refused(tmp_path / f"model.{suffix}", r"is float32 of shape \(.*, and a token table is real", name)


def save_tokenizer(folder: Path, tokens: list[str], decoder=None) -> None:
    model = tokenizers.models.WordLevel({token: i for i, token in enumerate(tokens)}, tokens[0])
    tokenizer = tokenizers.Tokenizer(model)
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.save(str(folder / "tokenizer.json"))


class TestTexts:
    def test_tokens_that_are_not_utf_8(self, tmp_path):
        tokens = [b"a", b"\xff", b"\xe4\xbd", "é".encode()]
        path = write_gguf(tmp_path / "model.gguf", {NAME: TABLE}, tokens=tokens, tokenizer="llama")
        assert read_table(path).texts[:4] == ["a", r"\xff", r"\xe4\xbd", "é"]

    @pytest.mark.parametrize("where", ["gguf", "tokenizer.json"])
    def test_byte_level(self, where, tmp_path):
        """A part of a character shows its bytes: all of them were the same replacement character."""
        encode = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        ((character, _),) = encode.pre_tokenize_str("语")  # three bytes, as three characters
        tokens = [character[0], character[:2], character, "Ġthe"]
        if where == "gguf":
            path = write_gguf(tmp_path / "model.gguf", {NAME: TABLE}, tokens=tokens)
        else:
            path = tmp_path / "model.npy"
            np.save(path, TABLE)
            save_tokenizer(tmp_path, tokens, tokenizers.decoders.ByteLevel())
        assert read_table(path).texts[:4] == [r"\xe8", r"\xe8\xaf", "语", " the"]

    def test_special_tokens_are_plain_text(self, tmp_path):
        tokens = ["Ġthe", "<|é|>", "é"]
        path = write_gguf(tmp_path / "model.gguf", {NAME: TABLE}, tokens=tokens, token_types=[1, 3, 4])
        assert read_table(path).texts[:3] == [" the", "<|é|>", "é"]

    def test_spaces_at_the_start(self, tmp_path):
        """They are what tells two tokens apart."""
        np.save(tmp_path / "model.npy", TABLE)
        save_tokenizer(tmp_path, ["▁the", "the", "<0xE4>"], tokenizers.decoders.Metaspace())
        assert read_table(tmp_path / "model.npy").texts[:3] == [" the", "the", "<0xE4>"]

    def test_duplicates(self, tmp_path):
        path = write_gguf(tmp_path / "model.gguf", {NAME: TABLE}, tokens=["a", "pad", "pad", "b"])
        assert read_table(path).texts[:4] == ["a", "pad", "pad", "b"]


@pytest.mark.parametrize(
    "more, message",
    [
        ({"rope_freqs.weight": np.ones(2, np.float32)}, "the model has 'rope_freqs.weight', and what these do is not known"),
        ({"blk.0.attn_q.bias": np.ones(16, np.float32)}, "the model has 'blk.0.attn_q.bias', and"),
        ({"blk.0.attn_q.scale": np.ones(1, np.float32)}, "blk.0.attn_q.weight is to be multiplied by blk.0.attn_q.scale"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'; only None and 'none' are known here"),
        ({"llama.rope.dimension_count": 2}, "llama.rope.dimension_count is 2, a part of each head; use another model"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe'; only None and 'smollm' are known here"),
    ],
)
def test_models_that_would_be_computed_wrongly(more, message, tmp_path):
    path = tiny_llama(tmp_path / "model.gguf", more=more)
    with pytest.raises(UsageError, match=message) as raised:
        read_llama(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_model_with_a_token_twice(tmp_path):
    path = tiny_llama(tmp_path / "model.gguf")
    before, after = (struct.pack("<Q", 2) + token.encode() for token in "ġĠ")
    assert path.read_bytes().count(before) == 1
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(UsageError, match=r"'Ġ' are in the vocabulary more than once, .*; use another model"):
        read_llama(path)
