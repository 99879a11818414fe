"""Running extremes and log-sum-exps: a row is a chain, one element after the other; rows are dealt to the threads.

A step of an extreme is a comparison and two selects on registers; one of a log-sum-exp is an exp and a log1p of libm,
which are all of its time.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.wide import wide_dtype
from transpiler.target import Target

from ..fuse import lowered
from ..scalar import Tir
from ..sizes import count, extent, is_empty, is_large, is_several
from ..tir import KernelBuilder, local, loop
from ..vectors import held

Expr = Any

EPILOGUE = False
PROLOGUE = False


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.nodes) != 1 or group.nodes[0].op.name not in ("cummax", "cummin", "logcumsumexp"):
        return None
    node = group.nodes[0]
    op: Any = node.op
    x = node.inputs[0].type
    size = count(x.shape)
    outer, along, inner = (
        extent(count(dims)) for dims in (x.shape[: op.axis], x.shape[op.axis : op.axis + 1], x.shape[op.axis + 1 :])
    )
    builder = KernelBuilder(name, [x], [value.type for value in node.outputs])
    with builder:
        if not is_empty(x.shape):
            split = is_large(size)
            with (
                loop(outer, parallel=split and is_several(outer)) as row,
                loop(inner, parallel=split and not is_several(outer)) as column,
            ):
                base = held(row * (along * inner) + column)
                if op.name == "logcumsumexp":
                    _log_sum(builder, base, along, inner)
                else:
                    _extreme(builder, base, along, inner, op.name == "cummax")
    return lowered(group, builder, flops=size)


def _extreme(builder: KernelBuilder, base: Expr, along: Expr, inner: Expr, largest: bool) -> None:
    (x,), (values, positions) = builder.inputs, builder.outputs
    s, work = Tir(), wide_dtype(x.dtype)
    best, place = local(1, work), local(1, "int32")
    best.store(0, s.cast(x[base], work))
    place.store(0, tirx.const(0, "int32"))
    with T.serial(0, along) as step:
        offset = base + step * inner
        element, old = s.bind(s.cast(x[offset], work)), s.bind(best[0])
        better = element >= old if largest else element <= old
        if work.startswith("float"):
            better = tirx.Or(better, s.is_nan(element))
        with T.If(better), T.Then():
            best.store(0, element)
            place.store(0, step)
        values.store(offset, s.cast(best[0], x.dtype))
        positions.store(offset, T.Cast("int64", place[0]))


def _log_sum(builder: KernelBuilder, base: Expr, along: Expr, inner: Expr) -> None:
    (x,), (output,) = builder.inputs, builder.outputs
    s, work = Tir(), wide_dtype(x.dtype)
    total = local(1, work)
    total.store(0, s.const(float("-inf"), work))
    with T.serial(0, along) as step:
        offset = base + step * inner
        element, old = s.bind(s.cast(x[offset], work)), s.bind(total[0])
        low, high = s.bind(s.minimum(element, old)), s.bind(s.maximum(element, old))
        # Two equal infinities have no difference.
        same = tirx.And(s.eq(low, high), s.call("isinf", low))
        summed = s.call("log1p", s.call("exp", low - high)) + high
        total.store(0, s.select(same, element, summed))
        output.store(offset, s.cast(total[0], x.dtype))
