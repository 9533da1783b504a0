"""Files of llama.cpp's format, read with the library `gguf`, and checked where it takes a file at its word."""

import itertools
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers

from lm.damage import check_file, damage_named, listed
from lm.errors import UsageError

_TOKENS = "tokenizer.ggml.tokens"
_MOST_NUMBERS = 2**22  # in lists of the metadata, together: Gemma's 262,144 tokens with merges, scores and types have 1.3 million
_MOST_DIMENSIONS = 4  # of the format


class GgufFile:
    """A .gguf file: its metadata and its arrays, as float32 whatever they were quantized to.

    Raises:
      UsageError: the file is missing or damaged.
    """

    def __init__(self, path: Path):
        check_file(path)
        self._path = path
        reader = damage_named(path, lambda: _CheckedReader(path))
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._fields = reader.fields

    @property
    def names(self) -> list[str]:
        """The arrays of the file, in its order."""
        return list(self._tensors)

    def field(self, name: str) -> Any:
        """One entry of the metadata, None without it."""
        field = self._fields.get(name)
        return None if field is None else damage_named(self._path, field.contents)

    def number(self, name: str) -> float:
        """One entry of the metadata that has to be a positive number.

        Raises:
          UsageError: it is not there, or something else.
        """
        value = self.field(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UsageError(f"{self._path}: {name} is {value!r}, and has to be a positive number; get or convert the file again")
        return value

    def strings(self, name: str) -> list[str]:
        """One entry of the metadata that has to be a list of texts.

        Raises:
          UsageError: it is not there, or something else.
        """
        value = self.field(name)
        if not (isinstance(value, list) and all(isinstance(of, str) for of in value)):
            what = "missing" if value is None else "not a list of texts"
            raise UsageError(f"{self._path}: {name} is {what}; get or convert the file again")
        return value

    def array(self, name: str) -> np.ndarray:
        """One array, (outputs, inputs) or (tokens, features).

        Raises:
          UsageError: the file has no such array, or one of a type that cannot be read.
        """
        if name not in self._tensors:
            raise UsageError(f"{self._path}: no array {name!r}; it has {listed(self.names)}")
        tensor = self._tensors[name]
        dequantized = damage_named(self._path, lambda: gguf.dequantize(tensor.data, tensor.tensor_type))
        return dequantized.astype(np.float32, copy=False)

    def texts(self) -> list[str] | None:
        """What each token stands for."""
        if _TOKENS not in self._fields:
            return None
        tokens = self.strings(_TOKENS)
        if self.field("tokenizer.ggml.model") == "gpt2":  # bytes are written as printable characters
            decoder = tokenizers.decoders.ByteLevel()
            return [decoder.decode([token]) for token in tokens]
        return [token.replace("\u2581", " ") for token in tokens]


class _CheckedReader(gguf.GGUFReader):
    """Refuses what lies beyond the end of the file, where the library would take less, or nothing, without end."""

    _numbers = 0

    def _get(self, offset, dtype, count=1, override_order=None):
        self._check_inside(int(offset), int(count) * np.dtype(dtype).itemsize)
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type == gguf.GGUFValueType.ARRAY:
            # Before the first is read: each costs the library a microsecond and some hundred bytes.
            length = int(self._get(orig_offs + 4, np.uint64)[0])
            self._numbers += length
            self._check_inside(orig_offs, length)
            if self._numbers > _MOST_NUMBERS:
                raise ValueError(f"lists of {self._numbers:,} numbers in its metadata, more than any vocabulary has")
        return super()._get_field_parts(orig_offs, raw_type)

    def _build_tensors(self, start_offs, fields):
        """In whole numbers of any size: the library's products and sums overflow."""
        places = []
        for field in fields:
            _, name, _, dims, kind, offset = field.parts
            shape, offset = [int(size) for size in dims], int(offset[0])
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
            name = bytes(name).decode()
            if not 0 < len(shape) <= _MOST_DIMENSIONS:
                raise ValueError(f"the array {name!r} has {len(shape)} dimensions, the format has 1 to {_MOST_DIMENSIONS}")
            if not all(shape):
                raise ValueError(f"the array {name!r} has sizes {shape}, no numbers")
            if shape[0] % block:
                raise ValueError(f"the array {name!r} has rows of {shape[0]:,} numbers, not a multiple of its blocks of {block}")
            if offset % int(self.alignment):
                raise ValueError(
                    f"the array {name!r} begins at byte {offset:,} of the data, not at a multiple of {self.alignment}"
                )
            length = math.prod(shape) * size // block
            self._check_inside(start_offs + offset, length)
            places.append((offset, offset + length, name))
        places.sort()
        for (_, end, before), (start, _, after) in itertools.pairwise(places):
            if start < end:
                raise ValueError(f"the arrays {before!r} and {after!r} overlap")
        super()._build_tensors(start_offs, fields)

    def _check_inside(self, start: int, size: int) -> None:
        if start + size > len(self.data):
            raise ValueError(f"{size:,} bytes from byte {start:,} on are beyond its {len(self.data):,}")
