"""wgmma with its left operand in registers, and groups of products that stay in flight while others are waited for.

Products read and write registers on their own until they are waited for: every function here that fences or waits takes
the arrays concerned, so that the compiler moves no access to them past it. As those of `ptx`, each is one line of
generated text; the emulator of the tests has functions of the same names.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer
from .ptx import KINDS, pointer

Expr = Any


def _call(name: str, text: str, *arguments: Expr) -> None:
    source = f"__forceinline__ __device__ void {name}{text}\n"
    T.evaluate(cuda_func_call(name, *arguments, source_code=source, return_type="void"))


def _sums(count: int) -> tuple[str, str]:
    """Operands of `count` sums: in an instruction's text, and in its list."""
    return ", ".join(f"%{i}" for i in range(count)), ", ".join(f'"+f"(sum[{i}])' for i in range(count))


def first_product(kind: str, sums: Buffer, columns: int, left: Expr, right: Expr) -> None:
    """Begins sums[64 x columns] = left[64 x 16] @ right[16 x columns] by a warpgroup, operands by descriptors, whose
    lines are along the summed dim."""
    word, count = KINDS[kind][0], columns // 2
    text, operands = _sums(count)
    _call(
        f"group_first_{word}_{columns}",
        f'(float *sum, unsigned long long a, unsigned long long b) {{ asm volatile("wgmma.mma_async.sync.aligned.'
        f'm64n{columns}k16.f32.{word}.{word} {{{text}}}, %{count}, %{count + 1}, 0, 1, 1, 0, 0;" : {operands} : '
        f'"l"(a), "l"(b)); }}',
        pointer(sums, 0), left, right,
    )  # fmt: skip


def product_of_registers(kind: str, sums: Buffer, columns: int, left: Buffer, place: Expr, right: Expr) -> None:
    """Begins sums[64 x columns] += left[64 x 16] @ right[16 x columns] by a warpgroup: four words of each thread from
    `place` on, as fragments of mma lie, and a descriptor of lines that are across."""
    word, count = KINDS[kind][0], columns // 2
    text, operands = _sums(count)
    words = ", ".join(f"%{count + i}" for i in range(4))
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(4))
    _call(
        f"group_registers_{word}_{columns}",
        f'(float *sum, const unsigned *a, unsigned long long b) {{ asm volatile("wgmma.mma_async.sync.aligned.'
        f'm64n{columns}k16.f32.{word}.{word} {{{text}}}, {{{words}}}, %{count + 4}, 1, 1, 1, 1;" : {operands} : '
        f'{inputs}, "l"(b)); }}',
        pointer(sums, 0), pointer(left, place), right,
    )  # fmt: skip


def fence(*arrays: Buffer) -> None:
    """Before products: what the warpgroup has done to these arrays is done."""
    _held("fence", "wgmma.fence.sync.aligned;", arrays)


def wait(newest: int, *arrays: Buffer) -> None:
    """Waits for all groups but the `newest`, which have written or read these arrays."""
    _held(f"wait_{newest}", f"wgmma.wait_group.sync.aligned {newest};", arrays)


def _held(what: str, instruction: str, arrays: tuple[Buffer, ...]) -> None:
    letters = ["f" if array.dtype == "float32" else "r" for array in arrays]
    sizes = [int(array.size) for array in arrays]
    name = "_".join(["group", what, *(f"{letter}{size}" for letter, size in zip(letters, sizes, strict=True))])
    parameters, operands = [], []
    for number, (letter, size) in enumerate(zip(letters, sizes, strict=True)):
        parameters.append(f"{'float' if letter == 'f' else 'unsigned'} *x{number}")
        operands += [f'"+{letter}"(x{number}[{i}])' for i in range(size)]
    text = f'({", ".join(parameters)}) {{ asm volatile("{instruction}" : {", ".join(operands)} : : "memory"); }}'
    _call(name, text, *(pointer(array, 0) for array in arrays))


def as_word(value: int) -> Expr:
    """An offset of a descriptor, in units of 16 bytes."""
    return tirx.const(value, "uint64")
