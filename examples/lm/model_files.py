"""Token tables in files that models are published as: .gguf, .safetensors and .npy. Nothing in a file is ever executed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import jax
import numpy as np
import safetensors
import tokenizers

from ember_optax import token_tables
from lm.errors import UsageError

_GGUF_TABLE = "token_embd.weight"  # the format's own name for the input table
_TOKENIZER = "tokenizer.json"


class NamedTable(NamedTuple):
    """A token table and what its file says of it.

    Attributes:
      table: float32, (V, D).
      texts: what each token stands for, V of them; None where no tokenizer was found.
      name: what the file calls the table.
    """

    table: np.ndarray
    texts: list[str] | None
    name: str


def read_table(path: Path | str, name: str | None = None) -> NamedTable:
    """Reads one token table of a file; texts come from the file itself (.gguf) or from the tokenizer.json next to it.

    Args:
      path: a .gguf, .safetensors or .npy file.
      name: which array of the file; None takes the one that looks like a token table.

    Raises:
      UsageError: the file is missing, of another kind or damaged, or has no such table, or several and none is named.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    readers = {".gguf": _read_gguf, ".safetensors": _read_safetensors, ".npy": _read_npy}
    if path.suffix not in readers:
        raise UsageError(f"{path}: a file of a table ends in {', '.join(readers)}; convert it to one of these")
    found = readers[path.suffix](path, name)
    shape = found.table.shape
    if len(shape) != 2 or 0 in shape or not np.issubdtype(found.table.dtype, np.floating):
        dtype = found.table.dtype
        raise UsageError(
            f"{path}: {found.name} is {dtype} of shape {shape}, and a token table is real numbers, tokens x features"
        )
    texts = found.texts if found.texts is not None else _texts_next_to(path)
    return found._replace(table=found.table.astype(np.float32), texts=_fitted(texts, shape[0]))


class GgufFile:
    """A .gguf file: its metadata and its arrays, as float32 whatever they were quantized to.

    Raises:
      UsageError: the file is damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        reader = _damage_named(path, lambda: _CheckedReader(path))
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._fields = reader.fields

    @property
    def names(self) -> list[str]:
        """The arrays of the file, in its order."""
        return list(self._tensors)

    def field(self, name: str) -> Any:
        """One entry of the metadata, None without it."""
        field = self._fields.get(name)
        return None if field is None else _damage_named(self._path, field.contents)

    def array(self, name: str) -> np.ndarray:
        """One array, (outputs, inputs) or (tokens, features).

        Raises:
          UsageError: the file has no such array, or one of a type that cannot be read.
        """
        if name not in self._tensors:
            raise UsageError(f"{self._path}: no array {name!r}; it has {_listed(self.names)}")
        tensor = self._tensors[name]
        dequantized = _damage_named(self._path, lambda: gguf.dequantize(tensor.data, tensor.tensor_type))
        return dequantized.astype(np.float32, copy=False)

    def texts(self) -> list[str] | None:
        """What each token stands for."""
        tokens = self.field("tokenizer.ggml.tokens")
        if tokens is None:
            return None
        if self.field("tokenizer.ggml.model") == "gpt2":  # bytes are written as printable characters
            decoder = tokenizers.decoders.ByteLevel()
            return [decoder.decode([token]) for token in tokens]
        return [token.replace("\u2581", " ") for token in tokens]


class _CheckedReader(gguf.GGUFReader):
    """Refuses what lies beyond the end of the file, where the reader itself would take nothing, and repeat that without end."""

    def _get(self, offset, dtype, count=1, override_order=None):
        size = int(count) * np.dtype(dtype).itemsize
        if size < 0 or int(offset) + size > len(self.data):
            raise ValueError(f"{size:,} bytes from byte {int(offset):,} on are beyond its {len(self.data):,}")
        return super()._get(offset, dtype, count, override_order)


def _read_gguf(path: Path, name: str | None) -> NamedTable:
    file = GgufFile(path)
    name = _GGUF_TABLE if name is None else name
    return NamedTable(file.array(name), file.texts(), name)


def _read_safetensors(path: Path, name: str | None) -> NamedTable:
    # As JAX arrays, because NumPy has no bfloat16.
    with _damage_named(path, lambda: safetensors.safe_open(path, framework="flax")) as file:
        names = list(file.keys())
        name = _only_table(path, {name: file.get_slice(name).get_shape() for name in names}) if name is None else name
        if name not in names:
            raise UsageError(f"{path}: no array {name!r}; it has {_listed(names)}")
        array = _damage_named(path, lambda: file.get_tensor(name))
    return NamedTable(np.asarray(array.astype(np.float32)) if _is_real(array) else np.asarray(array), None, name)


def _read_npy(path: Path, name: str | None) -> NamedTable:
    if name not in (None, path.stem):
        raise UsageError(f"{path}: a .npy file has one array, without a name; leave out {name!r}")
    # Mapped, so that a size that the file only claims is an error and not an allocation.
    array = _damage_named(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    return NamedTable(array, None, path.stem)


def _only_table(path: Path, shapes: dict[str, list[int]]) -> str:
    """The array whose name and rank are those of a token table."""
    arrays = {name: jax.ShapeDtypeStruct(tuple(shape), np.float32) for name, shape in shapes.items()}
    found = token_tables(arrays)
    tables = [name for name in arrays if found[name] is not None and len(shapes[name]) == 2]
    if len(tables) != 1:
        which = (
            f"several token tables, {', '.join(tables)}" if tables else f"no name of a token table among {_listed(list(shapes))}"
        )
        raise UsageError(f"{path}: {which}; say which one to read")
    return tables[0]


def _texts_next_to(path: Path) -> list[str] | None:
    """Those of the tokenizer.json in the same folder, as models are published with."""
    tokenizer_path = path.with_name(_TOKENIZER)
    if not tokenizer_path.is_file():
        return None
    tokenizer = _damage_named(tokenizer_path, lambda: tokenizers.Tokenizer.from_file(str(tokenizer_path)))
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    return [tokenizer.decode([i], skip_special_tokens=False) for i in range(max(ids, default=-1) + 1)]


def _fitted(texts: list[str] | None, count: int) -> list[str] | None:
    """As many as the table has rows: tables are padded, and rows of padding stand for nothing."""
    return None if texts is None else [*texts, *[""] * (count - len(texts))][:count]


def _damage_named(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns; whatever a library makes of a damaged file becomes a UsageError that names it."""
    try:
        return read()
    except Exception as error:
        if isinstance(error, (UsageError, PermissionError, KeyboardInterrupt)):
            raise
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise UsageError(f"{path}: the file is damaged, or not what its name says: {reason}") from error


def _listed(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + rest


def _is_real(array: Any) -> bool:
    return jax.numpy.issubdtype(array.dtype, jax.numpy.floating)
