"""Convolutions as products of matrices, in 1 to 3 dimensions.

Three forms:

* Channels last (`conv_last`, what a pass makes of convolutions whose filters are weights): an implicit product, rows
  are output positions, columns output channels. The summed dim is taps, then channels, so that a chunk is 16 bytes of
  one pixel; where it lies, and whether it is in the padding, is worked out as it is copied, by threads or by
  the device's copy unit. No im2col buffer exists.
* Channels first, without taps (1 x 1, stride 1): a product for every image, of the weights with the map as it lies;
  rows are output channels, columns positions.
* Channels first, with taps: a launch writes the map with its channels last, filled up to whole chunks, another one the
  weights likewise, and the product is that of the first form, with rows and columns exchanged.

Limited by what the product is limited by; what has to be rearranged is read and written once.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ir import Node
from transpiler.ops.channels_last import ConvLast, first_axes
from transpiler.ops.conv import Conv
from transpiler.ops.dtypes import numpy_dtype
from transpiler.target import Target

from ..cpu.epilogue import elementwise_epilogue
from ..fuse import lowered
from ..sizes import ceil_div, count, extent, extents, is_empty, is_fixed
from ..tir import Buffer, KernelBuilder, flat_offset, unflatten
from ..vectors import held
from . import ptx
from .cores import emit
from .epilogue import RunEpilogue
from .operands import Matrices, bias_of, only_widens, or_zero, product_kind, stored_dtype, widened, write_chunks
from .product import DEPTHS, Chunks, Operand, Product, Tensor

Expr = Any
# Of the copy unit, by dims of space: corners are from -x to x - 1, offsets below y. And of all its copies: bytes of a
# line that comes at once, elements of a step.
CORNERS = {1: (1 << 15, 1 << 16), 2: (1 << 7, 1 << 8), 3: (1 << 4, 1 << 5)}
LINE, MOST_STEPS = 128, 8
FEW_CHANNELS = 16  # output channels of a group, below which a tile would be mostly empty


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, Conv | ConvLast):
        return None
    kind = product_kind(group, node)
    if kind is None or not only_widens(group) or not elementwise_epilogue(group):
        return None
    shape, weight = node.output.type.shape, node.inputs[1].type.static_shape()
    if is_empty(shape) or is_empty(weight) or is_empty(node.inputs[0].type.shape):
        return None
    if kind == "float32" and node.op.groups > 1 and weight[0] // node.op.groups < FEW_CHANNELS:
        return None
    form: _Form
    if isinstance(node.op, ConvLast):
        form = _Last(kind, group, node)
    else:
        form = (_Pointwise if _Pointwise.takes(kind, node) else _Taps)(kind, group, node)
    elements = form.workspace
    builder = KernelBuilder(
        name, [value.type for value in group.inputs], [group.outputs[0].type],
        workspace=elements, workspace_dtype=stored_dtype(kind),
    )  # fmt: skip
    with builder:
        emit(form.product(builder), RunEpilogue(group, builder), target)
    workspace = elements * int(numpy_dtype(stored_dtype(kind)).itemsize) + builder.appended_bytes
    return lowered(group, builder, flops=2 * count(shape) * count(weight[1:]), workspace=workspace)


class _Form(ABC):
    """Sizes of a convolution, by group: `rows` output channels of `channels` input channels each."""

    def __init__(self, kind: str, group: Group, node: Node) -> None:
        assert isinstance(node.op, Conv | ConvLast)
        self.kind, self.group, self.node, self.op = kind, group, node, node.op
        self.x, self.shape = (self.first(value.type.shape) for value in (node.inputs[0], node.output))
        self.weight = node.inputs[1].type.with_shape(self.first(node.inputs[1].type.shape)).static_shape()
        self.groups, self.rows = node.op.groups, self.weight[0] // node.op.groups
        self.channels, self.kernel = self.weight[1], self.weight[2:]
        self.positions = self.shape[2:]
        self.dtypes = [widened(group, value).dtype for value in node.inputs[:2]]

    @staticmethod
    def first(shape: Sequence[Dim]) -> tuple[Dim, ...]:
        """A shape with its channels where PyTorch has them."""
        return tuple(shape)

    @property
    @abstractmethod
    def workspace(self) -> Dim:
        """Elements of it, whose parts begin at multiples of 16."""

    @abstractmethod
    def product(self, builder: KernelBuilder) -> Product:
        """The product; emits the launches that make its operands."""

    def sources(self, builder: KernelBuilder) -> list[Buffer]:
        return [builder.inputs[self.group.input_index(widened(self.group, value))] for value in self.node.inputs[:2]]

    def bias(self, builder: KernelBuilder, batch_group: Callable[[Expr], Expr]) -> Callable[[Expr, Expr], Expr] | None:
        bias = bias_of(self.group, builder, self.node)
        return None if bias is None else lambda batch, row: bias(batch_group(batch) * self.rows + row)


class _Pointwise(_Form):
    """No taps: batches are images and groups."""

    @staticmethod
    def takes(kind: str, node: Node) -> bool:
        op, positions = node.op, count(node.output.type.shape[2:])
        assert isinstance(op, Conv)
        plain = count(node.inputs[1].type.static_shape()[2:]) == 1 and not any(op.padding)
        aligned = is_fixed(positions) and positions % DEPTHS[kind] == 0
        return plain and all(step == 1 for step in op.stride) and aligned

    @property
    def _matrices(self) -> tuple[Matrices, Matrices]:
        weights = Matrices(self.kind, self.dtypes[1], self.groups, self.rows, self.channels, self._group)
        images, positions = self.x[0] * self.groups, count(self.positions)
        maps = Matrices(self.kind, self.dtypes[0], images, positions, self.channels, lambda batch: batch, across=True)
        return weights, maps

    def _group(self, batch: Expr) -> Expr:
        return tirx.floormod(batch, self.groups) if self.groups > 1 else 0

    @property
    def workspace(self) -> Dim:
        weights, maps = self._matrices
        return weights.workspace + maps.workspace

    def product(self, builder: KernelBuilder) -> Product:
        source, weights = self.sources(builder)
        left, right = self._matrices
        columns = extent(count(self.positions))

        def place(batch: Expr, row: Expr, column: Expr) -> Sequence[Expr]:
            channel = self._group(batch) * self.rows + row
            return [tirx.floordiv(batch, self.groups), channel, *unflatten(column, self.positions)]

        return Product(
            self.kind, extent(self.x[0] * self.groups), self.rows, columns, self.channels,
            left.operand(weights, builder), right.operand(source, builder), place, columns,
            row_bias=self.bias(builder, self._group),
        )  # fmt: skip


class _Taps(_Form):
    """Batches are groups, columns the positions of all images."""

    last = False  # whether maps and filters lie with their channels last

    @property
    def chunk(self) -> int:
        return DEPTHS[self.kind]

    @property
    def filled(self) -> int:
        """Channels of a group, filled up to whole chunks."""
        return int(ceil_div(self.channels, self.chunk)) * self.chunk

    @property
    def _sizes(self) -> tuple[Dim, int]:
        """Elements of the map and of the weights."""
        maps: Dim = self.x[0] * count(self.x[2:]) * (self.groups * self.filled)
        return maps, self.weight[0] * count(self.kernel) * self.filled

    @property
    def _fits(self) -> tuple[bool, bool]:
        """Whether the map and the filters can be copied as they lie."""
        lies_well = self.last and self.channels == self.filled
        x, weights = (lies_well and dtype == stored_dtype(self.kind) for dtype in self.dtypes)
        return x, weights

    @property
    def workspace(self) -> Dim:
        total: Dim = 0
        for size, fits in zip(self._sizes, self._fits, strict=True):
            total = total + (0 if fits else ceil_div(size, 16) * 16)
        return total

    def operands(self, builder: KernelBuilder) -> tuple[Buffer, Buffer]:
        """The map and the filters, with their channels last; emits the launches that write them so."""
        writers = (self._write_map, self._write_weights)
        found = []
        for source, size, fits, write in zip(self.sources(builder), self._sizes, self._fits, writers, strict=True):
            target = source if fits else builder.scratch(size)
            if not fits:
                write(source, target)
            found.append(target)
        maps, filters = found
        return maps, filters

    @property
    def _flat(self) -> bool:
        """Whether positions are pixels, in order."""
        return {*self.kernel, *self.op.stride} == {1} and not any(self.op.padding)

    @property
    def inner(self) -> int:
        return int(count(self.kernel)) * self.filled

    def filters(self, batch: Expr, row: Expr) -> Chunks:
        """The chunks of an output channel of a group."""
        start = held((batch * self.rows + row) * self.inner)
        return lambda k: (start + k, None)

    def product(self, builder: KernelBuilder) -> Product:
        maps, packed = self.operands(builder)

        def place(batch: Expr, row: Expr, column: Expr) -> Sequence[Expr]:
            image, *position = unflatten(column, (self.shape[0], *self.positions))
            return [image, batch * self.rows + row, *position]

        return Product(
            self.kind, self.groups, self.rows, extent(self.shape[0] * count(self.positions)), self.inner,
            Operand(packed, self.filters, tensor=self._weight_tensor(packed)),
            Operand(maps, self.pixels, tensor=self._pixel_tensor(maps)), place,
            extent(count(self.positions)), row_bias=self.bias(builder, lambda batch: batch),
        )  # fmt: skip

    def pixels(self, batch: Expr, column: Expr) -> Chunks:
        """The chunks that the window of a position sees."""
        op, sizes, pitch = self.op, extents(self.x[2:]), self.groups * self.filled
        if self._flat:
            here = held(column * pitch + batch * self.filled)
            return lambda k: (here + k, None)
        image, *position = unflatten(column, (self.shape[0], *self.positions))
        corner = [held(p * stride - pad) for p, stride, pad in zip(position, op.stride, op.padding, strict=True)]
        start = held(image * count(sizes) * pitch + batch * self.filled)

        def at(k: Expr) -> tuple[Expr, Expr | None]:
            taps = unflatten(tirx.floordiv(k, self.filled), self.kernel)
            offset: Expr = 0
            inside = []
            for tap, dilation, pad, first, size in zip(taps, op.dilation, op.padding, corner, sizes, strict=True):
                where = held(first + tap * dilation)
                inside += [where >= 0, where < size] if pad else []
                offset = offset * size + where
            exists = functools.reduce(tirx.And, inside) if inside else None
            return start + offset * pitch + tirx.floormod(k, self.filled), exists

        return at

    # --- for a device's copy unit
    def _weight_tensor(self, packed: Buffer) -> Tensor:
        def places(batch: Expr, row: Expr) -> Callable[[Expr], Sequence[Expr]]:
            line = held(batch * self.rows + row)
            return lambda k: (k, line)

        return Tensor(packed, (self.inner, self.weight[0]), (self.inner * (ptx.CHUNK // self.chunk),), places)

    def _pixel_tensor(self, maps: Buffer) -> Tensor | None:
        """The map for copies of pixels (im2col): the unit goes from window to window, and adds the tap's offset. None
        where a step of a product would go over several taps, or the unit does not take the window."""
        op, size = self.op, ptx.CHUNK // self.chunk
        pixels: Dim = self.x[0] * count(self.x[2:])
        if self._flat and self.groups == 1:
            return Tensor(maps, (self.filled, pixels), (self.filled * size,), lambda _, row: lambda k: (k, row))
        last = [dilation * (taps - 1) for dilation, taps in zip(op.dilation, self.kernel, strict=True)]
        lower, upper = [-pad for pad in op.padding], [pad - end for pad, end in zip(op.padding, last, strict=True)]
        far, offset = CORNERS[len(self.kernel)]
        # In which order the driver takes different corners is not known well enough.
        same = len(set(lower)) == len(set(upper)) == 1
        fits = -far <= min(*lower, *upper) and max(*lower, *upper) < far and max(last) < offset
        if self.filled * size % LINE or not same or not fits or max(op.stride) > MOST_STEPS:
            return None
        pitch: Dim = self.groups * self.filled
        sizes, strides = [pitch], [pitch * size]
        for dim in self.x[:1:-1]:
            sizes.append(dim)
            strides.append(strides[-1] * dim)
        steps = (1, *reversed(op.stride), 1)
        corners = tuple(lower), tuple(upper)
        return Tensor(maps, (*sizes, self.x[0]), tuple(strides), self._windows, corners=corners, steps=steps)

    def _windows(self, batch: Expr, column: Expr) -> Callable[[Expr], Sequence[Expr]]:
        """Where the window of the position `column` begins, and the offsets of the tap that the summed index is of."""
        op = self.op
        image, *position = (held(i) for i in unflatten(column, (self.shape[0], *self.positions)))
        corner = [held(p * stride - pad) for p, stride, pad in zip(position, op.stride, op.padding, strict=True)]

        def at(k: Expr) -> Sequence[Expr]:
            taps = unflatten(held(tirx.floordiv(k, self.filled)), self.kernel)
            offsets = [tap * dilation for tap, dilation in zip(taps, op.dilation, strict=True)]
            channel = batch * self.filled + tirx.floormod(k, self.filled)
            return (channel, *reversed(corner), image, *reversed(offsets))

        return at

    def _write_map(self, source: Buffer, target: Buffer) -> None:
        pixels = extent(count(self.x[2:]))
        chunks = self.filled // self.chunk
        turns = (extent(self.x[0]), self.groups, chunks, pixels)

        def chunk(position: Expr) -> tuple[Expr, Callable[[Expr], Expr]]:
            image, group, part, pixel = (held(i) for i in unflatten(position, turns))
            first = (image * self.groups + group) * self.channels

            def element(e: Expr) -> Expr:
                channel = held(part * self.chunk + e)
                own = T.min(channel, self.channels - 1)
                if self.last:
                    inside = held(((image * pixels + pixel) * self.groups + group) * self.channels + own)
                else:
                    inside = held((first + own) * pixels + pixel)
                return or_zero(channel < self.channels, source[inside], target.dtype)

            place = ((image * pixels + pixel) * self.groups + group) * self.filled + part * self.chunk
            return place, element

        write_chunks(count(turns), target, self.chunk, chunk)

    def _write_weights(self, source: Buffer, target: Buffer) -> None:
        taps = count(self.kernel)
        turns = (self.weight[0], taps, self.filled // self.chunk)

        def chunk(position: Expr) -> tuple[Expr, Callable[[Expr], Expr]]:
            row, tap, part = (held(i) for i in unflatten(position, turns))

            def element(e: Expr) -> Expr:
                channel = held(part * self.chunk + e)
                own = T.min(channel, self.channels - 1)
                steps = ((row * taps + tap) * self.channels + own, (row * self.channels + own) * taps + tap)
                return or_zero(channel < self.channels, source[held(steps[0 if self.last else 1])], target.dtype)

            return flat_offset((row, tap, part), turns) * self.chunk, element

        write_chunks(count(turns), target, self.chunk, chunk)


class _Last(_Taps):
    """Rows are the positions of all images, columns the output channels of a group."""

    last = True

    @staticmethod
    def first(shape: Sequence[Dim]) -> tuple[Dim, ...]:
        return tuple(shape[axis] for axis in first_axes(len(shape)))

    def product(self, builder: KernelBuilder) -> Product:
        maps, packed = self.operands(builder)
        bias = bias_of(self.group, builder, self.node)

        def place(batch: Expr, row: Expr, column: Expr) -> Sequence[Expr]:
            return [*unflatten(row, (self.shape[0], *self.positions)), batch * self.rows + column]

        return Product(
            self.kind, self.groups, extent(self.shape[0] * count(self.positions)), self.rows, self.inner,
            Operand(maps, self.pixels, tensor=self._pixel_tensor(maps)),
            Operand(packed, self.filters, tensor=self._weight_tensor(packed)), place, self.rows,
            column_bias=None if bias is None else lambda batch, column: bias(batch * self.rows + column),
        )  # fmt: skip
