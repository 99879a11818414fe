"""Running sums and products: one walk along the axis, in numpy's order.

If the axis is not the last, the vector lanes are the columns behind it: a block of up to four vectors of
running totals stays in registers while the loop goes down the axis, so that the kernel is limited by memory.
Along the last axis each row is a chain of dependent additions, one element per latency (4 cycles); rows are
split over the threads.
"""

from __future__ import annotations

import operator
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import Extent, count, extent, is_empty, is_fixed, is_large, is_several
from ..tir import LANES, KernelBuilder, loop
from ..vectors import Registers, Vectors

Expr = Any

EPILOGUE = False
PROLOGUE = False


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.nodes) != 1 or group.nodes[0].op.name not in ("cumsum", "cumprod"):
        return None
    node = group.nodes[0]
    op: Any = node.op
    x, output = node.inputs[0].type, node.output.type
    size = count(x.shape)
    outer, along, inner = (
        extent(count(dims)) for dims in (x.shape[: op.axis], x.shape[op.axis : op.axis + 1], x.shape[op.axis + 1 :])
    )
    builder = KernelBuilder(name, [x], [output])

    def walk(base: Expr, v: Vectors, width: Extent) -> None:
        """Down `width` neighbouring columns from flat offset `base`."""
        vectors = v.blocks(width) if is_fixed(width) else 1
        totals = Registers(v, vectors)
        totals.fill(0 if op.name == "cumsum" else 1)
        with T.serial(0, along) as step:
            for number in range(vectors):
                offset = base + step * inner + number * v.lanes
                element = v.load(builder.inputs[0], offset, width - number * v.lanes)
                combine = operator.add if op.name == "cumsum" else operator.mul
                totals[number] = v.s.wrapping(combine, totals[number], element)
                v.store(builder.outputs[0], offset, totals[number], width - number * v.lanes)

    with builder:
        if is_empty(x.shape):
            pass
        elif not is_fixed(inner):
            v = Vectors(x.dtype, LANES)
            with loop(outer, parallel=is_several(outer)) as position:
                base = position * (along * inner)
                with loop(inner // LANES, parallel=not is_several(outer)) as block:
                    walk(base + block * LANES, v, LANES)
                with T.If(inner % LANES > 0), T.Then():
                    walk(base + inner // LANES * LANES, v, inner % LANES)
        else:
            v = Vectors(x.dtype, LANES if inner >= LANES else 1)
            width = v.lanes * max(1, min(4, inner // v.lanes))
            split = is_large(size)
            with loop(outer, parallel=split and is_several(outer)) as position:
                base = position * (along * inner)
                if inner // width:
                    with loop(inner // width, parallel=split and not is_several(outer) and inner >= 2 * width) as block:
                        walk(base + block * width, v, width)
                rest = inner % width
                for start in range(inner - rest, inner, v.lanes):
                    walk(base + start, v, min(v.lanes, inner - start))
    return lowered(group, builder, flops=size)
