"""Depthwise convolution on NCHW16c: one vector of 16 channels per pixel, KH x KW multiply-adds.

A register tile is a run of output pixels of one row; each kernel position loads its weight vector once for the run.
The padded plane of a channel block is copied into the workspace just before it is used, so that it is still in cache
(padding at the level of the whole tensor costs half as much again). Limited by L1 loads: one input vector per
multiply-add.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ir import fixed_size
from transpiler.ops.packed import ConvDepthwise
from transpiler.target import Target

from ..fuse import lowered
from ..sizes import extent, is_fixed, is_large, is_several
from ..tir import LANES, KernelBuilder, local, loop, splat
from .epilogue import Epilogue, elementwise_epilogue
from .gemm import MAX_ROWS, register_budget
from .padding import pad_map_plane

EPILOGUE = True

Expr = Any


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, ConvDepthwise) or group.prologue or not elementwise_epilogue(group):
        return None
    op = node.op
    x, weight, *bias = node.inputs
    if not is_fixed(*x.type.shape[1:]):
        return None
    n, *fixed = x.type.shape[:4]
    cb, h, w = map(fixed_size, fixed)  # the layout pass sees to it
    oh, ow = map(fixed_size, node.output.type.shape[2:4])
    (kh, kw), (sh, sw), (dh, dw) = op.kernel, op.stride, op.dilation
    height, width = h + op.padded[0], w + op.padded[1]
    plane = height * width * LANES
    size = n * cb * plane if any(op.padding) else 0
    run = min(ow, MAX_ROWS, max(2, register_budget(target.isa) - 3))
    builder = KernelBuilder(name, [value.type for value in group.inputs], [group.outputs[0].type], workspace=size)
    with builder:
        given = builder.inputs[group.input_index(x)]
        weights = builder.inputs[group.input_index(weight)]
        offsets = builder.inputs[group.input_index(bias[0])] if bias else None
        source = builder.scratch(size) if size != 0 else given
        epilogue = Epilogue(group, builder)
        tasks = extent(n) * cb
        with loop(tasks, parallel=is_large(n * cb * oh * ow * kh * kw * LANES)) as task:
            block = task % cb if is_several(n) else task
            if size != 0:
                pad_map_plane(given, source, task, (h, w), op.padding, LANES)

            def pixels(row: Expr, column: Expr, count: int) -> None:
                accumulators = local(count * LANES)
                for number in range(count):
                    start = offsets.vector(block * LANES) if offsets is not None else splat(0.0)
                    accumulators.store_vector(number * LANES, start)
                with T.serial(0, kh) as y:
                    for kx in range(kw):
                        factor = T.bind(weights.vector(((block * kh + y) * kw + kx) * LANES))
                        for number in range(count):
                            pixel = (row * sh + y * dh) * width + (column + number) * sw + kx * dw
                            value = source.vector(task * plane + pixel * LANES)
                            accumulators.store_vector(
                                number * LANES, accumulators.vector(number * LANES) + value * factor
                            )
                image = task // cb if is_several(n) else 0

                def place(number: Expr, lane: Expr) -> list[Expr]:
                    return [image, block, row, column + number, lane]

                def element(number: int, lane: Expr) -> Expr:
                    return accumulators[number * LANES + lane]

                for number in range(count):
                    epilogue.write(partial(place, number), partial(element, number), LANES)
                if epilogue.in_place:
                    with T.serial(0, count) as later:
                        epilogue.finish(partial(place, later), LANES)

            with T.serial(0, oh) as row:
                if ow // run:
                    with T.serial(0, ow // run) as step:
                        pixels(row, step * run, run)
                if ow % run:
                    pixels(row, ow // run * run, ow % run)
    flops = 2 * n * op.channels * oh * ow * kh * kw
    return lowered(group, builder, flops=flops, workspace=size * 4)
