"""Runs scheduled kernels alone: object code, a two-thread stand-in for the runtime, ctypes.

The stand-in runs the parts of every parallel loop one after the other, poisons nothing and checks nothing: it
is for a kernel's numbers. The real runtime is tested with the packages.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from transpiler.compile import compile_kernels
from transpiler.dims import evaluate
from transpiler.group import Group, Lowered, make_group
from transpiler.ir import Array, Node, TensorType, Value
from transpiler.link import SPECIAL_FILES
from transpiler.ops.base import Op
from transpiler.ops.dtypes import numpy_dtype
from transpiler.resources import tree
from transpiler.target import Target

STUB = r"""
#include <stdint.h>
#include <stdlib.h>
typedef struct { void *sync; int32_t num_task; } env_t;
int32_t threads = 2;
static int launch(int (*f)(int, env_t *, void *), void *data, int n) {
  env_t env = {0, n ? n : threads};
  for (int t = 0; t < env.num_task; ++t) { int r = f(t, &env, data); if (r) return r; }
  return 0;
}
static void *take(int a, int b, uint64_t n, int c, int d) { return aligned_alloc(64, (n + 63) & ~63ull); }
static int give(int a, int b, void *p) { free(p); return 0; }
int (*__TVMBackendParallelLaunch)(int (*)(int, env_t *, void *), void *, int) = launch;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = take;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = give;
void TVMFFIErrorSetRaisedFromCStrParts(const char *k, const char **p, int32_t n) {}
"""


class KernelLibrary:
    """Compiled kernels, callable by name with numpy arrays."""

    def __init__(self, kernels: Sequence[Lowered], target: Target) -> None:
        self.kernels = {item.kernel.name: item.kernel for item in kernels}
        self._folder = tempfile.TemporaryDirectory(prefix="kernels-")
        folder = Path(self._folder.name)
        (folder / "stub.c").write_text(STUB)
        objects = []
        for number, data in enumerate(compile_kernels(kernels, target, workers=1)):
            path = folder / f"k{number}.o"
            path.write_bytes(data)
            objects.append(str(path))
        objects += [str(tree("templates") / "runtime" / "cpu" / file) for file in SPECIAL_FILES]
        library = folder / "kernels.so"
        subprocess.run(["cc", "-O1", "-fPIC", "-shared", "-o", library, folder / "stub.c", *objects, "-lm"], check=True)
        self._library = ctypes.CDLL(str(library))

    def run(
        self, name: str, *inputs: Array, sizes: Mapping[str, int] | None = None, threads: int = 2
    ) -> tuple[Array, ...]:
        """Outputs of one call; raises what the kernel reported (see `raise_status`).

        `sizes` are the values of the kernel's symbols, `threads` into how many parts parallel loops are split.
        Output and workspace memory starts as NaN bits, and 64 bytes behind each output must stay untouched.
        """
        kernel, symbols = self.kernels[name], sizes or {}
        arrays = [np.ascontiguousarray(array) for array in inputs]
        guarded, outputs = [], []
        for type_ in kernel.outputs:
            shape = tuple(evaluate(dim, symbols) for dim in type_.shape)
            dtype = numpy_dtype(type_.dtype)
            size = int(np.prod(shape)) * dtype.itemsize
            memory = np.full(size + 64, 0xFF, np.uint8)
            guarded.append(memory)
            outputs.append(memory[:size].view(dtype).reshape(shape))
        workspace = np.full(evaluate(kernel.workspace, symbols) + 64, 0xFF, np.uint8)
        status = np.zeros(1, np.int32)
        pointers = [array.ctypes.data for array in (*arrays, *guarded)]
        pointers += [workspace.ctypes.data] * (kernel.workspace != 0) + [status.ctypes.data] * kernel.checks_index
        function = getattr(self._library, name)
        ctypes.c_int32.in_dll(self._library, "threads").value = threads
        values = [ctypes.c_int32(symbols[symbol]) for symbol in kernel.symbols]
        assert function(*(ctypes.c_void_p(pointer) for pointer in pointers), *values) == 0
        for memory in (*guarded, workspace):
            assert (memory[-64:] == 0xFF).all(), f"{name} wrote past the end of a buffer"
        raise_status(int(status[0]), name)
        return tuple(array.copy() for array in outputs)


def raise_status(status: int, kernel: str) -> None:
    """What a kernel reported, as the exception that a package raises."""
    if status:
        kinds: dict[int, type[Exception]] = {1: IndexError, 2: RuntimeError, 3: ZeroDivisionError, 4: RuntimeError}
        raise kinds[status](f"{kernel}: data that do not fit")


def array_type(array: Array) -> TensorType:
    return TensorType(str(array.dtype), array.shape)


def op_group(op: Op, inputs: Sequence[Array]) -> Group:
    """A group of one node."""
    values = [Value(f"x{number}", array_type(array)) for number, array in enumerate(inputs)]
    types = op.infer_types([value.type for value in values])
    outputs = tuple(Value(f"y{number}", type_) for number, type_ in enumerate(types))
    return make_group((Node(op, tuple(values), outputs),), outputs)
