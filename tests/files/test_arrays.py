"""Which array of a file is the table, which of its axes are tokens, and which of its rows."""

import json

import numpy as np
import pytest
import safetensors.numpy
from gguf_files import tiny_llama, write_gguf
from hostile_files import array, entry, tensor
from hostile_files import gguf as gguf_bytes
from lm.errors import UsageError
from lm.model_files import read_table
from table_files import HEAD, NAME, TABLE, refused, save_tokenizer


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
