"""Joining tensors: each input is copied in contiguous pieces, limited by the bytes that it moves."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.shape import Concat
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import Extent, count, extent, is_fixed, is_large, is_several
from ..tir import LANES, Buffer, KernelBuilder, loop

Expr = Any

# Elements of a piece: what the threads share.
PIECE = 4096


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.nodes) != 1 or not isinstance(group.nodes[0].op, Concat):
        return None
    node, axis = group.nodes[0], group.nodes[0].op.axis
    rows = extent(count(node.output.shape[:axis]))
    sizes = [count(value.shape[axis:]) for value in node.inputs]
    if not is_fixed(*sizes) or min(sizes) < LANES:
        return None
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type])
    with builder:
        start, width = 0, sum(sizes)
        for value, size in zip(node.inputs, sizes, strict=True):
            source = builder.inputs[group.input_index(value)]
            _copy_rows(source, builder.outputs[0], rows, size, width, start)
            start += size
    return lowered(group, builder, flops=0)


def _copy_rows(source: Buffer, target: Buffer, rows: Extent, size: int, width: int, start: int) -> None:
    """Rows of `size` elements into those of `width` at `start`."""
    pieces, rest = divmod(size, PIECE)
    for number, length, first in ((pieces, PIECE, 0), (1, rest, pieces * PIECE)):
        if not number or not length:
            continue
        tasks = rows * number
        with loop(tasks, parallel=is_large(tasks * length) and is_several(tasks)) as task:
            row = tirx.floordiv(task, number) if number > 1 else task
            offset = first + (tirx.floormod(task, number) * length if number > 1 else 0)
            _copy(source, row * size + offset, target, row * width + start + offset, length)


def _copy(source: Buffer, first: Expr, target: Buffer, place: Expr, length: int) -> None:
    vectors, rest = divmod(length, LANES)
    if vectors:
        with T.serial(0, vectors) as step:
            target.store_vector(place + step * LANES, source.vector(first + step * LANES))
    if rest:
        with T.serial(0, rest) as lane:
            offset = vectors * LANES + lane
            target.store(place + offset, source[first + offset])
