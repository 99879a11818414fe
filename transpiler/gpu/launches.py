"""What a kernel for a GPU consists of: launches of device functions, in order, whose sizes are expressions over the
symbols of the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transpiler.dims import Dim


@dataclass(frozen=True)
class Scalar:
    """A scalar argument of a device function: an int, an expression over the kernel's symbols, or a float."""

    value: Dim | float
    dtype: str
    offset: int
    bits: int


@dataclass(frozen=True)
class TensorMap:
    """A tensor in memory as the copy unit of a device (TMA) is told of it; the driver makes a descriptor of it when a
    call is recorded.

    `element` is what the unit takes elements for: "uint16", "float32" or "tfloat32" (a float32 that it rounds). The
    tensor begins `offset` bytes into its buffer; `sizes` are in elements, the innermost first, `strides` in bytes, of
    all dims but the innermost. A copy takes a `box` of elements, every one of `steps` along each dim.

    With corners (im2col mode; the dims are channels, then those of space, then images) a copy takes box[0] channels of
    box[1] pixels, which follow each other within the space from `lower` to the sizes + `upper`.
    """

    element: str
    sizes: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    offset: Dim = 0

    @property
    def element_bytes(self) -> int:
        return 2 if self.element == "uint16" else 4


@dataclass(frozen=True)
class Launch:
    """One launch.

    `file` holds the code, `entry` is the function in it. `buffers` are positions among the kernel's arguments (inputs,
    outputs, workspace, status), in the order of the function's bindings; `written` are those of them that it writes.
    `grid` are the numbers of workgroups; where `folded` is an axis, those of axis 0 may go on along that one.
    `shared_bytes` is memory that a workgroup shares: all of it for Vulkan; for CUDA what is asked for at the launch,
    besides what the code has. `features` are what the device must have; `fallback` is a file with the same
    function, and what that needs.
    `windows` are, for each of the buffers, in how many pieces of `window_bytes` it is bound at most, each at a binding
    of its own, where the device cannot bind it at once; empty: none is. One that `counts` the turns of its loops has
    the status word as its last buffer.
    `maps` are descriptors that the function takes by value, each with its position among the arguments; the last of
    `buffers`, as many, are what they describe, and are no arguments themselves.
    `cluster`: so many neighbours along axis 0 run at the same time and reach each other's shared memory.
    """

    file: str
    entry: str
    buffers: tuple[int, ...]
    written: tuple[int, ...]
    scalars: tuple[Scalar, ...]
    scalar_bytes: int
    workgroup: tuple[int, int, int]
    grid: tuple[Dim, Dim, Dim]
    folded: int | None
    shared_bytes: int
    features: tuple[str, ...]
    fallback: tuple[str, tuple[str, ...]] | None = None
    windows: tuple[int, ...] = ()
    window_bytes: int = 0
    counts: bool = False
    maps: tuple[tuple[int, TensorMap], ...] = ()
    cluster: int = 1


@dataclass(frozen=True)
class Compiled:
    """The launches of every kernel, the files with their code by name, the name of the list of the launches, and the
    `kinds` of devices that it is for (empty: all)."""

    launches: Mapping[str, tuple[Launch, ...]]
    files: Mapping[str, bytes]
    list_file: str = "launches.json"
    kinds: tuple[str, ...] = ()
