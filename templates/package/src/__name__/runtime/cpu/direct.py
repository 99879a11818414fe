"""A function of the library as one of the interpreter's own: a call spends 2 µs less than through ctypes.

`python.c` reads arrays through the buffer protocol. What it needs of Python's stable ABI is handed to it as
addresses, so that the library needs no symbol of the interpreter and runs in every version of it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..arguments import TensorSpec

METH_FASTCALL = 0x80
FUNCTIONS = (
    "PyObject_GetBuffer",
    "PyBuffer_Release",
    "PyErr_Clear",
    "PyEval_SaveThread",
    "PyEval_RestoreThread",
    "PyLong_FromLong",
    "PyObject_Type",
    "Py_DecRef",
)


class _Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def direct_call(
    python_call: Callable[[Any], int],
    model: int | None,
    function: int,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> Callable[..., int] | None:
    """A function of the inputs and of arrays to fill: 0, -1 where an input needs to be converted or refused,
    or the code of a failure. None for interpreters and types that it cannot be made for.
    """
    if sys.implementation.name != "cpython" or any(spec.dtype == "bfloat16" for spec in inputs):
        return None
    python = ctypes.pythonapi
    words = [_address(getattr(python, name)) for name in FUNCTIONS]
    words += [id(np.ndarray), model or 0, function, len(inputs), len(outputs)]
    kept: list[Any] = []
    for spec in inputs:
        text = ctypes.create_string_buffer(np.empty(0, spec.storage).data.format.encode())
        shape = (ctypes.c_ssize_t * len(spec.shape))(*map(int, spec.shape))
        kept += [text, shape]
        words += [ctypes.addressof(text), len(spec.shape), ctypes.addressof(shape)]
    memory = (ctypes.c_size_t * len(words))(*words)
    method = _Method(b"call", python_call(_address(python.PyLong_AsVoidPtr)), METH_FASTCALL, None)
    make = python.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    address = _KeepingInt(ctypes.addressof(memory))
    address.kept = (memory, method, kept)
    called: Callable[..., int] = make(ctypes.addressof(method), address, None)
    return called


class _KeepingInt(int):
    """An address that keeps what it points to: the function that is made holds it."""

    kept: tuple[Any, ...] = ()


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
