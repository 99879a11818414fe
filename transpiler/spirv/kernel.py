"""A finished kernel and what a runtime must know about it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from transpiler.errors import TranspileError


@dataclass(frozen=True)
class Binding:
    """A storage buffer of descriptor set 0; the buffers have its bindings in order, each as many as `windows`."""

    name: str
    dtype: str
    parameter: int  # position among the parameters of the device function
    written: bool
    windows: int = 1


@dataclass(frozen=True)
class PushConstant:
    """A scalar parameter: `bits` of int, uint or float at `offset`. Small ints and bool take 32 bits."""

    name: str
    dtype: str
    parameter: int
    offset: int
    bits: int


@dataclass(frozen=True)
class Kernel:
    """`code` are the words of a module whose one entry point is called `name`.

    `workgroup` is its local size. `grid` are the numbers of workgroups, None where a symbol decides. Where
    `folded` is an axis (1 or 2), workgroups of axis 0 may be dispatched on both: as many as are needed, in any
    rectangle that has at least so many; those too many leave at once.

    `features` are members of VkPhysicalDeviceFeatures and of the feature structs of 8- and 16-bit storage and of
    float16; `float_controls` are members of VkPhysicalDeviceFloatControlsProperties. A device must have all of them.
    `packed` is the same for devices without 8- and 16-bit storage, if it can be had. One that `counts` the turns of its
    loops writes 4 to a word at the last binding where they are too many for the driver (see turns.py).
    """

    name: str
    code: bytes
    buffers: tuple[Binding, ...]
    push: tuple[PushConstant, ...]
    workgroup: tuple[int, int, int]
    grid: tuple[int | None, int | None, int | None]
    folded: int | None
    shared_bytes: int
    features: tuple[str, ...]
    float_controls: tuple[str, ...]
    packed: Kernel | None = None
    counts: bool = False

    @property
    def push_bytes(self) -> int:
        return max((field.offset + field.bits // 8 for field in self.push), default=0)


def require_features(kernel: Kernel, device: str, available: Collection[str]) -> None:
    """Raises:
    TranspileError: `device` lacks something that `kernel` needs; the message names both.
    """
    missing = [name for name in (*kernel.features, *kernel.float_controls) if name not in available]
    if missing:
        raise TranspileError(
            "vulkan-feature",
            f"Kernel {kernel.name!r} needs {', '.join(missing)}, which device {device!r} does not have.",
        )
