"""The launch list of a package for a GPU: what a call of a function launches, for given sizes.

It is the same for every kind of GPU. Nothing here talks to a device.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PackageError
from .sizes import Size, Sizes, parse_size

FORMAT = 1
ALIGNMENT = 256  # of every region: no device asks for more
STATUS_BYTES = 4
_FORMATS = {"int": {32: "i", 64: "q"}, "uint": {32: "I", 64: "Q"}, "float": {16: "e", 32: "f", 64: "d"}}


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
    """A tensor map whose sizes may vary, which is an argument of a function."""

    argument: int
    element: str
    offset: Size
    sizes: tuple[Size, ...]
    strides: tuple[Size, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    lower: tuple[int, ...]
    upper: tuple[int, ...]

    def at(self, sizes: Sizes) -> TensorMap:
        return TensorMap(
            self.element, self.offset(sizes), tuple(size(sizes) for size in self.sizes),
            tuple(stride(sizes) for stride in self.strides), self.box, self.steps, self.lower, self.upper,
        )  # fmt: skip


@dataclass(frozen=True)
class DeviceFunction:
    """One function of the device, and how it is launched; `kernel` is what it is a part of.

    `buffers` are positions among the kernel's arguments, `written` those of them that it writes. Where
    `folded` is an axis, workgroups of axis 0 may go on along that one. `fallback` is a file with the same
    function, and the features that it needs. `windows` are, by buffer, in how many pieces of `window_bytes`
    it is bound at most, each at a binding of its own; empty: all are bound whole. `maps` are arguments that
    describe the last of the buffers, as many; those are no arguments themselves.
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
    each of the `checked` calls, 0 before the first step. They lie in the first `shared_bytes` bytes: the
    host fills the range `upload` and reads the range `download`.
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


@dataclass(frozen=True)
class _Kernel:
    sizes: tuple[Size, ...]  # bytes of the arguments: inputs, outputs, workspace, status
    functions: tuple[DeviceFunction, ...]


@dataclass(frozen=True)
class _Call:
    """`places` are those of inputs, outputs and workspace."""

    kernel: str
    places: tuple[tuple[str, int], ...]
    inputs: int
    outputs: int
    checks: bool
    in_place: bool
    source: str


@dataclass(frozen=True)
class _Function:
    inputs: tuple[Size, ...]
    outputs: tuple[Size, ...]
    arena: int
    blocks: tuple[tuple[Size, int, int], ...]
    calls: tuple[_Call, ...]
    copies: tuple[tuple[int, tuple[str, int]], ...]
    updates: tuple[tuple[int, tuple[str, int], int], ...]


class LaunchList:
    """launches.json of a package; `kinds` of devices that it is for, none: all. `small`: its launches do so
    little that threads of a processor need not share one.

    Raises:
        PackageError: it cannot be read, or is of another format.
    """

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PackageError(f"{path} cannot be read: {error}") from error
        if content["format"] != FORMAT:
            raise PackageError(f"{path} has format {content['format']}; this runtime knows format {FORMAT}.")
        self.kinds: tuple[str, ...] = tuple(content["kinds"])
        self.small = bool(content["small"])
        self._symbols: tuple[str, ...] = tuple(content["symbols"])
        self.kernels = {name: _read_kernel(name, entry) for name, entry in content["kernels"].items()}
        self.functions = tuple(content["functions"])
        self._functions = [_read_function(entry) for entry in content["functions"].values()]

    @property
    def calls(self) -> tuple[tuple[str, ...], ...]:
        """The kernels of every function's calls."""
        return tuple(tuple(call.kernel for call in function.calls) for function in self._functions)

    def sources(self, function: int) -> list[str]:
        """The user's source line of every call."""
        return [call.source for call in self._functions[function].calls]

    def writes_state(self, function: int) -> bool:
        """Whether a call of the function changes the state."""
        entry = self._functions[function]
        return bool(entry.updates) or any(call.in_place for call in entry.calls)

    def device_functions(self) -> list[DeviceFunction]:
        return [function for kernel in self.kernels.values() for function in kernel.functions]

    def sizes(self, packed: bytes | None) -> dict[str, int]:
        """The values of symbols, as callers pack them."""
        values = struct.unpack(f"{len(packed) // 8}q", packed) if packed else ()
        return dict(zip(self._symbols, values, strict=False))

    def program(self, function: int, sizes: Sizes) -> Program:
        """All of a function."""
        entry = self._functions[function]
        layout = _Layout()
        inputs = [layout.take(size(sizes)) for size in entry.inputs]
        checked = tuple(index for index, call in enumerate(entry.calls) if call.checks)
        status = layout.take(STATUS_BYTES * len(checked))
        upload = (0, layout.end)
        outputs = [layout.take(size(sizes)) for size in entry.outputs]
        shared_bytes = layout.end
        offsets, arena_bytes = place_blocks(
            [(size(sizes), first, last) for size, first, last in entry.blocks]
        )
        arena = layout.take(max(arena_bytes, entry.arena)).offset

        def region(place: tuple[str, int], nbytes: int) -> Region:
            kind, where = place
            match kind:
                case "input":
                    return Region("work", inputs[where].offset, nbytes)
                case "output":
                    return Region("work", outputs[where].offset, nbytes)
                case "arena":
                    return Region("work", arena + where, nbytes)
                case "block":
                    return Region("work", arena + offsets[where], nbytes)
                case "weight":
                    return Region("weights", where, nbytes)
            return Region("state", where, nbytes)

        steps: list[Dispatch | Copy] = []
        for index, call in enumerate(entry.calls):
            kernel = self.kernels[call.kernel]
            arguments = [
                region(place, size(sizes)) for place, size in zip(call.places, kernel.sizes, strict=False)
            ]
            if call.checks:
                word = status.offset + STATUS_BYTES * checked.index(index)
                arguments.append(Region("work", word, STATUS_BYTES))
            steps += _dispatches(kernel, arguments, sizes, index)
        for output, place in entry.copies:
            target = outputs[output]
            steps.append(Copy(region(place, target.nbytes), target))
        for offset, place, nbytes in entry.updates:
            steps.append(Copy(region(place, nbytes), Region("state", offset, nbytes)))
        return Program(
            tuple(steps), tuple(inputs), tuple(outputs), status, checked,
            upload, (status.offset, shared_bytes), shared_bytes, layout.end,
        )  # fmt: skip

    def single(self, function: int, index: int, sizes: Sizes) -> Program:
        """One call on memory of its own. Its inputs are given (in place: and its old outputs)."""
        call = self._functions[function].calls[index]
        kernel = self.kernels[call.kernel]
        nbytes = [size(sizes) for size in kernel.sizes]
        layout = _Layout()
        tensors = call.inputs + call.outputs
        arguments = [layout.take(size) for size in nbytes[: call.inputs]]
        if call.in_place:
            arguments += [layout.take(size) for size in nbytes[call.inputs : tensors]]
        inputs = tuple(arguments)
        status = layout.take(STATUS_BYTES if call.checks else 0)
        upload = (0, layout.end)
        if not call.in_place:
            arguments += [layout.take(size) for size in nbytes[call.inputs : tensors]]
        outputs = tuple(arguments[call.inputs :])
        shared_bytes = layout.end
        arguments += [layout.take(size) for size in nbytes[tensors : len(call.places)]]
        if call.checks:
            arguments.append(status)
        start = min([status.offset, *(region.offset for region in outputs)])
        return Program(
            tuple(_dispatches(kernel, arguments, sizes, index)), inputs, outputs, status,
            (index,) if call.checks else (), upload, (start, shared_bytes), shared_bytes, layout.end,
        )  # fmt: skip


class _Layout:
    """Regions one behind the other."""

    def __init__(self) -> None:
        self.end = 0

    def take(self, nbytes: int) -> Region:
        region = Region("work", self.end, nbytes)
        self.end += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return region


def place_blocks(blocks: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Offsets for (bytes, first call, last call), and the bytes of the whole: the largest first, each at the
    lowest place that is free while it is in use (Pisarchyk and Lee, 2020, greedy by size)."""
    offsets = [0] * len(blocks)
    placed: list[int] = []
    total = 0
    for index in sorted(range(len(blocks)), key=lambda index: (-blocks[index][0], index)):
        nbytes, first, last = blocks[index]
        offset = 0
        for other in sorted(placed, key=offsets.__getitem__):
            if blocks[other][1] > last or blocks[other][2] < first:
                continue
            if offset + nbytes <= offsets[other]:
                break
            offset = max(offset, offsets[other] + -(-blocks[other][0] // ALIGNMENT) * ALIGNMENT)
        offsets[index] = offset
        placed.append(index)
        total = max(total, offset + nbytes)
    return offsets, total


def _dispatches(kernel: _Kernel, arguments: Sequence[Region], sizes: Sizes, call: int) -> list[Dispatch]:
    steps = []
    for function in kernel.functions:
        x, y, z = (size(sizes) for size in function.grid)
        if min(x, y, z) > 0:
            steps.append(
                Dispatch(
                    function,
                    tuple(arguments[position] for position in function.buffers),
                    tuple(position in function.written for position in function.buffers),
                    function.packed(sizes),
                    (x, y, z),
                    call,
                    tuple(item.at(sizes) for item in function.maps),
                )
            )
    return steps


def _read_function(entry: Mapping[str, Any]) -> _Function:
    def place(item: Sequence[Any]) -> tuple[str, int]:
        kind, where = item
        return kind, where

    return _Function(
        inputs=tuple(map(_size, entry["inputs"])),
        outputs=tuple(map(_size, entry["outputs"])),
        arena=entry["arena"],
        blocks=tuple((_size(size), first, last) for size, first, last in entry["blocks"]),
        calls=tuple(
            _Call(
                call["kernel"], tuple(map(place, call["places"])), call["inputs"], call["outputs"],
                call["checks"], call["in_place"], call["source"],
            )
            for call in entry["calls"]
        ),
        copies=tuple((output, place(source)) for output, source in entry["copies"]),
        updates=tuple((offset, place(source), nbytes) for offset, source, nbytes in entry["updates"]),
    )  # fmt: skip


def _read_kernel(name: str, entry: Mapping[str, Any]) -> _Kernel:
    functions = tuple(
        DeviceFunction(
            kernel=name,
            file=item["file"],
            entry=item["entry"],
            buffers=tuple(item["buffers"]),
            written=frozenset(item["written"]),
            scalars=tuple(map(_scalar, item["scalars"])),
            scalar_bytes=item["scalar_bytes"],
            workgroup=tuple(item["workgroup"]),
            grid=tuple(map(_size, item["grid"])),
            folded=item["folded"],
            shared_bytes=item["shared_bytes"],
            features=tuple(item["features"]),
            fallback=_fallback(item["fallback"]) if "fallback" in item else None,
            windows=tuple(item["windows"]["counts"]) if "windows" in item else (),
            window_bytes=item["windows"]["bytes"] if "windows" in item else 0,
            maps=tuple(map(_tensor_map, item.get("maps", ()))),
        )
        for item in entry["launches"]
    )
    return _Kernel(tuple(map(_size, entry["sizes"])), functions)


def _fallback(entry: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    return str(entry["file"]), tuple(map(str, entry["features"]))


def _tensor_map(entry: Mapping[str, Any]) -> TensorMapRule:
    return TensorMapRule(
        entry["argument"], entry["element"], _size(entry["offset"]), tuple(map(_size, entry["sizes"])),
        tuple(map(_size, entry["strides"])), tuple(entry["box"]), tuple(entry["steps"]),
        tuple(entry.get("lower", ())), tuple(entry.get("upper", ())),
    )  # fmt: skip


def _size(size: int | str) -> Size:
    return parse_size(str(size))


def _scalar(entry: Mapping[str, Any]) -> Scalar:
    value = entry["value"]
    kind = "uint" if entry["dtype"] == "bool" else str(entry["dtype"]).rstrip("0123456789")
    number: Callable[[Sizes], int | float] = _constant(value) if isinstance(value, float) else _size(value)
    return Scalar(number, "<" + _FORMATS[kind][entry["bits"]], entry["offset"])


def _constant(value: float) -> Callable[[Sizes], float]:
    return lambda sizes: value
