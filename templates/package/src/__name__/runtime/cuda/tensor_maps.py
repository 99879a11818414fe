"""Descriptors of tensors for the copy unit of a device (TMA), as kernels take them by value."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from ..launches import TensorMap
from .device import Device

NBYTES = ALIGNMENT = 128  # bytes of a descriptor; drivers ask for 64
VERSION = 12000  # the CUDA whose functions are asked for: those of compute capability 9.0
_TILED = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, *[ctypes.c_void_p] * 4,
    *[ctypes.c_int] * 4,
)  # fmt: skip
_IM2COL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, *[ctypes.c_void_p] * 4,
    *[ctypes.c_uint32] * 2, ctypes.c_void_p, *[ctypes.c_int] * 4,
)  # fmt: skip


class Descriptor:
    """The descriptor of a tensor in the region at `address`: bytes at its own `address`. Lines of up to 128
    bytes are permuted in shared memory (swizzle), what lies outside of the tensor reads as zeros.

    The driver's functions are called without the classes of `cuda-bindings`, whose descriptors may lie where
    neither the driver nor aligned instructions take them (NVIDIA/cuda-python, pull request 1692).

    Raises:
        DriverError: the tensor is none that the copy unit takes.
    """

    def __init__(self, device: Device, what: str, tensor: TensorMap, address: int) -> None:
        self._memory = ctypes.create_string_buffer(NBYTES + ALIGNMENT)
        self.address = -(-ctypes.addressof(self._memory) // ALIGNMENT) * ALIGNMENT
        driver = device.driver
        kind = getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{tensor.element.upper()}")
        common = (
            self.address, kind.value, len(tensor.sizes), address + tensor.offset,
            _array(ctypes.c_uint64, tensor.sizes), _array(ctypes.c_uint64, tensor.strides),
        )  # fmt: skip
        steps = _array(ctypes.c_uint32, tensor.steps)
        layout = (
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE.value,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B.value,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B.value,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE.value,
        )
        if tensor.lower:
            lower, upper = (_array(ctypes.c_int, corner) for corner in (tensor.lower, tensor.upper))
            function = _function(device, "cuTensorMapEncodeIm2col", _IM2COL)
            code = function(*common, lower, upper, *tensor.box, steps, *layout)
        else:
            function = _function(device, "cuTensorMapEncodeTiled", _TILED)
            code = function(*common, _array(ctypes.c_uint32, tensor.box), steps, *layout)
        device.do(what, (driver.CUresult(code),))


def _array(kind: Any, values: Sequence[int]) -> Any:
    return (kind * max(len(values), 1))(*values)


def _function(device: Device, name: str, prototype: Any) -> Any:
    driver = device.driver
    flag = driver.CUdriverProcAddress_flags.CU_GET_PROC_ADDRESS_DEFAULT.value
    error, address, _ = driver.cuGetProcAddress(name.encode(), VERSION, flag)
    device.do(f"asking for {name}", (error,))
    return prototype(address)
