"""What a call of a function launches on a GPU, for given sizes: functions of the device on regions of memory.

It is the same for every kind of GPU. Nothing here talks to a device.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .sizes import Size, Sizes


@dataclass(frozen=True)
class Region:
    """`nbytes` bytes from `offset` on of "work" (a call's own memory), "weights" or "state"."""

    memory: str
    offset: int
    nbytes: int

    def overlaps(self, other: Region) -> bool:
        return (
            self.memory == other.memory
            and self.offset < other.offset + other.nbytes
            and other.offset < self.offset + self.nbytes
        )


@dataclass(frozen=True)
class Scalar:
    value: Callable[[Sizes], int | float]
    format: str
    offset: int


@dataclass(frozen=True)
class TensorMap:
    """A tensor that a device's copy unit is told of, for given sizes: `offset` bytes into its region, of
    `sizes` elements, the innermost dim first; `strides` are bytes, of the dims behind the innermost. A copy
    takes a `box`, every one of `steps` elements; with corners `lower` and `upper` (im2col) channels and
    pixels."""

    element: str
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    lower: tuple[int, ...]
    upper: tuple[int, ...]


@dataclass(frozen=True)
class TensorMapRule:
    """The argument of a function that is a tensor map, and that map for given sizes."""

    argument: int
    at: Callable[[Sizes], TensorMap]


@dataclass(frozen=True)
class DeviceFunction:
    """One function of the device, and how it is launched; `kernel` is what it is a part of.

    `buffers` are positions among the kernel's arguments, `written` those of them that it writes. Where
    `folded` is an axis, workgroups of axis 0 may go on along that one. `fallback` is a file with the same
    function, and the features that it needs. `windows` are, by buffer, in how many pieces of `window_bytes`
    it is bound at most, each at a binding of its own; empty: all are bound whole. `maps` are arguments that
    describe the last of the buffers, as many; those are no arguments themselves. So many neighbouring
    workgroups of axis 0 are a `cluster`, which runs at the same time.
    """

    kernel: str
    file: str
    entry: str
    buffers: tuple[int, ...]
    written: frozenset[int]
    scalars: tuple[Scalar, ...]
    scalar_bytes: int
    workgroup: tuple[int, ...]
    grid: tuple[Size, ...]
    folded: int | None
    shared_bytes: int
    features: tuple[str, ...]
    fallback: tuple[str, tuple[str, ...]] | None = None
    windows: tuple[int, ...] = ()
    window_bytes: int = 0
    maps: tuple[TensorMapRule, ...] = ()
    cluster: int = 1

    @property
    def bindings(self) -> int:
        return sum(self.windows) if self.windows else len(self.buffers)

    def packed(self, sizes: Sizes) -> bytes:
        """The bytes of the scalar arguments. Raises ValueError for one that does not fit into its type."""
        data = bytearray(self.scalar_bytes)
        for scalar in self.scalars:
            try:
                struct.pack_into(scalar.format, data, scalar.offset, scalar.value(sizes))
            except struct.error as error:
                raise ValueError(f"sizes {dict(sizes)} are too large for kernel {self.kernel}") from error
        return bytes(data)


@dataclass(frozen=True)
class Dispatch:
    """A launch with its memory; `writes` says which of the regions it writes. It belongs to call `call`."""

    function: DeviceFunction
    regions: tuple[Region, ...]
    writes: tuple[bool, ...]
    scalars: bytes
    grid: tuple[int, int, int]
    call: int
    maps: tuple[TensorMap, ...] = ()


@dataclass(frozen=True)
class Copy:
    source: Region
    target: Region


@dataclass(frozen=True)
class Program:
    """A function for given sizes: `steps` on `nbytes` bytes of work memory.

    `inputs` and `outputs` are where the arrays of the caller go to and come from; `status` has a word for
    each of the `checked` calls, as far apart as regions are, 0 before the first step. They lie in the first
    `shared_bytes` bytes: the host fills the range `upload` and reads the range `download`.
    """

    steps: tuple[Dispatch | Copy, ...]
    inputs: tuple[Region, ...]
    outputs: tuple[Region, ...]
    status: Region
    checked: tuple[int, ...]
    upload: tuple[int, int]
    download: tuple[int, int]
    shared_bytes: int
    nbytes: int

    def needs_barrier(self) -> list[bool]:
        """Per step whether it must wait for those before it, which write what it reads or use what it
        writes."""
        result = []
        read: list[Region] = []
        written: list[Region] = []
        for step in self.steps:
            reads, writes = _uses(step)
            conflict = _overlap(reads, written) or _overlap(writes, written) or _overlap(writes, read)
            if conflict:
                read, written = [], []
            read += reads
            written += writes
            result.append(conflict)
        return result


def _uses(step: Dispatch | Copy) -> tuple[list[Region], list[Region]]:
    if isinstance(step, Copy):
        return [step.source], [step.target]
    pairs = list(zip(step.regions, step.writes, strict=True))
    return [region for region, _ in pairs], [region for region, writes in pairs if writes]


def _overlap(some: Sequence[Region], others: Sequence[Region]) -> bool:
    return any(a.overlaps(b) for a in some for b in others)
