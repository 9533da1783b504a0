"""Files that pretend to hold a table, each with what its refusal has to say: no file here is longer than a few hundred kB.

Each entry is the name of the file, what writes it, and a pattern for the message.
"""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

TABLE = "token_embd.weight"
F32, Q8_0, STRING, ARRAY, UINT32 = 0, 8, 8, 9, 4


class Touch:
    """Unpickled, it would make a file `trace` in the working folder."""

    def __reduce__(self):
        return Path.touch, (Path("trace"),)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    """A line of a .gguf file's metadata."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, values: bytes = b"") -> bytes:
    """The value of such a line, `length` elements of a type."""
    return struct.pack("<IQ", kind, length) + values


def tensor(name: bytes = TABLE.encode(), dims: tuple[int, ...] = (4, 2), kind: int = F32, offset: int = 0) -> bytes:
    """A line of a .gguf file's list of arrays; the dimensions are backwards, features first."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = bytes(32),
    *,
    magic=b"GGUF",
    version=3,
    counts=None,
) -> bytes:
    """A .gguf file; `counts` are the numbers of arrays and of lines that it claims to have."""
    head = magic + struct.pack("<IQQ", version, *(counts or (len(tensors), len(entries)))) + b"".join([*entries, *tensors])
    return head + bytes(-len(head) % 32) + data


def safetensors(header: object, data: bytes = bytes(32), *, length: int | None = None) -> bytes:
    """A .safetensors file; a header that is no text is written as JSON; `length` is what the file claims it to be."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def of_table(**changed: object) -> dict[str, object]:
    return {"embed.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]} | changed}


def npy(header: str, data: bytes = bytes(32), *, version: bytes = b"\x01\x00", magic: bytes = b"\x93NUMPY") -> bytes:
    """A .npy file with a header as given."""
    raw = header.encode("latin1") + b"\n"
    return magic + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(raw)) + raw + data


def npy_of(shape: str, descr: str = "'<f4'", data: bytes = bytes(32)) -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", data)


def archive(
    members: dict[str, bytes] | list[tuple[str, bytes]], lie: Callable[[bytearray], None] | None = None, *, stored: bool = False
) -> bytes:
    """A .npz file, its members compressed unless they are `stored`; `lie` changes its bytes afterwards."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # of two members with one name
        for name, content in members.items() if isinstance(members, dict) else members:
            file.writestr(name, content)
    raw = bytearray(buffer.getvalue())
    if lie is not None:
        lie(raw)
    return bytes(raw)


_DAMAGED = r"the file is damaged, or not what its name says: .*; get or convert it again"
_OUTSIDE = r"bytes? from byte [\d,]+ on are beyond its [\d,]+"
_ONE = [tensor()]

GGUF: dict[str, tuple[bytes, str]] = {
    "empty": (b"", _DAMAGED),
    "magic alone": (b"GGUF", _OUTSIDE),
    "wrong magic": (gguf(tensors=_ONE, magic=b"GGML"), "magic invalid"),
    "version 1": (gguf(tensors=_ONE, version=1), "version 1"),
    "version of the future": (gguf(tensors=_ONE, version=99), "version 99"),
    "more arrays than bytes": (gguf(tensors=_ONE, counts=(2**62, 0)), _DAMAGED),
    "more lines than bytes": (gguf(tensors=_ONE, counts=(1, 2**62)), _DAMAGED),
    # At the end of the file: the library alone would append nothing, for ever.
    "bytes without end": (gguf([entry(b"k", ARRAY, array(0, 2**62))]), "2\\*\\*62|4,611,686,018,427,387,904"),
    "strings without end": (gguf([entry(b"k", ARRAY, array(STRING, 2**62))]), "4,611,686,018,427,387,904"),
    "more numbers than a vocabulary": (gguf([entry(b"k", ARRAY, array(0, 2**24))], data=bytes(2**24)), "16,777,216 numbers"),
    "arrays of arrays": (gguf([entry(b"k", ARRAY, array(ARRAY, 1) * 50_000)]), _DAMAGED),
    "type of a value": (gguf([entry(b"k", 77, bytes(8))]), r"77\)? is not a valid"),
    "name longer than the file": (gguf(tensors=[struct.pack("<Q", 2**63) + b"name"]), _OUTSIDE),
    "name that is no UTF-8": (gguf(tensors=[tensor(b"\xff\xfe")]), "utf-8"),
    "key that is no UTF-8": (gguf([entry(b"\xc3(", UINT32, bytes(4))], _ONE), "utf-8"),
    "model that is no UTF-8": (
        gguf(
            [entry(b"tokenizer.ggml.model", STRING, text(b"\xff")), entry(b"tokenizer.ggml.tokens", ARRAY, array(STRING, 0))],
            _ONE,
        ),
        "utf-8",
    ),
    "tokens that are numbers": (
        gguf([entry(b"tokenizer.ggml.tokens", ARRAY, array(UINT32, 1, bytes(4)))], _ONE),
        "not a list of texts",
    ),
    "tokens that are one number": (gguf([entry(b"tokenizer.ggml.tokens", UINT32, bytes(4))], _ONE), "not a list of texts"),
    "same key twice": (gguf([entry(b"k", UINT32, bytes(4))] * 2, _ONE), "Duplicate k"),
    "same name twice": (gguf(tensors=[tensor(), tensor(offset=32)], data=bytes(64)), "duplicated tensor"),
    "too many dimensions": (gguf(tensors=[text(TABLE.encode()) + struct.pack("<I", 2**31)]), _OUTSIDE),
    "five dimensions": (gguf(tensors=[tensor(dims=(1,) * 5)]), "5 dimensions"),
    "no dimensions": (gguf(tensors=[tensor(dims=())]), "0 dimensions"),
    "dimension of zero": (gguf(tensors=[tensor(dims=(0, 2**40))]), "no numbers"),
    "sizes that overflow to zero": (gguf(tensors=[tensor(dims=(2**32, 2**32))]), _OUTSIDE),
    "sizes that overflow to eight": (gguf(tensors=[tensor(dims=(2**63 + 4, 2))]), _OUTSIDE),
    "negative dimension": (gguf(tensors=[tensor(dims=(4, 2**64 - 2))]), _OUTSIDE),
    "offset outside": (gguf(tensors=[tensor(offset=2**40)]), _OUTSIDE),
    "offset that overflows into the header": (gguf(tensors=[tensor(offset=2**64 - 64)]), _OUTSIDE),
    "data cut off": (gguf(tensors=_ONE, data=bytes(31)), _OUTSIDE),
    "offset that is not aligned": (gguf(tensors=[tensor(offset=8)], data=bytes(64)), "byte 8 .* multiple of 32"),
    "arrays that overlap": (gguf(tensors=[tensor(), tensor(b"other")]), "overlap"),
    "type of numbers": (
        gguf(tensors=[tensor(kind=200)]),
        "token_embd.weight is of the number type 200, which gguf .* does not know",
    ),
    "type that was removed": (
        gguf(tensors=[tensor(kind=4)]),
        "token_embd.weight is of the number type 4, which gguf .* does not know",
    ),
    "rows that are no whole blocks": (gguf(tensors=[tensor(dims=(33, 2), kind=Q8_0)], data=bytes(96)), "multiple"),
    "alignment of zero": (gguf([entry(b"general.alignment", UINT32, bytes(4))], _ONE), "alignment"),
    "alignment beyond the file": (gguf([entry(b"general.alignment", UINT32, struct.pack("<I", 2**31))], _ONE), _OUTSIDE),
    "alignment that is a text": (gguf([entry(b"general.alignment", STRING, text(b"32"))], _ONE), "alignment"),
    "integers": (gguf(tensors=[tensor(kind=26)]), r"int32 of shape \(2, 4\)"),
}

SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", _DAMAGED),
    "length cut off": (b"\x10\x00\x00", _DAMAGED),
    "header longer than the file": (safetensors(of_table(), length=10_000), _DAMAGED),
    "header without end": (safetensors(of_table(), length=2**64 - 1), _DAMAGED),
    "header of nothing": (safetensors(b""), _DAMAGED),
    "header that is no JSON": (safetensors(b'{"embed.weight":'), _DAMAGED),
    "header that is no UTF-8": (safetensors(b'{"\xff":1}'), _DAMAGED),
    "header that is a list": (safetensors([1, 2]), _DAMAGED),
    "nested without end": (safetensors(b'{"a":' * 50_000), _DAMAGED),
    "pickle": (pickle.dumps(Touch()) + bytes(64), _DAMAGED),
    "data cut off": (safetensors(of_table(), bytes(31)), _DAMAGED),
    "data left over": (safetensors(of_table(), bytes(33)), _DAMAGED),
    "offsets outside": (safetensors(of_table(data_offsets=[2**40, 2**40 + 32])), _DAMAGED),
    "offsets backwards": (safetensors(of_table(data_offsets=[32, 0])), _DAMAGED),
    "negative offset": (safetensors(of_table(data_offsets=[-32, 0])), _DAMAGED),
    "sizes that overflow": (safetensors(of_table(shape=[2**32, 2**32])), _DAMAGED),
    "sizes that are not the data's": (safetensors(of_table(shape=[2, 5])), _DAMAGED),
    "negative dimension": (safetensors(of_table(shape=[-2, -4])), _DAMAGED),
    "dimension that is no number": (safetensors(of_table(shape=["2", 4])), _DAMAGED),
    "unknown dtype": (
        safetensors(of_table(dtype="F31")),
        "numbers of the type F31, which the installed safetensors does not know",
    ),
    "dtype of integers": (safetensors(of_table(dtype="I32")), "int32 of shape"),
    "dimension of zero": (safetensors(of_table(shape=[0, 4], data_offsets=[0, 0]), b""), "of shape"),
    "arrays that overlap": (safetensors(of_table() | {"b": of_table()["embed.weight"]}), _DAMAGED),
    "hole between arrays": (safetensors(of_table(data_offsets=[32, 64]), bytes(64)), _DAMAGED),
    "same name twice": (
        safetensors(
            b'{"wte":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},"wte":{"dtype":"F32","shape":[1,8],"data_offsets":[0,32]}}'
        ),
        _DAMAGED,
    ),
}

NPY: dict[str, tuple[bytes, str]] = {
    "empty": (b"", _DAMAGED),
    "wrong magic": (npy("{}", magic=b"\x93NUMPX"), _DAMAGED),
    "version of the future": (npy_of("(2, 4)").replace(b"\x01\x00", b"\x09\x00", 1), _DAMAGED),
    "header longer than the file": (npy_of("(2, 4)")[:40], _DAMAGED),
    "header without end": (npy("{" * 100_000, version=b"\x02\x00"), _DAMAGED),
    "header that is a program": (npy("__import__('pathlib').Path('trace').touch()"), _DAMAGED),
    "header without shape": (npy("{'descr': '<f4', 'fortran_order': False}"), _DAMAGED),
    "pickle": (pickle.dumps(Touch()), _DAMAGED),
    "objects": (npy_of("(1,)", "'|O'", pickle.dumps([Touch()])), "Python objects"),
    "objects in a record": (npy_of("(1,)", "[('a', '|O')]", pickle.dumps([Touch()])), "Python objects"),
    "unknown dtype": (npy_of("(2, 4)", "'<f3'"), "numbers of the type '<f3', which NumPy does not know"),
    "record": (npy_of("(2, 2)", "[('a', '<f4'), ('b', '<f4')]"), "of shape"),
    "complex numbers": (npy_of("(2, 2)", "'<c8'"), "complex64 of shape"),
    "texts": (npy_of("(2, 4)", "'<U1'"), "of shape"),
    "data cut off": (npy_of("(2, 5)"), _DAMAGED),
    "larger than memory": (npy_of("(99999999999, 999999)"), _DAMAGED),
    "sizes that overflow to zero": (npy_of(f"({2**32}, {2**32})"), _DAMAGED),
    "sizes that overflow to eight": (npy_of(f"({2**63 + 4}, 2)"), _DAMAGED),
    "negative dimension": (npy_of("(-2, 4)"), _DAMAGED),
    "two negative dimensions": (npy_of("(-2, -4)"), _DAMAGED),
    "dimension of zero": (npy_of(f"(0, {2**40})"), "of shape"),
    "dimension that is no number": (npy_of("('2', 4)"), _DAMAGED),
    "an archive": (archive({"embed.npy": npy_of("(2, 4)")}), "archive"),
    "an archive of a pickle": (archive({"embed.npy": pickle.dumps(Touch())}), "archive"),
}


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


HOSTILE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    f"{suffix}: {name}": (f"model.{suffix}", _write(content), message)
    for suffix, files in (("gguf", GGUF), ("safetensors", SAFETENSORS), ("npy", NPY))
    for name, (content, message) in files.items()
}
for _suffix in ("gguf", "safetensors", "npy"):
    HOSTILE[f"{_suffix}: folder"] = (f"model.{_suffix}", Path.mkdir, "a folder, not a file")
    HOSTILE[f"{_suffix}: pipe"] = (f"model.{_suffix}", os.mkfifo, "not a regular file")
    HOSTILE[f"{_suffix}: link to nothing"] = (f"model.{_suffix}", lambda path: path.symlink_to("nothing"), "no such file")
HOSTILE["pickle: a checkpoint"] = (
    "model.pt",
    _write(pickle.dumps(Touch())),
    "ends in .gguf, .safetensors, .safetensors.index.json",
)


def _claim(raw: bytearray, size: int) -> None:
    """Sets the sizes, compressed and not, of the only member in both of an archive's directories."""
    struct.pack_into("<II", raw, 18, size, size)
    struct.pack_into("<II", raw, raw.index(b"PK\x01\x02") + 20, size, size)


def _change(raw: bytearray, before: bytes, after: bytes) -> None:
    raw[:] = raw.replace(before, after, 1)


_IDS = npy_of("(8,)", "'<u4'")
ARCHIVES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a zip file"),
    "folder of it cut off": (archive({"training.npy": _IDS}, stored=True)[:-10], _DAMAGED),
    "bomb": (archive({"training.npy": npy_of(f"({2**22},)", "'<u4'", bytes(2**24))}), "training.npy is compressed"),
    "pickle": (archive({"training.npy": pickle.dumps(Touch())}, stored=True), "magic"),
    "objects": (archive({"training.npy": npy_of("(1,)", "'|O'", pickle.dumps([Touch()]))}, stored=True), "Python objects"),
    "two members of one name": (archive([("training.npy", _IDS), ("training.npy", _IDS)], stored=True), "one name"),
    "member that claims more": (archive({"training.npy": _IDS}, partial(_claim, size=2**31), stored=True), "more than the file"),
    "member that claims less": (archive({"training.npy": _IDS}, partial(_claim, size=70), stored=True), _DAMAGED),
    "flipped bit": (archive({"training.npy": _IDS[:-1] + b"x"}, partial(_change, before=b"x", after=b"y"), stored=True), "CRC"),
    "encrypted": (
        archive({"training.npy": _IDS}, lambda raw: struct.pack_into("<H", raw, raw.index(b"PK\x01\x02") + 8, 1), stored=True),
        "encrypted",
    ),
    "larger than memory": (
        archive({"training.npy": npy_of(f"({2**60},)", "'<u4'")}, stored=True),
        "claims to have 4,611,686,018,427,387,904 bytes",
    ),
    "larger than the file": (
        archive({"training.npy": npy_of(f"({2**34},)", "'<u4'")}, stored=True),
        "claims to have 68,719,476,736 bytes",
    ),
    "negative dimensions": (archive({"training.npy": npy_of("(-2, -4)", "'<u4'")}, stored=True), "claims to have"),
    "version of the future": (archive({"training.npy": _IDS.replace(b"\x01\x00", b"\x09\x00", 1)}, stored=True), "version"),
}

HOSTILE |= {f"npz: {name}": ("model.npz", _write(content), message) for name, (content, message) in ARCHIVES.items()}


def _index(weight_map: object) -> Callable[[Path], object]:
    return _write(json.dumps({"weight_map": weight_map}).encode())


_INDEX = "model.safetensors.index.json"
HOSTILE |= {
    "index: another folder": (_INDEX, _index({"wte": "../model.safetensors"}), "not a .safetensors file next to it"),
    "index: any file": (_INDEX, _index({"wte": "/etc/passwd"}), "not a .safetensors file next to it"),
    "index: a number": (_INDEX, _index({"wte": 1}), "not a .safetensors file next to it"),
    "index: a list": (_INDEX, _index(["model.safetensors"]), _DAMAGED),
    "index: nothing": (_INDEX, _index({}), "its weight_map is empty"),
    "index: no JSON": (_INDEX, _write(b'{"weight_map":'), _DAMAGED),
    "index: nested without end": (_INDEX, _write(b'{"a":' * 50_000), _DAMAGED),
}
for _name, _mapping in {"beyond": [0, 2], "negative": [0, -1]}.items():
    _header = {
        "embeddings": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "mapping": {"dtype": "I64", "shape": [2], "data_offsets": [32, 48]},
    }
    _content = safetensors(_header, bytes(32) + struct.pack("<2q", *_mapping))
    HOSTILE[f"safetensors: mapping {_name}"] = ("model.safetensors", _write(_content), "but embeddings has 2; get it again")
_header = {
    "embeddings": {"dtype": "F32", "shape": [1, 2**16], "data_offsets": [0, 2**18]},
    "mapping": {"dtype": "I8", "shape": [2**17], "data_offsets": [2**18, 2**18 + 2**17]},
}
HOSTILE["safetensors: mapping without end"] = (
    "model.safetensors",
    _write(safetensors(_header, bytes(2**18 + 2**17))),
    "131,072 x 65,536 numbers, too large",
)
