"""Files of llama.cpp's format, read with the library `gguf`, and checked where it takes a file at its word."""

import itertools
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from .damage import check_file, damage_named, listed, to_float32
from .errors import UsageError
from .token_texts import shown_bytes, token_text

_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_NORMAL = 1  # the format's token type of those that are text as the tokenizer writes it
_MOST_NUMBERS = 2**22  # in lists of the metadata, together: Gemma's 262,144 tokens with merges, scores and types have 1.3 million
_MOST_DIMENSIONS = 4  # of the format
_BYTES_ONLY = (gguf.GGMLQuantizationType.MXFP4, gguf.GGMLQuantizationType.NVFP4)  # the same in both byte orders


class GgufFile:
    """A .gguf file of either byte order: its metadata and its arrays, as float32 whatever they were quantized to.

    Raises:
      UsageError: the file is missing or damaged.
    """

    def __init__(self, path: Path):
        check_file(path)
        self._path = path
        reader = damage_named(path, lambda: _CheckedReader(path))
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._unknown = reader.unknown
        self._fields = reader.fields
        self._swapped = reader.byte_order == "S"

    @property
    def names(self) -> list[str]:
        """The arrays of the file."""
        return [*self._tensors, *self._unknown]

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
        """One array, (outputs, inputs) or (tokens, features): float32, or whole numbers where the file has these.

        Raises:
          UsageError: the file has no such array, or one that cannot be read rightly.
        """
        if name not in self.names:
            raise UsageError(f"{self._path}: no array {name!r}; it has {listed(self.names)}")
        if (scale := f"{name.removesuffix('.weight')}.scale") in self.names:
            raise UsageError(
                f"{self._path}: {name} is to be multiplied by {scale}, which is not done here; get another quantization"
            )
        if name in self._unknown:
            raise self._refused(
                name, f"of the number type {self._unknown[name]}, which gguf {version('gguf')} does not know; update gguf"
            )
        tensor = self._tensors[name]
        data, kind = tensor.data, tensor.tensor_type
        if data.dtype != np.uint8:  # plain numbers; the library's `dequantize` takes them for little-endian ones
            data = data.astype(data.dtype.newbyteorder("="), copy=False)
            return to_float32(self._path, name, data) if data.dtype.kind == "f" else data
        if self._swapped and kind not in _BYTES_ONLY:
            # Some programs swap the bytes of the scales in each block, others do not, and nothing in the file says so.
            raise self._refused(
                name, f"big-endian {kind.name}, and programs write its bytes in different orders; get the little-endian file"
            )
        try:
            dequantized = gguf.dequantize(data, kind)
        except NotImplementedError:
            raise self._refused(
                name, f"of the number type {kind.name}, which gguf {version('gguf')} cannot read; update gguf"
            ) from None
        return dequantized.astype(np.float32, copy=False)

    def texts(self) -> list[str] | None:
        """What each token stands for, None where the file does not say."""
        if _TOKENS not in self._fields:
            return None
        tokens = self._shown_strings(_TOKENS)
        types = self.field(_TYPES)
        if not isinstance(types, list) or len(types) != len(tokens):
            types = [_NORMAL] * len(tokens)
        byte_level = self.field("tokenizer.ggml.model") == "gpt2"
        return [token_text(token, byte_level and kind == _NORMAL) for token, kind in zip(tokens, types, strict=True)]

    def _shown_strings(self, name: str) -> list[str]:
        """A list of texts for people: some vocabularies have tokens that are not UTF-8."""
        field = self._fields[name]
        if field.types != [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]:
            return self.strings(name)
        return [shown_bytes(field.parts[i].tobytes()) for i in field.data]

    def _refused(self, name: str, why: str) -> UsageError:
        return UsageError(f"{self._path}: {name} is {why}, or get the model as F32, F16 or Q8_0")


class _CheckedReader(gguf.GGUFReader):
    """Refuses what is beyond the end of the file, where the library would take less, or nothing, without end.

    Attributes:
      unknown: arrays of a number type that the library does not know, and that type. The others can be read.
    """

    _numbers = 0

    def __init__(self, path: Path):
        self.unknown: dict[str, int] = {}
        super().__init__(path)

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
        places, known = [], []
        for field in fields:
            _, name, _, dims, kind, offset = field.parts
            shape, offset = [int(size) for size in dims], int(offset[0])
            name = bytes(name).decode()
            if int(kind[0]) not in set(gguf.GGMLQuantizationType):
                self.unknown[name] = int(kind[0])
                continue
            known.append(field)
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
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
        super()._build_tensors(start_offs, known)

    def _check_inside(self, start: int, size: int) -> None:
        if start + size > len(self.data):
            raise ValueError(f"{size:,} bytes from byte {start:,} on are beyond its {len(self.data):,}")
