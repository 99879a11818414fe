"""Kernels that users write (`transpiler.ops.custom`): checked, and given the calling convention of ours.

What comes is a PrimFunc over buffers, as TVMScript, the IR builder or a schedule make it. What goes on is a C function
over raw pointers that returns 0, compiled with all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx

from transpiler.compile import build_module
from transpiler.group import Group, Lowered
from transpiler.ir import Node, TensorType
from transpiler.ops.custom import CustomKernel, KernelError
from transpiler.target import Target

from ..fuse import describe
from ..tir import storage_dtype


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or not isinstance(node.op, CustomKernel):
        return None
    values = (*node.inputs, *node.outputs)
    if not all(value.type.is_static for value in values):
        raise KernelError(f"The kernel of {node.op.name!r} needs fixed sizes, and some of its operands vary in size")
    types = [value.type for value in values]
    function = _written(node, node.op, target)
    _check(node, function, types)
    try:
        # A value that is given twice is one parameter of the kernel.
        outputs = range(len(group.inputs), len(group.inputs) + len(node.outputs))
        places = [*map(group.input_index, node.inputs), *outputs]
        result = Lowered(describe(group, name, flops=0), _with_pointers(function, name, places))
        build_module([result], target)  # here an error still has the operator's name
    except Exception as error:
        raise KernelError(f"The kernel of {node.op.name!r} does not compile: {_first_line(error)}") from error
    return result


def _written(node: Node, op: CustomKernel, target: Target) -> Any:
    try:
        function = op.kernel([value.type for value in node.inputs], [value.type for value in node.outputs], target)
    except Exception as error:
        raise KernelError(f"The kernel of {op.name!r} could not be built: {_first_line(error)}") from error
    if not isinstance(function, tirx.PrimFunc):
        kind = type(function).__name__
        raise KernelError(f"kernel() of {op.name!r} returned {kind}, expected a tvm.tirx.PrimFunc")
    return function


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _check(node: Node, function: Any, types: Sequence[TensorType]) -> None:
    """The parameters are the operands' buffers: else it would read or write beyond them."""
    name, inputs = node.op.name, len(node.inputs)
    if len(function.params) != len(types):
        raise KernelError(
            f"The kernel of {name!r} has {len(function.params)} parameters, expected {len(types)}: "
            f"one per input ({inputs}), then one per output ({len(types) - inputs})"
        )
    for position, (parameter, type_) in enumerate(zip(function.params, types, strict=True)):
        label = f"input {position}" if position < inputs else f"output {position - inputs}"
        expected = TensorType(storage_dtype(type_.dtype), type_.shape)
        found = _described(parameter)
        if found != str(expected):
            raise KernelError(f"Parameter {position} of the kernel of {name!r} is {found}; {label} is {expected}")


def _described(parameter: Any) -> str:
    """A buffer as the type it has, anything else in words."""
    if not isinstance(parameter.ty, tirx.buffer.BufferType):
        return f"no buffer ({parameter.name})"
    sizes = [int(size) if isinstance(size, tirx.IntImm) else None for size in parameter.shape]
    if None in sizes or list(parameter.strides) or not _is_zero(parameter.elem_offset):
        return f"no contiguous buffer of fixed sizes ({parameter.name})"
    return str(TensorType(str(parameter.dtype), tuple(size for size in sizes if size is not None)))


def _is_zero(offset: Any) -> bool:
    return offset is None or (isinstance(offset, tirx.IntImm) and offset.value == 0)


def _with_pointers(function: Any, name: str, places: Sequence[int]) -> Any:
    """`function` without blocks, over raw pointers: parameter n of the old is what the pointer `places[n]` leads to."""
    lowered = _blocks_lowered()(tvm.IRModule({name: function.with_attr("global_symbol", name)}))[name]
    first = {place: number for number, place in reversed(list(enumerate(places)))}
    pointers = [
        tirx.Var(f"operand{place}", tvm.ir.PointerType(tvm.ir.PrimType(lowered.params[first[place]].dtype)))
        for place in range(len(first))
    ]
    views = [
        tirx.DeclBuffer(parameter, data=pointers[place])
        for parameter, place in zip(lowered.params, places, strict=True)
    ]
    body = tirx.SeqStmt([*views, lowered.body, tirx.stmt.Return(tirx.IntImm("int32", 0))])
    return tirx.PrimFunc(pointers, body, tvm.ir.PrimType("int32"), lowered.attrs).with_attr("tirx.noalias", True)


def _blocks_lowered() -> Any:
    """TVM's passes that turn scheduled blocks into plain loops."""
    return tvm.ir.transform.Sequential(
        [
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.CompactBufferAllocation(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.LowerOpaqueBlock(),
        ]
    )
