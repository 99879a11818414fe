"""DLPack's structures: those of dlpack.h of version 0.8, which all libraries give and take, and what version
1 puts around the tensor, which is taken as well."""

from __future__ import annotations

import atexit
import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CUDA = 2  # kDLCUDA
MANAGED = 13  # kDLCUDAManaged: memory that the driver moves, which a device uses like its own
NAME, USED = b"dltensor", b"used_dltensor"
VERSIONED, VERSIONED_USED = b"dltensor_versioned", b"used_dltensor_versioned"
MAJOR = 1  # of the version that is known; a minor one changes no structure
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}
_NAMES = {code: name for name, code in _CODES.items()}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", _api))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
# For a capsule that is being destroyed: it must not be made an object again.
_is_valid_raw = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer_raw = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)


@dataclass(frozen=True)
class Exported:
    """A C-contiguous tensor on a CUDA device."""

    address: int
    number: int
    dtype: str
    shape: Sequence[int]


# What others may still use: by address of the structure, all that it points to.
_given: dict[int, tuple[object, ...]] = {}


def exported(tensor: Exported, owner: object) -> Any:
    """A capsule for one consumer; `owner` lives until that is done with it."""
    managed = _Managed()
    rank = len(tensor.shape)
    shape = (ctypes.c_int64 * max(rank, 1))(*tensor.shape)
    kind, bits = ("bool", 8) if tensor.dtype == "bool" else _split(tensor.dtype)
    managed.tensor.data = tensor.address
    managed.tensor.device = _Device(CUDA, tensor.number)
    managed.tensor.ndim = rank
    managed.tensor.dtype = _DataType(_CODES[kind], bits, 1)
    managed.tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = ctypes.cast(_delete, ctypes.c_void_p)
    address = ctypes.addressof(managed)
    _given[address] = (managed, shape, owner)
    return _new(address, NAME, ctypes.cast(_destroy, ctypes.c_void_p))


def _split(dtype: str) -> tuple[str, int]:
    kind = dtype.rstrip("0123456789")
    return kind, int(dtype[len(kind) :])


def _forget(address: int) -> None:
    _given.pop(address, None)


# Called for capsules that go with the last modules, when the names of this one are gone.
def _forget_capsule(
    capsule: int, given: Any = _given, is_valid: Any = _is_valid_raw, pointer: Any = _pointer_raw
) -> None:
    """A capsule is destroyed: what it holds goes, unless somebody has taken it."""
    if is_valid(capsule, b"dltensor"):
        given.pop(pointer(capsule, b"dltensor"), None)


_delete = _Deleter(_forget)
_destroy = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_forget_capsule)
_keep = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", _api))
_keep(_destroy)
_nothing = ctypes.cast(_api.Py_IsInitialized, ctypes.c_void_p)  # which may be called at any time


@atexit.register
def _leave() -> None:
    """Others may have tensors for longer than there is an interpreter to give them back to: what they read
    of them stays, and giving them back does nothing."""
    for kept in _given.values():
        managed = kept[0]
        assert isinstance(managed, _Managed)
        managed.deleter = _nothing
        _keep(kept)


class Imported:
    """A tensor of another library. It is given back when nobody holds this any more."""

    def __init__(self, managed: _Managed | _Versioned, address: int) -> None:
        tensor = managed.tensor
        self.address = (tensor.data or 0) + tensor.byte_offset
        self.shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
        code, bits = tensor.dtype.code, tensor.dtype.bits
        name = _NAMES.get(code, f"type code {code} of ")
        self.dtype = "bool" if name == "bool" else f"{name}{bits}"
        if tensor.dtype.lanes != 1:
            self.dtype = f"{self.dtype}x{tensor.dtype.lanes}"
        self.contiguous = not tensor.strides or _contiguous(
            self.shape, [tensor.strides[axis] for axis in range(tensor.ndim)]
        )
        weakref.finalize(self, _give_back, managed.deleter, address)


def _contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return 0 in shape
        step *= size
    return True


def _give_back(deleter: int | None, address: int) -> None:
    if deleter:
        _Deleter(deleter)(address)


def imported(capsule: Any) -> Imported:
    """What a capsule holds, which is ours from now on.

    Raises:
        ValueError: the capsule was used before, or is none of DLPack.
        BufferError: it is of a later version.
    """
    if _is_valid(capsule, VERSIONED):
        address = _pointer(capsule, VERSIONED)
        versioned = _Versioned.from_address(address)
        if versioned.major != MAJOR:  # nothing else of it may be read; it stays with its owner
            raise BufferError(f"DLPack {versioned.major}.{versioned.minor} is not known, {MAJOR} is")
        _rename(capsule, VERSIONED_USED)
        return Imported(versioned, address)
    address = _pointer(capsule, NAME)
    _rename(capsule, USED)
    return Imported(_Managed.from_address(address), address)
