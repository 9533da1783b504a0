"""Token tables in files that models are published as: .gguf, .safetensors and .npy. Nothing in a file is ever executed."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import tokenizers

from ember_optax import token_tables
from lm.damage import check_file, damage_named, listed, read_npy
from lm.errors import UsageError
from lm.gguf_file import GgufFile

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
    check_file(path)
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
    texts = found.texts if found.texts is not None else _texts_next_to(path, shape[0])
    return found._replace(table=found.table.astype(np.float32), texts=_fitted(texts, shape[0]))


def _read_gguf(path: Path, name: str | None) -> NamedTable:
    file = GgufFile(path)
    name = _GGUF_TABLE if name is None else name
    return NamedTable(file.array(name), file.texts(), name)


def _read_safetensors(path: Path, name: str | None) -> NamedTable:
    # As JAX arrays, because NumPy has no bfloat16.
    with damage_named(path, lambda: safetensors.safe_open(path, framework="flax")) as file:
        names = list(file.keys())
        name = _only_table(path, {name: file.get_slice(name).get_shape() for name in names}) if name is None else name
        if name not in names:
            raise UsageError(f"{path}: no array {name!r}; it has {listed(names)}")
        array = damage_named(path, lambda: file.get_tensor(name))
    damage_named(path, lambda: _check_names(path))
    return NamedTable(np.asarray(array.astype(np.float32)) if _is_real(array) else np.asarray(array), None, name)


def _check_names(path: Path) -> None:
    """Raises where the library would take the last of several arrays of one name; it has checked the length of the header."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError(f"two arrays, or two facts of one, have the same name, among {listed([name for name, _ in pairs])}")
        return found

    with path.open("rb") as file:
        json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=distinct)


def _read_npy(path: Path, name: str | None) -> NamedTable:
    if name not in (None, path.stem):
        raise UsageError(f"{path}: a .npy file has one array, without a name; leave out {name!r}")
    return NamedTable(read_npy(path), None, path.stem)


def _only_table(path: Path, shapes: dict[str, list[int]]) -> str:
    """The array whose name and rank are those of a token table."""
    arrays = {name: jax.ShapeDtypeStruct(tuple(shape), np.float32) for name, shape in shapes.items()}
    found = token_tables(arrays)
    tables = [name for name in arrays if found[name] is not None and len(shapes[name]) == 2]
    if len(tables) != 1:
        which = (
            f"several token tables, {', '.join(tables)}" if tables else f"no name of a token table among {listed(list(shapes))}"
        )
        raise UsageError(f"{path}: {which}; say which one to read")
    return tables[0]


def _texts_next_to(path: Path, count: int) -> list[str] | None:
    """Those of the tokenizer.json in the same folder, as models are published with; at most so many, whatever ids it has."""
    tokenizer_path = path.with_name(_TOKENIZER)
    if not tokenizer_path.is_file():
        return None
    tokenizer = damage_named(tokenizer_path, lambda: tokenizers.Tokenizer.from_file(str(tokenizer_path)))
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    return [tokenizer.decode([i], skip_special_tokens=False) for i in range(min(count, max(ids, default=-1) + 1))]


def _fitted(texts: list[str] | None, count: int) -> list[str] | None:
    """As many as the table has rows: tables are padded, and rows of padding stand for nothing."""
    return None if texts is None else [*texts, *[""] * (count - len(texts))][:count]


def _is_real(array: Any) -> bool:
    return jax.numpy.issubdtype(array.dtype, jax.numpy.floating)
