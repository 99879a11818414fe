"""Running sums and products: one walk along the axis, in numpy's order.

If the axis is not the last, the vector lanes are the columns behind it: a block of up to four vectors of
running totals stays in registers while the loop goes down the axis, so that the kernel is limited by memory.
Along the last axis each row is a chain of dependent additions, one element per latency (4 cycles); rows are
split over the threads.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.target import Target

from ..fuse import PARALLEL_THRESHOLD, lowered
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
    shape = x.static_shape()
    size = math.prod(shape)
    outer, extent, inner = math.prod(shape[: op.axis]), shape[op.axis], math.prod(shape[op.axis + 1 :])
    builder = KernelBuilder(name, [x], [output])

    def walk(base: Expr, v: Vectors, width: int) -> None:
        """Down `width` neighbouring columns from flat offset `base`."""
        vectors = v.blocks(width)
        totals = Registers(v, vectors)
        totals.fill(0 if op.name == "cumsum" else 1)
        with T.serial(0, extent) as step:
            for number in range(vectors):
                offset = base + step * inner + number * v.lanes
                element = v.load(builder.inputs[0], offset, width - number * v.lanes)
                combine = operator.add if op.name == "cumsum" else operator.mul
                totals[number] = v.s.wrapping(combine, totals[number], element)
                v.store(builder.outputs[0], offset, totals[number], width - number * v.lanes)

    with builder:
        if size:
            v = Vectors(x.dtype, LANES if inner >= LANES else 1)
            width = v.lanes * max(1, min(4, inner // v.lanes))
            split = size >= PARALLEL_THRESHOLD
            with loop(outer, parallel=split and outer > 1) as position:
                base = position * (extent * inner)
                if inner // width:
                    with loop(inner // width, parallel=split and outer == 1 and inner >= 2 * width) as block:
                        walk(base + block * width, v, width)
                rest = inner % width
                for start in range(inner - rest, inner, v.lanes):
                    walk(base + start, v, min(v.lanes, inner - start))
    return lowered(group, builder, flops=size)
