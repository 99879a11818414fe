"""Binary search: one search per value, log2 n dependent loads each; values are split over the threads.

The upper steps of all searches read the same few elements, which stay in L1; the last ones miss it for long sequences.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.target import Target

from ..fuse import lowered
from ..scalar import Tir
from ..sizes import count, extent, is_empty, is_large
from ..tir import KernelBuilder, local, loop
from ..vectors import held

EPILOGUE = False
PROLOGUE = False
STEPS = 16  # per search, for the estimate of the work


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.nodes) != 1 or group.nodes[0].op.name != "search_sorted":
        return None
    node = group.nodes[0]
    op: Any = node.op
    sequence, values = (value.type for value in node.inputs)
    size, length = count(values.shape), extent(sequence.shape[-1])
    per_row = extent(values.shape[-1]) if sequence.rank > 1 else None
    builder = KernelBuilder(name, [sequence, values], [node.output.type])
    s = Tir()
    with builder:
        if not is_empty(values.shape):
            with loop(extent(size), parallel=is_large(size * STEPS)) as at:
                base = tirx.floordiv(at, per_row) * length if per_row is not None else 0
                value = held(builder.inputs[1][at])
                low, high = local(1, "int32"), local(1, "int32")
                low.store(0, tirx.const(0, "int32"))
                high.store(0, tirx.const(0, "int32") + length)
                with T.While(low[0] < high[0]):
                    middle = held(low[0] + T.shift_right(high[0] - low[0], tirx.const(1, "int32")))
                    found = held(builder.inputs[0][base + middle])
                    stop = found > value if op.right else found >= value
                    beyond = held(s.cast(s.logical_not(stop), "int32"))
                    low.store(0, s.select(beyond != 0, middle + 1, low[0]))
                    high.store(0, s.select(beyond != 0, high[0], middle))
                builder.outputs[0].store(at, T.Cast("int64", low[0]))
    return lowered(group, builder, flops=size * STEPS)
