"""Where the barriers of a kernel stand: in SPIR-V only those have a meaning that all threads of a workgroup come to."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

from transpiler.gpu.lowering import lower
from transpiler.group import Lowered
from transpiler.target import Target


def barriers(item: Lowered, target: Target) -> list[int]:
    """How many each launch of a kernel has, in its text.

    Raises AssertionError where one is in a branch, or in a loop whose turns are not known to be the same for all.
    """
    module = tvm.IRModule({item.kernel.name: item.function})
    _, device_side = lower(module, tvm.target.Target(target.tvm_target()))
    return [_count(function.body, set(), True) for function in device_side.functions.values()]


def _count(node: Any, varying: set[Any], all_threads: bool) -> int:
    """`varying` are variables that are not the same for all threads."""
    match type(node).__name__:
        case "SeqStmt":
            return sum(_count(child, varying, all_threads) for child in node.seq)
        case "AttrStmt":
            if node.attr_key == "thread_extent" and str(node.node.thread_tag).startswith("threadIdx"):
                varying.add(node.node.var)
            return _count(node.body, varying, all_threads)
        case "For":
            same = _is_same(node.min, varying) and _is_same(node.extent, varying)
            if not same:
                varying.add(node.loop_var)
            return _count(node.body, varying, same and all_threads)
        case "While":
            return _count(node.body, varying, False)
        case "IfThenElse":
            sides = (node.then_case, node.else_case)
            return sum(_count(side, varying, False) for side in sides if side is not None)
        case "Evaluate":
            is_barrier = getattr(getattr(node.value, "op", None), "name", "").endswith("tvm_storage_sync")
            assert all_threads or not is_barrier, "a barrier that some threads may not come to"
            return int(is_barrier)
    assert isinstance(node, tirx.BufferStore | tirx.Bind | tirx.AllocBuffer | tirx.DeclBuffer), type(node)
    return 0


def _is_same(x: Any, varying: set[Any]) -> bool:
    """Whether an expression is made of constants, sizes and loops alone, none of which differs between threads."""
    if isinstance(x, tirx.IntImm):
        return True
    if isinstance(x, tirx.Var):
        return x not in varying
    if isinstance(x, tvm.ir.Call):
        return all(_is_same(argument, varying) for argument in x.args)
    parts = [getattr(x, name) for name in ("a", "b", "value") if hasattr(x, name)]
    return bool(parts) and all(_is_same(part, varying) for part in parts)
