"""Writing kernels: a thin layer over TVM's IR builder.

A kernel is a C function over raw pointers, `int32_t name(inputs..., outputs..., [workspace], [status], [symbols...])`.
Buffers are flat; offsets are computed by the schedule. Elements are computed with `scalar.Tir`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.gpu.host import TENSOR_MAP
from transpiler.gpu.launches import TensorMap
from transpiler.ir import TensorType, fixed_size
from transpiler.ops.dtypes import numpy_dtype

from .sizes import Extent, ceil_div, extent, extents, machine, symbol_parameters

Expr = Any
# What a kernel reports in its status word (see runtime.h).
STATUS_INDEX, STATUS_SINGULAR, STATUS_DIVISION = 1, 2, 3
APPENDED = 64  # bytes: what is appended to a workspace begins at a multiple of it
LANES = 16  # lanes of the vectors that schedules write; LLVM splits them for narrower machines


class Buffer:
    """A flat buffer of `size` elements. bool is stored as int8 and seen as bool; bfloat16 is stored and seen as the
    uint16 of its bits, which no other dtype uses.
    """

    def __init__(self, handle: Any, dtype: str, size: Extent, base: Expr = 0) -> None:
        self.handle, self.dtype, self.size, self.base = handle, dtype, size, base

    def __getitem__(self, offset: Expr) -> Expr:
        value = self.handle[self.base + offset]
        return tirx.NE(value, tirx.const(0, "int8")) if self.dtype == "bool" else value

    def part(self, start: Extent) -> Buffer:
        """What lies behind the first `start` elements."""
        return Buffer(self.handle, self.dtype, self.size - start, self.base + start)

    def store(self, offset: Expr, value: Expr) -> None:
        if self.dtype == "bool":
            value = T.Cast("int8", value)
        T.buffer_store(self.handle, value, [self.base + offset])

    def vector(self, offset: Expr, lanes: int = LANES) -> Expr:
        """`lanes` consecutive elements."""
        return self.handle[T.ramp(self.base + offset, 1, lanes)]

    def fetch(self, offset: Expr) -> None:
        """Bring the cache line of an element into L2, for later."""
        read, level_2, data = 0, 2, 1
        address = tirx.address_of(self.handle[self.base + offset])
        T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, read, level_2, data))

    def store_vector(self, offset: Expr, value: Expr, lanes: int = LANES) -> None:
        T.buffer_store(self.handle, value, [T.ramp(self.base + offset, 1, lanes)])

    def prefetch(self, offset: Expr) -> None:
        """Ask for the cache line at `offset`, which may lie behind the end."""
        place = tirx.address_of(self.handle[self.base + offset])
        T.evaluate(tirx.call_intrin("void", "tirx.prefetch", place, 0, 3, 1))


def storage_dtype(dtype: str) -> str:
    """What memory holds for an IR dtype."""
    return "int8" if dtype == "bool" else value_dtype(dtype)


def value_dtype(dtype: str) -> str:
    """The TIR dtype of expressions of an IR dtype: bfloat16, which the code generator lacks, is its bits."""
    return "uint16" if dtype == "bfloat16" else dtype


class Operands(Protocol):
    """What expressions of a group read and write: buffers in the order of its inputs and outputs."""

    inputs: list[Buffer]
    outputs: list[Buffer]
    status: Buffer | None


class KernelBuilder:
    """Builds one kernel.

    with KernelBuilder("relu_64", [x_type], [y_type]) as k:
        with T.parallel(0, 64) as i:
            k.outputs[0].store(i, k.inputs[0][i])
    k.function  # the PrimFunc

    `workspace` is a number (or a size) of elements of `workspace_dtype`, handed out by `scratch`. `noalias` may only be
    given up by kernels that run in place.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[TensorType],
        outputs: Sequence[TensorType],
        *,
        workspace: Dim = 0,
        workspace_dtype: str = "float32",
        checks_index: bool = False,
        noalias: bool = True,
    ) -> None:
        self.name = name
        self.noalias = noalias
        self._types = [*inputs, *outputs]
        self._input_count = len(inputs)
        self._workspace = (workspace, workspace_dtype)
        self._taken: Extent = 0
        self.checks_index = checks_index
        self.inputs: list[Buffer] = []
        self.outputs: list[Buffer] = []
        self.status: Buffer | None = None
        self.tensor_maps: list[TensorMap] = []
        self.appended_bytes = 0  # what `append_workspace` has added to the workspace
        self._pointer: Any = None  # to the workspace
        self._appended: Any = None  # the workspace's parameter, where nothing else is in it

    def __enter__(self) -> KernelBuilder:
        self._builder = IRBuilder()
        self._builder.__enter__()
        self._frame = T.prim_func(s_tir=True)
        self._frame.__enter__()
        T.func_name(self.name)
        pointers = []
        for position, type_ in enumerate(self._types):
            label = f"in{position}" if position < self._input_count else f"out{position - self._input_count}"
            pointers.append(T.arg(label, T.ptr(storage_dtype(type_.dtype))))
        size, dtype = self._workspace
        workspace = T.arg("workspace", T.ptr(storage_dtype(dtype))) if size else None
        status = T.arg("status", T.ptr("int32")) if self.checks_index else None
        for symbol, variable in symbol_parameters().items():
            T.arg(symbol, variable)
        T.func_ret(tvm.ir.PrimType("int32"))
        if self.noalias:
            T.func_attr({"tirx.noalias": True})
        buffers = [
            self._declare(pointer, type_.dtype, math.prod(extents(type_.shape)))
            for pointer, type_ in zip(pointers, self._types, strict=True)
        ]
        self.inputs, self.outputs = buffers[: self._input_count], buffers[self._input_count :]
        self._pointer = workspace
        self._scratch = self._declare(workspace, dtype, extent(size)) if workspace is not None else None
        self.status = self._declare(status, "int32", 1) if status is not None else None
        return self

    @staticmethod
    def _declare(pointer: Any, dtype: str, size: Extent) -> Buffer:
        # A zero-element tensor still gets a one-element declaration; no loop touches it.
        declared = max(size, 1) if isinstance(size, int) else size
        return Buffer(T.decl_buffer((declared,), storage_dtype(dtype), data=pointer), dtype, size)

    def scratch(self, size: Dim) -> Buffer:
        """The next `size` elements of the workspace, from a 16-element boundary."""
        assert self._scratch is not None
        buffer = Buffer(self._scratch.handle, self._scratch.dtype, extent(size), self._taken)
        if isinstance(size, int) and isinstance(self._workspace[0], int):
            assert self._taken + size <= self._workspace[0], f"{self.name}: workspace is too small"
        self._taken = self._taken + extent(ceil_div(size, LANES) * LANES)
        return buffer

    @property
    def can_append(self) -> bool:
        """Whether `append_workspace` is possible: behind a workspace of fixed size."""
        return isinstance(self._workspace[0], int) and not self.appended_bytes

    def append_workspace(self, size: int) -> Buffer:
        """float32 of a workspace that the schedule finds to need when the function has begun. Once."""
        assert self.can_append
        count, dtype = self._workspace
        own = fixed_size(count) * int(numpy_dtype(storage_dtype(dtype)).itemsize)
        first = ceil_div(own, APPENDED) * APPENDED
        self.appended_bytes = first - own + size * 4
        if self._pointer is None:
            self._pointer = self._appended = tirx.Var("workspace", T.ptr("float32").ty)
        behind = self._declare(self._pointer, "float32", first // 4 + size)
        return Buffer(behind.handle, "float32", size, first // 4)

    def tensor_map(self, buffer: Buffer, tensor: TensorMap) -> Any:
        """A descriptor of a tensor in `buffer`, for launches of the function that come after: a variable, whose address
        copies take."""
        descriptor = T.bind(T.tvm_stack_alloca("tensormap", 1))
        T.evaluate(T.call_packed(TENSOR_MAP, descriptor, len(self.tensor_maps), buffer.handle.data, buffer.base))
        self.tensor_maps.append(tensor)
        return descriptor

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            T.Return(tirx.IntImm("int32", 0))
        self._frame.__exit__(kind, error, traceback)
        self._builder.__exit__(kind, error, traceback)
        if kind is None:
            function = self._builder.get()
            if self._appended is not None:
                place = len(self._types)
                parameters = [*function.params[:place], self._appended, *function.params[place:]]
                function = tirx.PrimFunc(parameters, function.body, function.ret_type, function.attrs)
            self.function = function.with_attr("global_symbol", self.name)


def local(size: int, dtype: str = "float32") -> Buffer:
    """A buffer that LLVM keeps in registers or on the stack: `size` elements, under 1 KiB.

    Larger ones become workspace allocations inside the loop: give those to `KernelBuilder.scratch`.
    """
    assert size * tvm.runtime.DataType(storage_dtype(dtype)).bits // 8 <= 1024, "over 1 KiB: use scratch"
    return Buffer(T.alloc_buffer((size,), storage_dtype(dtype), scope=machine().local_scope), dtype, size)


def loop(count: Extent, *, parallel: bool = False) -> Any:
    """A loop context over 0..count; `parallel` splits it statically over the threads."""
    return T.parallel(0, count) if parallel else T.serial(0, count)


@contextmanager
def own_turns(count: Extent, *, parallel: bool = False) -> Iterator[tuple[Expr, Expr]]:
    """The body once per thread, with the first and the number of the turns of a loop over 0..count that fall to it.

    Unlike in a `parallel` loop, a thread sees how many turns it has: it may take several at once, or in another order.
    """
    if not parallel:
        yield tirx.const(0, "int32"), count
        return
    if machine().is_gpu:  # there are as many threads as turns
        with T.parallel(0, count) as turn:
            yield turn, tirx.const(1, "int32")
        return
    # StorageRewrite moves local buffers out of a launch point, where all threads would share them; it leaves them in
    # the scope of a virtual thread, which means nothing else here.
    scope = tirx.IterVar(tvm.ir.Range(0, 1), tirx.Var("own", "int32"), tirx.IterVar.ThreadIndex, "own")
    with T.attr(0, "pragma_parallel_launch_point", 1), T.attr(scope, "virtual_thread", 1):
        number, following = local(1, "int32"), local(1, "int32")
        number.store(0, 0)
        following.store(0, 0)
        with T.parallel(0, count) as turn:
            number.store(0, number[0] + 1)
            following.store(0, turn + 1)
        yield following[0] - number[0], number[0]


@dataclass(frozen=True)
class _VectorScope:
    """An open vector loop and the temporaries that were made for it before it began."""

    lane: Expr
    free: dict[str, list[Buffer]]


_vector_scopes: list[_VectorScope] = []


@contextmanager
def vector_loop(lanes: int, temporaries: Sequence[str] = ()) -> Iterator[Expr]:
    """A vector loop over `lanes`; TVM has none of one lane.

    `temporaries` are the dtypes of what the body will bind (a `Probe` counts them): a buffer made inside of a vector
    loop is not widened to its lanes, so each gets one of `lanes` elements before the loop.
    """
    if lanes == 1:
        with T.serial(0, 1) as lane:
            yield lane
        return
    free: dict[str, list[Buffer]] = {}
    for dtype in temporaries:
        free.setdefault(dtype, []).append(local(lanes, dtype))
    with T.vectorized(0, lanes) as lane:
        _vector_scopes.append(_VectorScope(lane, free))
        try:
            yield lane
        finally:
            _vector_scopes.pop()


def temporary(dtype: str) -> tuple[Buffer, Expr] | None:
    """Where a value of `dtype` can be kept: a buffer and the place in it; None where a vector loop has no more left."""
    if not _vector_scopes:
        return local(1, dtype), 0
    scope = _vector_scopes[-1]
    pool = scope.free.get(dtype)
    return (pool.pop(), scope.lane) if pool else None


@contextmanager
def when(condition: Expr | None) -> Iterator[None]:
    """The body under `condition`; None means always."""
    if condition is None:
        yield
    else:
        with T.If(condition), T.Then():
            yield


def splat(value: float | Expr, dtype: str = "float32", lanes: int = LANES) -> Expr:
    """All lanes the same."""
    return T.broadcast(tirx.const(value, dtype) if isinstance(value, int | float) else value, lanes)


def flat_offset(index: Sequence[Expr], shape: Sequence[Dim]) -> Expr:
    """Row-major offset of `index` in `shape`."""
    offset: Expr = 0
    for position, size in zip(index, shape, strict=True):
        offset = offset * extent(size) + position
    return offset


def unflatten(offset: Expr, shape: Sequence[Dim]) -> list[Expr]:
    """Inverse of `flat_offset`."""
    index: list[Expr] = []
    for size in reversed(extents(shape[1:])):
        single = isinstance(size, int) and size <= 1
        index.append(0 if single else tirx.floormod(offset, size))
        offset = offset if single else tirx.floordiv(offset, size)
    return [*([offset] if shape else []), *reversed(index)]
