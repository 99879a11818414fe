"""Reading and writing safetensors files with numpy only. Reading maps the file: nothing is copied.

Format: https://github.com/huggingface/safetensors (8 bytes of header size, a JSON header, the data).
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ALIGNMENT = 64
PADDING = "_pad."
MAX_HEADER = 100_000_000
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
CODES = {name: code for code, name in DTYPES.items()}


class FormatError(ValueError):
    """Not a well-formed safetensors file."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its bytes are [start, end) of the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that holds the bytes of `dtype`: bfloat16 is held as uint16."""
    little = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
    own: np.dtype[Any] = np.dtype(little.str)  # numpy's own object where that is the machine's order
    return own


def bfloat16_array(bits: Array) -> Array:
    """uint16 bits as an ml_dtypes array if that is installed, else widened to float32 (exact)."""
    values: Array
    try:
        import ml_dtypes
    except ImportError:
        values = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = bits.view(ml_dtypes.bfloat16)
    return values


class File(Mapping[str, Array]):
    """The tensors of a safetensors file by name: read-only views of the mapped file.

    `entries` and `metadata` are the header's; `data` is the whole data section as bytes. `key` tells the
    file, as it is now, from all others.

    Raises:
        FormatError: the header is not well-formed, or the data does not fit the file.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # opening a pipe would wait for its writer
            raise FormatError(f"{self.path} is not a file")
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            self.key = (status.st_dev, status.st_ino, status.st_mtime_ns, size)
            if size < 8:
                raise FormatError(f"{self.path} is too short for a safetensors file: {size} bytes")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with suppress(OSError):  # only a hint: what is read from disk now may come in pages of 2 MB
            mapped.madvise(mmap.MADV_HUGEPAGE)
        length = int.from_bytes(mapped[:8], "little")
        if length > min(size - 8, MAX_HEADER):
            raise FormatError(f"{self.path} is not a safetensors file: its header would have {length} bytes")
        try:
            header = json.loads(mapped[8 : 8 + length].decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise FormatError(f"{self.path} is not a safetensors file: its header is not JSON") from error
        data_bytes = size - 8 - length
        self.metadata, self.entries = _parse(header, data_bytes, str(self.path))
        self.data: Array = np.frombuffer(mapped, np.uint8, data_bytes, 8 + length)

    def __getitem__(self, name: str) -> Array:
        bits = self.bits(name)
        return bfloat16_array(bits) if self.entries[name].dtype == "bfloat16" else bits

    def bits(self, name: str) -> Array:
        """A view of the tensor in the file, bfloat16 as uint16."""
        entry = self.entries[name]
        return self.data[entry.start : entry.end].view(storage_dtype(entry.dtype)).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _parse(header: object, data_bytes: int, path: str) -> tuple[dict[str, str], dict[str, Entry]]:
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: __metadata__ must map strings to strings")
    entries = {name: _entry(name, item, path) for name, item in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise FormatError(
                f"{path}: {name!r} starts at byte {entry.start}, expected {end}: hole or overlap"
            )
        end = entry.end
    if end != data_bytes:
        raise FormatError(f"{path}: the header describes {end} bytes of data, the file has {data_bytes}")
    return metadata, {name: entry for name, entry in entries.items() if not name.startswith(PADDING)}


def _entry(name: str, item: object, path: str) -> Entry:
    match item:
        case {
            "dtype": str() as code,
            "shape": list() as shape,
            "data_offsets": [int() as start, int() as end],
        }:
            pass
        case _:
            raise FormatError(f"{path}: {name!r} needs dtype, shape and data_offsets")
    if code not in DTYPES:
        raise FormatError(f"{path}: {name!r} has unknown dtype {code!r}; known: {', '.join(sorted(DTYPES))}")
    if not all(type(dim) is int and 0 <= dim < 2**48 for dim in shape):
        raise FormatError(f"{path}: {name!r} has shape {shape}")
    expected = prod(shape) * storage_dtype(DTYPES[code]).itemsize
    if start < 0 or end - start != expected:
        raise FormatError(f"{path}: {name!r} has {end - start} bytes, its shape {shape} needs {expected}")
    return Entry(DTYPES[code], tuple(shape), start, end)


def encode(
    tensors: Mapping[str, Array],
    *,
    dtypes: Mapping[str, str] | None = None,
    offsets: Mapping[str, int] | None = None,
    total: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a file whose tensors each start at a multiple of 64 bytes, in the given order.

    Fillers named `_pad.<n>` take the space between them: the format forbids holes. `dtypes` names those whose
    numpy dtype is not their own (bfloat16 held as uint16), `offsets` places tensors in the data section and
    `total` is its least size; without them the tensors follow each other.

    Raises:
        ValueError: offsets that overlap, or a dtype that the format does not have.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    pieces: list[bytes | memoryview] = []
    end = 0

    def pad_to(offset: int) -> None:
        nonlocal end
        if offset > end:
            header[f"{PADDING}{len(pieces)}"] = {
                "dtype": "U8",
                "shape": [offset - end],
                "data_offsets": [end, offset],
            }
            pieces.append(bytes(offset - end))
            end = offset

    order = sorted(tensors, key=lambda name: offsets[name]) if offsets else list(tensors)
    for name in order:
        array = tensors[name]
        dtype = (dtypes or {}).get(name, array.dtype.name)
        if dtype not in CODES:
            raise ValueError(f"{name!r}: safetensors has no dtype {dtype}")
        start = offsets[name] if offsets else -(-end // ALIGNMENT) * ALIGNMENT
        if start < end:
            raise ValueError(f"{name!r} at byte {start} overlaps the tensor before it, which ends at {end}")
        pad_to(start)
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        end = start + len(content)
        header[name] = {"dtype": CODES[dtype], "shape": list(array.shape), "data_offsets": [start, end]}
        pieces.append(content)
    pad_to(total)
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *pieces])
