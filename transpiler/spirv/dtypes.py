"""Dtypes of kernels: registers, memory, and the device features that they need."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from transpiler.errors import TranspileError

Kind = Literal["bool", "int", "uint", "float"]


class Capability(IntEnum):
    """SPIR-V capabilities that a module of ours can declare."""

    SHADER = 1
    FLOAT16 = 9
    FLOAT64 = 10
    INT64 = 11
    GROUP_NON_UNIFORM = 61
    GROUP_NON_UNIFORM_ARITHMETIC = 63
    STORAGE_BUFFER_16BIT = 4433
    STORAGE_BUFFER_8BIT = 4448
    SIGNED_ZERO_INF_NAN_PRESERVE = 4466
    ROUNDING_MODE_RTE = 4467


# The name in Vulkan's feature structs of what a capability needs, and of VkPhysicalDeviceSubgroupProperties's
# operations, of compute shaders. Float controls are named per width by the kernel.
FEATURES = {
    Capability.FLOAT16: "shaderFloat16",
    Capability.FLOAT64: "shaderFloat64",
    Capability.INT64: "shaderInt64",
    Capability.GROUP_NON_UNIFORM: "VK_SUBGROUP_FEATURE_BASIC_BIT",
    Capability.GROUP_NON_UNIFORM_ARITHMETIC: "VK_SUBGROUP_FEATURE_ARITHMETIC_BIT",
    Capability.STORAGE_BUFFER_16BIT: "storageBuffer16BitAccess",
    Capability.STORAGE_BUFFER_8BIT: "storageBuffer8BitAccess",
}

EXTENSIONS = {
    Capability.STORAGE_BUFFER_8BIT: "SPV_KHR_8bit_storage",
    Capability.SIGNED_ZERO_INF_NAN_PRESERVE: "SPV_KHR_float_controls",
    Capability.ROUNDING_MODE_RTE: "SPV_KHR_float_controls",
}


@dataclass(frozen=True)
class DType:
    """The dtype of one lane."""

    kind: Kind
    bits: int

    def __str__(self) -> str:
        return "bool" if self.kind == "bool" else f"{self.kind}{self.bits}"

    @property
    def register(self) -> DType:
        """How a value is held: ints of 8 and 16 bits as 32, sign- or zero-extended.

        So small ints need storage features only, no 8- or 16-bit arithmetic.
        """
        small = self.kind in ("int", "uint") and self.bits < 32
        return DType(self.kind, 32) if small else self

    @property
    def storage(self) -> DType:
        """How it lies in a buffer: bool as a byte."""
        return UINT8 if self.kind == "bool" else self

    @property
    def private(self) -> DType:
        """How it lies in a workgroup's or an invocation's memory."""
        return UINT32 if self.kind == "bool" else self.register

    @property
    def nbytes(self) -> int:
        return max(self.bits // 8, 1)

    @property
    def is_int(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_float(self) -> bool:
        return self.kind == "float"


BOOL = DType("bool", 1)
INT32, INT64 = DType("int", 32), DType("int", 64)
UINT8, UINT32, UINT64 = DType("uint", 8), DType("uint", 32), DType("uint", 64)
FLOAT16, FLOAT32, FLOAT64 = DType("float", 16), DType("float", 32), DType("float", 64)

_KNOWN = {
    str(dtype): dtype
    for dtype in (
        BOOL, FLOAT16, FLOAT32, FLOAT64,
        *(DType(kind, bits) for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    )
}  # fmt: skip


def parse(text: str) -> tuple[DType, int]:
    """The dtype and the lanes of TIR's name of a type, `float32x4`.

    Raises:
        TranspileError: a type that SPIR-V kernels do not have.
    """
    name, _, lanes = text.partition("x")
    if name not in _KNOWN or not (lanes.isdigit() or not lanes):
        raise unsupported(f"values of type {text}", hint=f"types of SPIR-V kernels: {', '.join(sorted(_KNOWN))}")
    return _KNOWN[name], int(lanes or 1)


def unsupported(what: str, *, hint: str | None = None) -> TranspileError:
    """The refusal of something that has no translation; `build_kernels` adds the kernel's name."""
    return TranspileError("vulkan-unsupported", f"No SPIR-V for {what}.", hints=[hint] if hint else [])
