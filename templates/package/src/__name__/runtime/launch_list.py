"""The launch list of a package for a GPU (launches.json), and the programs that it holds for given sizes.

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
from .launches import Copy, DeviceFunction, Dispatch, Program, Region, Scalar, TensorMap, TensorMapRule
from .sizes import Size, Sizes, parse_size

FORMAT = 1
ALIGNMENT = 256  # of every region: no device asks for more
STATUS_BYTES = 4
MAX_ELEMENTS = 1 << 31  # kernels count elements of a tensor in 32 bits
_FORMATS = {"int": {32: "i", 64: "q"}, "uint": {32: "I", 64: "Q"}, "float": {16: "e", 32: "f", 64: "d"}}


@dataclass(frozen=True)
class _Kernel:
    name: str
    sizes: tuple[Size, ...]  # bytes of the arguments: inputs, outputs, workspace, status
    item_bytes: tuple[int, ...]  # of an element of the inputs and outputs
    functions: tuple[DeviceFunction, ...]

    def measured(self, sizes: Sizes) -> list[int]:
        """The bytes of the arguments.

        Raises:
            PackageError: a tensor has more elements than kernels count.
        """
        found = [size(sizes) for size in self.sizes]
        for nbytes, width in zip(found, self.item_bytes, strict=False):
            if nbytes >= MAX_ELEMENTS * width:
                raise PackageError(
                    f"kernel {self.name} reads or writes a tensor of {nbytes // width:,} elements, "
                    "2^31 or more: use smaller sizes"
                )
        return found


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
        status = layout.take(ALIGNMENT * len(checked))  # each is bound by itself
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
                region(place, nbytes)
                for place, nbytes in zip(call.places, kernel.measured(sizes), strict=False)
            ]
            if call.checks:
                word = status.offset + ALIGNMENT * checked.index(index)
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
        nbytes = kernel.measured(sizes)
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
            cluster=item.get("cluster", 1),
        )
        for item in entry["launches"]
    )
    return _Kernel(name, tuple(map(_size, entry["sizes"])), tuple(entry["item_bytes"]), functions)


def _fallback(entry: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    return str(entry["file"]), tuple(map(str, entry["features"]))


def _tensor_map(entry: Mapping[str, Any]) -> TensorMapRule:
    offset = _size(entry["offset"])
    extents, strides = [_size(item) for item in entry["sizes"]], [_size(item) for item in entry["strides"]]
    box, steps, lower, upper = (tuple(entry.get(name, ())) for name in ("box", "steps", "lower", "upper"))

    def at(sizes: Sizes) -> TensorMap:
        return TensorMap(
            entry["element"], offset(sizes), tuple(extent(sizes) for extent in extents),
            tuple(stride(sizes) for stride in strides), box, steps, lower, upper,
        )  # fmt: skip

    return TensorMapRule(entry["argument"], at)


def _size(size: int | str) -> Size:
    return parse_size(str(size))


def _scalar(entry: Mapping[str, Any]) -> Scalar:
    value = entry["value"]
    kind = "uint" if entry["dtype"] == "bool" else str(entry["dtype"]).rstrip("0123456789")
    number: Callable[[Sizes], int | float] = _constant(value) if isinstance(value, float) else _size(value)
    return Scalar(number, "<" + _FORMATS[kind][entry["bits"]], entry["offset"])


def _constant(value: float) -> Callable[[Sizes], float]:
    return lambda sizes: value
