"""Transposes that move the last axis, for graphics cards: tiles of 32 x 32 elements through shared memory.

32 threads load neighbours of the input and store neighbours of the output, so that both sides see whole lines. Rows
of a tile are 33 elements apart in shared memory: a column of it lies in 32 banks. Limited by memory.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.shape import Transpose
from transpiler.target import Target

from ..fuse import lowered
from ..gpu.workgroup import barrier, shared, workgroups
from ..sizes import ceil_div, count, extent, extents, is_empty, is_fixed
from ..tir import KernelBuilder, flat_offset, unflatten, when
from ..vectors import held

Expr = Any
TILE, ROWS = 32, 8  # elements, and rows of threads: each has TILE / ROWS elements of a tile
FEW = 8  # elements of an axis below which tiles would be mostly empty


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if not target.gpu.staged or len(group.nodes) != 1 or not isinstance(group.nodes[0].op, Transpose):
        return None
    (node,) = group.nodes
    assert isinstance(node.op, Transpose)
    perm, shape = node.op.perm, node.inputs[0].type.shape
    if is_empty(shape) or len(perm) < 2 or perm[-1] == len(perm) - 1:
        return None
    # What lies side by side before, and after.
    sizes = shape[-1], shape[perm[-1]]
    if any(isinstance(size, int) and size < FEW for size in sizes):
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    with builder:
        # 16-bit memory of Vulkan's devices allows conversions, which are exact, and no array in shared memory.
        half = not target.gpu.arch and builder.inputs[0].dtype == "float16"
        _emit(builder, perm, shape, "float32" if half else builder.inputs[0].dtype)
    return lowered(group, builder, flops=count(shape))


def _emit(builder: KernelBuilder, perm: tuple[int, ...], shape: tuple[Dim, ...], dtype: str) -> None:
    """`dtype` is that of tiles."""
    source, target = builder.inputs[0], builder.outputs[0]
    after = tuple(shape[axis] for axis in perm)
    first, second = len(shape) - 1, perm[-1]
    others = [axis for axis in range(len(shape)) if axis not in (first, second)]
    wide, high = extent(shape[first]), extent(shape[second])
    across, down = ceil_div(wide, TILE), ceil_div(high, TILE)
    outer = extents([shape[axis] for axis in others])
    with workgroups(extent(count([shape[axis] for axis in others])) * across * down, TILE * ROWS) as (number, thread):
        *rest, y, x = (held(i) for i in unflatten(number, (*outer, down, across)))
        lane, row = held(tirx.floormod(thread, TILE)), held(tirx.floordiv(thread, TILE))
        tile = shared(TILE * (TILE + 1), dtype)

        def index(along: Expr, beside: Expr) -> list[Expr]:
            """Of an element of the input: `along` its last axis, `beside` it the one that will be the last."""
            places = {**dict(zip(others, rest, strict=True)), first: along, second: beside}
            return [places[axis] for axis in range(len(shape))]

        def inside(along: Expr, beside: Expr) -> Expr | None:
            parts = [p < end for p, end in ((along, wide), (beside, high)) if not (is_fixed(end) and end % TILE == 0)]
            return functools.reduce(tirx.And, parts) if parts else None

        with T.unroll(0, TILE // ROWS) as turn:
            line = held(row + turn * ROWS)
            along, beside = held(x * TILE + lane), held(y * TILE + line)
            with when(inside(along, beside)):
                value = source[flat_offset(index(along, beside), shape)]
                tile.store(line * (TILE + 1) + lane, T.Cast(dtype, value) if dtype != source.dtype else value)
        barrier()
        with T.unroll(0, TILE // ROWS) as turn:
            line = held(row + turn * ROWS)
            along, beside = held(x * TILE + line), held(y * TILE + lane)
            with when(inside(along, beside)):
                place = index(along, beside)
                value = tile[lane * (TILE + 1) + line]
                value = T.Cast(source.dtype, value) if dtype != source.dtype else value
                target.store(flat_offset([place[axis] for axis in perm], after), value)
