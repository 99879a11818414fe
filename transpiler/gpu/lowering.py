"""TVM's lowering for GPUs, up to its split into host and device side."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx

from transpiler.tvm_lock import LOWERING

DEVICE_FUNCTION = 2  # TVM's calling convention of kernels


def lower(module: Any, target: Any, *, vectors: bool = True) -> tuple[Any, Any]:
    """Scheduled PrimFuncs (thread axes bound) -> (host side, device side).

    The host side launches kernels with `call_ffi_kernel`; the device side is what code is made of. Without `vectors`
    vectorised loops are plain ones.
    """
    finish = tvm.ir.transform.Sequential([tirx.transform.LowerIntrin(), tirx.transform.StmtSimplify()])
    with LOWERING:
        module = tirx.transform.BindTarget(target.with_host("llvm"))(module)
        module = tvm.ir.transform.Sequential(_passes(vectors))(module)
        device = finish(tvm.IRModule(_functions(module, on_device=True)))
    return tvm.IRModule(_functions(module, on_device=False)), device


def _functions(module: Any, *, on_device: bool) -> dict[Any, Any]:
    return {name: f for name, f in module.functions.items() if (_convention(f) == DEVICE_FUNCTION) == on_device}


def _convention(function: Any) -> int:
    return int(function.attrs.get("calling_conv", 0)) if function.attrs is not None else 0


def _passes(vectors: bool) -> list[Any]:
    s, t = s_tir.transform, tirx.transform
    return [
        s.CanonicalizeLoop(), s.LowerCrossThreadReduction(), s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(), s.ConvertBlocksToOpaque(), s.LiftThreadBinding(),
        s.CompactBufferAllocation(), s.UnifyThreadBinding(), s.LowerMatchBuffer(), s.StmtSimplify(),
        s.AnnotateIrregularLoop(), s.LowerOpaqueBlock(), t.FlattenBuffer(), t.NarrowDataType(32), s.LoopPartition(),
        t.VectorizeLoop(vectors), s.InjectVirtualThread(), s.InjectDoubleBuffer(), t.StorageRewrite(),
        s.HoistIfThenElse(), t.UnrollLoop(), s.RenormalizeSplitPattern(), t.StmtSimplify(), t.RemoveNoOp(),
        s.RewriteUnsafeSelect(), t.CommonSubexprElim(), t.VerifyMemory(), t.AnnotateEntryFunc(),
        s.ThreadSync("shared"), s.ThreadSync("shared.dyn"), s.LowerThreadAllreduce(),
        s.MergeSharedMemoryAllocations(), t.SplitHostDevice(),
    ]  # fmt: skip
