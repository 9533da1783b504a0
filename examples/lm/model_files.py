"""Token tables in files that models are published as. Nothing in a file is ever executed."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ember_optax import token_tables

from .damage import check_file, listed, read_npy, read_npz, to_float32
from .errors import UsageError
from .gguf_file import GgufFile
from .safetensors_file import SafetensorsFile
from .token_texts import read_texts

_GGUF_TABLE, _GGUF_HEAD = "token_embd.weight", "output.weight"  # the format's own names
_TOKENIZER = "tokenizer.json"
_SCALE = re.compile("scale|scb|absmax|zero|quant", re.IGNORECASE)
_MOST_NUMBERS = 2**30  # of a table that a mapping makes larger than its file


class NamedTable(NamedTuple):
    """A token table and what its file says of it.

    Attributes:
      table: float32, (V, D).
      texts: what each token stands for, V of them; None where that is not known.
      name: what the file calls the table.
      has_own_head: True for an input table beside a head with other numbers, else False.
      notes: what a reader has to know to read the numbers rightly, one sentence each.
    """

    table: np.ndarray
    texts: list[str] | None
    name: str
    has_own_head: bool = False
    notes: tuple[str, ...] = ()


class _File(Protocol):
    """What all formats have in common. Shapes are as they are in the file."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def array(self, name: str) -> np.ndarray: ...


class _Arrays:
    """The arrays of a NumPy file."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]):
        self._path, self._arrays = path, arrays

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self._arrays.items()}

    def array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise UsageError(f"{self._path}: no array {name!r}; it has {listed(list(self._arrays))}")
        return self._arrays[name]


def read_table(path: Path | str, name: str | None = None, token_axis: int | None = None) -> NamedTable:
    """Reads one token table of a file. Texts come from the file itself (.gguf) or from the tokenizer.json next to it.

    A static embedding with `mapping` and `weights` beside its `embeddings` is read as the table of its tokens:
    `embeddings[mapping] * weights[:, None]`.

    Args:
      path: a .gguf, .safetensors, .safetensors.index.json, .npy or .npz file.
      name: which array of the file; None takes the one that looks like a token table.
      token_axis: which axis counts the tokens, 0 or 1; None takes the one that the name tells, else 0.

    Raises:
      UsageError: the file is missing, of another kind or damaged, or cannot be read rightly; it has no such table, or several and
        none is named.
    """
    path = Path(path)
    check_file(path)
    readers: dict[str, Callable[[Path, str | None, int | None], NamedTable]] = {
        ".gguf": _read_gguf,
        ".safetensors": _read_safetensors,
        ".safetensors.index.json": _read_safetensors,
        ".npy": _read_npy,
        ".npz": _read_npz,
    }
    reader = next((read for suffix, read in readers.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise UsageError(f"{path}: a file of a table ends in {', '.join(readers)}; convert it to one of these")
    return reader(path, name, token_axis)


def _read_gguf(path: Path, name: str | None, token_axis: int | None) -> NamedTable:
    file = GgufFile(path)
    if name is None and _GGUF_TABLE not in file.names:
        what = f"no array {_GGUF_TABLE!r}, the format's name of an input table; it has {listed(file.names)}"
        raise UsageError(f"{path}: {what}; {_choose()}")
    name = _GGUF_TABLE if name is None else name
    table, notes = _checked(path, name, file.array(name), token_axis or 0)
    texts = file.texts()
    notes += [] if texts is None else _check_count(path, table, len(texts), "the file's vocabulary", token_axis)
    own_head = name == _GGUF_TABLE and _GGUF_HEAD in file.names and not np.array_equal(file.array(_GGUF_HEAD), table)
    parts = file.field("split.count")
    one_of_several = name == _GGUF_TABLE and _GGUF_HEAD not in file.names and isinstance(parts, int) and parts > 1
    notes += _head_notes(own_head, _GGUF_HEAD, parts if one_of_several else None)
    return NamedTable(table, _fitted(texts, len(table)), name, own_head, tuple(notes))


def _read_safetensors(path: Path, name: str | None, token_axis: int | None) -> NamedTable:
    file = SafetensorsFile(path)
    return _read_by_name(path, file, name, token_axis, file.missing_parts)


def _read_npz(path: Path, name: str | None, token_axis: int | None) -> NamedTable:
    arrays = read_npz(path)
    name = next(iter(arrays)) if name is None and len(arrays) == 1 else name
    return _read_by_name(path, _Arrays(path, arrays), name, token_axis)


def _read_npy(path: Path, name: str | None, token_axis: int | None) -> NamedTable:
    if name not in (None, path.stem):
        raise UsageError(f"{path}: a .npy file has one array, without a name; leave out {name!r}")
    return _read_by_name(path, _Arrays(path, {path.stem: read_npy(path)}), path.stem, token_axis)


def _read_by_name(
    path: Path, file: _File, name: str | None, token_axis: int | None, missing_parts: int | None = None
) -> NamedTable:
    """A table of a format that does not say which of its arrays is one."""
    shapes = file.shapes
    found = token_tables({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})
    tables = {name: numbers for name, numbers in found.items() if numbers is not None and len(shapes[name]) == 2}
    name = _only(path, list(tables), list(shapes), missing_parts) if name is None else name
    array = file.array(name)
    numbers = tables.get(name)
    table, notes = _checked(path, name, array, token_axis if token_axis is not None else numbers.token_axis if numbers else 0)
    if array.dtype.itemsize == 1 and (scales := _scales_of(name, list(shapes))):
        raise UsageError(
            f"{path}: {name} is {array.dtype} with {listed(scales)} beside it, and what these do to it is not known here; "
            "save the table as float32 with the library that made it"
        )
    if name == "embeddings":
        table, of_mapping = _of_tokens(path, table, file)
        notes += of_mapping
    heads = [head for head, of_head in tables.items() if of_head.kind == "head"]
    other = numbers is not None and numbers.kind == "input"
    if other and heads:  # some files have a tied table twice
        other = not any(
            np.array_equal(_checked(path, head, file.array(head), tables[head].token_axis)[0], table) for head in heads
        )
    may_miss = missing_parts if numbers is not None and numbers.kind == "tied" else None
    notes += _head_notes(other, ", ".join(heads), may_miss)
    if table.shape[0] < table.shape[1] and token_axis is None:
        notes.append("the table has more features than tokens: if the file has the features first, say --token-axis 1")
    texts, of_texts = _texts_next_to(path, table, token_axis)
    return NamedTable(table, texts, name, other, (*notes, *of_texts))


def _only(path: Path, tables: Sequence[str], names: list[str], missing_parts: int | None) -> str:
    if len(tables) == 1:
        return tables[0]
    which = f"several token tables, {', '.join(tables)}" if tables else f"no name of a token table among {listed(names)}"
    if missing_parts and not tables:
        which += f" in this one of {missing_parts} parts, and no index next to it"
    raise UsageError(f"{path}: {which}; {_choose()}")


def _choose() -> str:
    return "say which one to read with --table NAME"


def _checked(path: Path, name: str, array: np.ndarray, token_axis: int) -> tuple[np.ndarray, list[str]]:
    """The numbers as float32, tokens first, and what to know of them."""
    notes = []
    if array.dtype == np.dtype("V2"):
        array = array.view(jnp.bfloat16)
        notes.append(f"{name} has 2-byte numbers without a type, read as bfloat16: NumPy saves bfloat16 so")
    if array.ndim != 2 or 0 in array.shape or not (jnp.issubdtype(array.dtype, jnp.floating) or array.dtype == np.int8):
        what = f"{name} is {array.dtype} of shape {array.shape}, and a token table is real numbers, tokens x features"
        raise UsageError(f"{path}: {what}; name another array with --table, or save the table as float32")
    if array.dtype == np.int8:
        notes.append(f"{name} is int8 without a scale: norms are in units of that scale, angles are right")
    return to_float32(path, name, array.T if token_axis == 1 else array), notes


def _scales_of(name: str, names: list[str]) -> list[str]:
    """Arrays that have the table's name, or its module's, and call themselves scales."""
    module = name.removesuffix("weight").rstrip("./")
    return [other for other in names if other != name and other.startswith(module) and _SCALE.search(other[len(module) :])]


def _of_tokens(path: Path, table: np.ndarray, file: _File) -> tuple[np.ndarray, list[str]]:
    """The rows of a static embedding whose vocabulary is clustered, one for each token."""
    if "mapping" in file.shapes:
        mapping = file.array("mapping")
        if mapping.ndim != 1 or mapping.dtype.kind not in "iu" or not mapping.size:
            raise UsageError(
                f"{path}: mapping is {mapping.dtype} of shape {mapping.shape}, not a row for each token; get it again"
            )
        if int(mapping.min()) < 0 or int(mapping.max()) >= len(table):
            of = f"{mapping.min()} to {mapping.max()}"
            raise UsageError(f"{path}: mapping names the rows {of}, but embeddings has {len(table)}; get it again")
        if mapping.size * table.shape[1] > _MOST_NUMBERS:
            raise UsageError(
                f"{path}: mapping makes a table of {mapping.size:,} x {table.shape[1]:,} numbers, too large to read here"
            )
        rows, table = len(table), table[mapping]
        notes = [f"{len(table):,} tokens share {rows:,} rows: the table is embeddings[mapping]"]
    else:
        notes = []
    if "weights" in file.shapes:
        weights = file.array("weights")
        if weights.shape != (len(table),) or weights.dtype.kind != "f":
            what = f"weights is {weights.dtype} of shape {weights.shape}"
            raise UsageError(f"{path}: {what}, not a number for each of {len(table)} tokens; get it again")
        table = table * to_float32(path, "weights", weights)[:, None]
        notes.append("each row is multiplied by its number in weights")
    return table, notes


def _texts_next_to(path: Path, table: np.ndarray, token_axis: int | None) -> tuple[list[str] | None, list[str]]:
    """Those of the tokenizer.json in the same folder, as models are published with, and what to know of them."""
    tokenizer_path = path.with_name(_TOKENIZER)
    if not tokenizer_path.is_file():
        return None, []
    texts, count = read_texts(tokenizer_path, len(table))
    notes = _check_count(path, table, count, _TOKENIZER, token_axis)
    return (_fitted(texts, len(table)) if count <= len(table) else None), notes


def _check_count(path: Path, table: np.ndarray, count: int, where: str, token_axis: int | None) -> list[str]:
    """What the number of token ids tells of a table.

    Raises:
      UsageError: the table seems to be stored with the features first, and nobody said which axis counts the tokens.
    """
    rows, features = table.shape
    if count == features != rows and token_axis is None:
        what = f"the table has {rows} rows and {features} columns, and {where} has {count} tokens"
        raise UsageError(f"{path}: {what}: say which axis counts the tokens, --token-axis 1, or 0 if the rows are tokens")
    if count > rows:
        return [f"{where} has {count:,} tokens and the table {rows:,} rows, which may be of other tokens: texts are not shown"]
    return [f"{rows - count:,} of the {rows:,} rows are beyond the {count:,} tokens of {where}"] if count < rows else []


def _head_notes(own_head: bool, head: str, missing_parts: int | None) -> list[str]:
    if own_head:
        return [f"the model has a head of its own, {head}"]
    if missing_parts:
        return [f"the model has {missing_parts} parts and only this one was read: say --untied if it has a head of its own"]
    return []


def _fitted(texts: list[str] | None, count: int) -> list[str] | None:
    """As many as the table has rows. None where there are more: then the rows are not these tokens."""
    return None if texts is None or len(texts) > count else [*texts, *[""] * (count - len(texts))]
