"""Files of the .safetensors format, one or all parts of a model: checked by the library `safetensors`, read with NumPy."""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from .damage import check_file, damage_named, listed
from .errors import UsageError

INDEX = ".safetensors.index.json"
_PART = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
# The library has no 8-bit floats for NumPy, and JAX has no 64-bit numbers by default: the bytes are read as these types.
_TYPES: dict[str, Any] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F8_E4M3FNUZ": jnp.float8_e4m3fnuz,
    "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
    "C64": "<c8",
}


class _Place(NamedTuple):
    """Where an array is."""

    path: Path
    start: int
    dtype: str
    shape: tuple[int, ...]


class SafetensorsFile:
    """The arrays of a .safetensors file, or of all parts that a .safetensors.index.json lists.

    A part next to its index is read with all the others.

    Attributes:
      missing_parts: how many parts the model has by the file's name, where the others are not known; else None.

    Raises:
      UsageError: a file is missing or damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        self.missing_parts: int | None = None
        part = _PART.fullmatch(path.name)
        index = path if path.name.endswith(INDEX) else path.with_name(f"{part[1]}{INDEX}") if part else None
        if index is not None and index.is_file():
            paths = damage_named(index, lambda: _parts(index))
        else:
            paths, self.missing_parts = [path], int(part[3]) if part and int(part[3]) > 1 else None
        self._places: dict[str, _Place] = {}
        for one in paths:
            check_file(one)
            damage_named(one, lambda one=one: self._add(one))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each array, by name in order."""
        return {name: place.shape for name, place in sorted(self._places.items())}

    def array(self, name: str) -> np.ndarray:
        """One array, in the type that it has in the file.

        Raises:
          UsageError: there is no such array, or it is of a type that NumPy and JAX do not have.
        """
        if name not in self._places:
            raise UsageError(f"{self._path}: no array {name!r}; it has {listed(list(self.shapes))}")
        place = self._places[name]
        if place.dtype not in _TYPES:
            fix = "save the table as F32 with the library that made it"
            raise UsageError(f"{place.path}: {name} has numbers of the type {place.dtype}, which cannot be read here; {fix}")
        found = np.fromfile(place.path, np.dtype(_TYPES[place.dtype]), math.prod(place.shape), offset=place.start)
        return found.reshape(place.shape)

    def _add(self, path: Path) -> None:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # it has checked the header: sizes, types, and that the arrays fill the file without overlap
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_distinct)
        header.pop("__metadata__", None)
        if twice := header.keys() & self._places.keys():
            raise ValueError(f"it has {listed(sorted(twice))}, as another part of the model has")
        for name, facts in header.items():
            start = 8 + length + facts["data_offsets"][0]
            self._places[name] = _Place(path, start, facts["dtype"], tuple(facts["shape"]))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of several arrays with one name, the library would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"two arrays, or two facts of one, have the same name, among {listed([name for name, _ in pairs])}")
    return found


def _parts(index: Path) -> list[Path]:
    """The files that an index lists. They have to be in its folder: an index must not point at any file of the machine."""
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"its weight_map names {name!r}, which is not a .safetensors file next to it")
    if not names:
        raise ValueError("its weight_map is empty")
    return [index.with_name(name) for name in sorted(set(names))]
