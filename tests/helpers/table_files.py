"""Sound files of tables, and what refuses others by name."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from lm.errors import UsageError
from lm.model_files import read_table

TABLE = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
HEAD = np.random.default_rng(1).normal(size=(16, 256)).astype(np.float32)
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


def save_tokenizer(folder: Path, tokens: list[str], decoder=None) -> None:
    model = tokenizers.models.WordLevel({token: i for i, token in enumerate(tokens)}, tokens[0])
    tokenizer = tokenizers.Tokenizer(model)
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.save(str(folder / "tokenizer.json"))
