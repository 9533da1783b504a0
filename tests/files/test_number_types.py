"""Tables in every byte order and number type: read as they were written, or refused by name."""

import struct

import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from gguf_files import tiny_llama, write_gguf
from lm.llama import read_llama
from lm.model_files import read_table
from table_files import HEAD, NAME, TABLE, refused, write_safetensors

Type = gguf.GGMLQuantizationType


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
