"""Scheduled kernels -> object code: TVM's lowering passes for plain C functions, then LLVM."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx

from transpiler.group import Lowered
from transpiler.target import Target
from transpiler.tvm_lock import LOWERING

# LLVM holds no lock while it works, so modules compile beside each other; more than this many kernels in one module
# only makes the last module finish late.
KERNELS_PER_MODULE = 8


def compile_kernels(
    kernels: Sequence[Lowered], target: Target, *, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> list[bytes]:
    """Object files (relocatable ELF) that together define every kernel.

    `progress(done, total)` is called as kernels finish.
    """
    batches = [kernels[start : start + KERNELS_PER_MODULE] for start in range(0, len(kernels), KERNELS_PER_MODULE)]
    objects: list[bytes] = []
    done = 0
    if workers == 1:
        return [_compile(batch, target) for batch in batches]
    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(batches)))) as pool:
        for batch, data in zip(batches, pool.map(lambda batch: _compile(batch, target), batches), strict=True):
            objects.append(data)
            done += len(batch)
            if progress is not None:
                progress(done, len(kernels))
    return objects


def _compile(kernels: Sequence[Lowered], target: Target) -> bytes:
    module = build_module(kernels, target)
    with tempfile.TemporaryDirectory(prefix="transpile-") as folder:
        path = Path(folder) / "kernels.o"
        module.write_to_file(str(path))
        return path.read_bytes()


def build_module(kernels: Sequence[Lowered], target: Target) -> Any:
    """The compiled tvm runtime module of some kernels."""
    return tvm.get_global_func("target.build.llvm")(lower_kernels(kernels, target), _tvm_target(target))


def lower_kernels(kernels: Sequence[Lowered], target: Target) -> tvm.IRModule:
    """What LLVM gets of some kernels."""
    with LOWERING:
        return _pipeline(target)(tvm.IRModule({item.kernel.name: item.function for item in kernels}))


@cache
def _tvm_target(target: Target) -> Any:
    return tvm.target.Target(target.tvm_target())


@cache
def _pipeline(target: Target) -> Any:
    """TVM's CPU lowering without the packed-function wrapper: kernels stay C functions over raw pointers."""
    described = _tvm_target(target)
    return tvm.ir.transform.Sequential(
        [
            tirx.transform.BindTarget(described.with_host(described)),
            s_tir.transform.StmtSimplify(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            tirx.transform.CommonSubexprElim(),
            tirx.transform.VerifyMemory(),
            tirx.transform.LowerTVMBuiltin(),
            tirx.transform.LowerIntrin(),
        ]
    )
