"""What callers pass, checked: errors name the argument, what came and what was expected."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .host import bfloat16_bits
from .safetensors import bfloat16_array, storage_dtype
from .sizes import Shape, Sizes

Array = npt.NDArray[Any]


class ArrayLike(Protocol):
    """What a model takes: numpy arrays and tensors in CPU memory that speak DLPack, such as PyTorch's."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


# Outputs from this size on start at a cache line, so that no vector that is stored spans two.
ALIGNED_FROM_BYTES = 16384
NO_SIZES: Sizes = MappingProxyType({})


def as_array(value: Any, name: str) -> Array:
    """`value` as a numpy array, without a copy: arrays, and anything with __dlpack__ or __array_interface__.

    Raises:
        TypeError: anything else, a tensor that is not in CPU memory, or values that are masked.
    """
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray and np.ma.is_masked(value):
            raise TypeError(f"{name}: a mask would be lost; fill the masked values: array.filled(0)")
        return value
    if hasattr(value, "__dlpack__"):
        device = getattr(value, "__dlpack_device__", lambda: (1, 0))()
        if device[0] not in (1, 3):  # kDLCPU, kDLCUDAHost
            raise TypeError(
                f"{name}: expected an array in CPU memory, got one on {getattr(value, 'device', device)}"
            )
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise TypeError(f"{name}: this {type(value).__name__} cannot be read: {error}") from error
    if hasattr(value, "__array_interface__"):
        return np.asarray(value)
    raise TypeError(f"{name}: expected an array, got {type(value).__name__}")


class TensorSpec:
    """Name, dtype and shape of one flat input or output; dimensions that vary are texts."""

    def __init__(self, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        self.name = name
        self.dtype = dtype
        self.varying = Shape(shape) if any(isinstance(dim, str) for dim in shape) else None
        self.shape = tuple(shape)
        self.storage = storage_dtype(dtype)
        self._exact = None if dtype == "bfloat16" else self.storage
        self.nbytes = 0 if self.varying else self._bytes(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def _bytes(self, shape: tuple[Any, ...]) -> int:
        return int(np.prod(shape, dtype=np.int64)) * self.storage.itemsize

    def take(self, value: Any) -> Array:
        """`value` as the C-contiguous array that the kernels read.

        Raises:
            TypeError: not an array, or of another dtype.
            ValueError: of another shape.
        """
        if (
            type(value) is np.ndarray
            and value.dtype is self._exact
            and value.shape == self.shape
            and value.flags.c_contiguous
        ):
            return value
        array = value if type(value) is np.ndarray else as_array(value, self.name)
        if self.dtype == "bfloat16":
            array = _bfloat16_bits(array, self)
        elif array.dtype != self.storage:
            raise self.wrong_dtype(array.dtype)
        self.check_shape(array.shape)
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)

    def wrong_dtype(self, got: object) -> TypeError:
        return TypeError(f"{self.name}: expected dtype {self.dtype}, got {got}")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for another shape."""
        if shape != self.shape and not (self.varying and self.varying.fits(shape)):
            raise ValueError(f"{self.name}: expected shape {self.varying or self.shape}, got {shape}")

    def shape_at(self, sizes: Sizes = NO_SIZES) -> tuple[int, ...]:
        """The shape in one call."""
        shape: Any = self.varying.at(sizes) if self.varying else self.shape
        return tuple(shape)

    def allocate(self, sizes: Sizes = NO_SIZES) -> Array:
        """An uninitialised array for the kernels to write; large ones are aligned to 64 bytes."""
        shape: Any = self.varying.at(sizes) if self.varying else self.shape
        nbytes = self._bytes(shape) if self.varying else self.nbytes
        if nbytes < ALIGNED_FROM_BYTES:
            return np.empty(shape, self.storage)
        memory = np.empty(nbytes + 64, np.uint8)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(memory.data)) % 64
        placed: Array = np.ndarray(shape, self.storage, memory, start)
        return placed

    def maker(self) -> Callable[[], Array]:
        """`allocate` for a shape that does not vary, in fewer steps."""
        small = not self.varying and self.nbytes < ALIGNED_FROM_BYTES
        return partial(np.empty, self.shape, self.storage) if small else self.allocate

    def give(self, array: Array) -> Array:
        """What the caller sees of an array that the kernels wrote."""
        return bfloat16_array(array) if self.dtype == "bfloat16" else array


def _bfloat16_bits(array: Array, spec: TensorSpec) -> Array:
    """bfloat16 as uint16 bits; float32 is rounded to nearest even."""
    if array.dtype.name == "bfloat16":
        return np.ascontiguousarray(array).view(np.uint16).reshape(array.shape)
    if array.dtype != np.float32:
        raise TypeError(f"{spec.name}: expected dtype bfloat16 (or float32), got {array.dtype}")
    return bfloat16_bits(array)


def flatten(structure: Mapping[str, Any], value: Any, name: str, put: Callable[[int, Any], None]) -> None:
    """Call `put(index, tensor)` for every tensor of `value`, which must nest as the manifest's `structure`.

    Raises:
        TypeError: another kind of container, or other keys.
        ValueError: another length, or another value where one was fixed when the model was captured.
    """
    if "leaf" in structure:
        put(structure["leaf"], value)
    elif "literal" in structure:
        fixed = structure["literal"]
        if type(value) is not type(fixed) or value != fixed:
            raise ValueError(
                f"{name}: was fixed to {fixed!r} when the model was captured, got {_brief(value)}"
            )
    elif "tuple" in structure or "list" in structure:
        items = structure["tuple"] if "tuple" in structure else structure["list"]
        if not isinstance(value, tuple | list):
            raise TypeError(f"{name}: expected a tuple or list of {len(items)}, got {_brief(value)}")
        if len(value) != len(items):
            raise ValueError(f"{name}: expected {len(items)} items, got {len(value)}")
        for index, (item, part) in enumerate(zip(items, value, strict=True)):
            flatten(item, part, f"{name}[{index}]", put)
    else:
        (kind,) = {"dict", "record", "namedtuple"} & set(structure)
        fields = dict(structure[kind])
        if kind == "namedtuple" and type(value) is tuple and len(value) == len(fields):
            value = dict(zip(fields, value, strict=True))
        elif not isinstance(value, Mapping):
            value = {key: getattr(value, key) for key in fields if hasattr(value, key)}
        check_names(name, fields, value)
        for key, item in fields.items():
            flatten(item, value[key], f"{name}[{key!r}]", put)


def check_names(what: str, expected: Iterable[str], got: Iterable[str]) -> None:
    """Raises TypeError naming every missing and unexpected key."""
    wanted, given = list(expected), list(got)
    missing = [repr(key) for key in wanted if key not in given]
    extra = [repr(key) for key in given if key not in wanted]
    faults = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unexpected {', '.join(extra)}"] * bool(
        extra
    )
    if faults:
        raise TypeError(f"{what}: {'; '.join(faults)}")


def _brief(value: Any) -> str:
    if isinstance(value, bool | int | float | str | None):
        return repr(value)[:60]
    return type(value).__name__


class Record(Mapping[str, Any]):
    """Base of result records: fields as attributes, by name and by position."""

    _fields: tuple[str, ...] = ()

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            return getattr(self, self._fields[key])
        if key not in self._fields:
            raise KeyError(f"{key!r}; known: {', '.join(self._fields)}")
        return getattr(self, key)

    def __iter__(self) -> Any:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)
