"""The texts of tokens in files, and models of files that would be computed wrongly."""

import struct

import numpy as np
import pytest
import tokenizers
from gguf_files import tiny_llama, write_gguf
from lm.errors import UsageError
from lm.llama import read_llama
from lm.model_files import read_table
from table_files import NAME, TABLE, save_tokenizer


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
