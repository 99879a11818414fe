"""Writing kernels: a thin layer over TVM's IR builder.

A kernel is a C function over raw pointers, `int32_t name(inputs..., outputs..., [workspace], [status], [symbols...])`.
Buffers are flat; offsets are computed by the schedule. `Tir` implements the `Scalar` protocol of `transpiler.ops.base`
on TIR expressions, so that an op's element-wise meaning can be placed inside any loop nest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.ir import TensorType
from transpiler.ops.dtypes import HALF, category, numpy_dtype
from transpiler.ops.special_numpy import FUNCTIONS

from . import vector_math
from .sizes import Extent, ceil_div, extent, extents, symbol_parameters

Expr = Any
# What templates/runtime/cpu/special.h declares: functions of float64. libm has the error function itself.
SPECIAL = frozenset(FUNCTIONS) - {"erfc"}
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

    def store(self, offset: Expr, value: Expr) -> None:
        if self.dtype == "bool":
            value = T.Cast("int8", value)
        T.buffer_store(self.handle, value, [self.base + offset])

    def vector(self, offset: Expr, lanes: int = LANES) -> Expr:
        """`lanes` consecutive elements."""
        return self.handle[T.ramp(self.base + offset, 1, lanes)]

    def store_vector(self, offset: Expr, value: Expr, lanes: int = LANES) -> None:
        T.buffer_store(self.handle, value, [T.ramp(self.base + offset, 1, lanes)])


def storage_dtype(dtype: str) -> str:
    """What memory holds for an IR dtype."""
    return "int8" if dtype == "bool" else value_dtype(dtype)


def value_dtype(dtype: str) -> str:
    """The TIR dtype of expressions of an IR dtype: bfloat16, which the code generator lacks, is its bits."""
    return "uint16" if dtype == "bfloat16" else dtype


# Wider ints in which +, - and * cannot overflow: TVM takes it that ints never do, PyTorch's wrap. LLVM narrows the
# arithmetic again, without that assumption.
WRAPPING = {"int32": "int64", "int64": "int128"}


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

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            T.Return(tirx.IntImm("int32", 0))
        self._frame.__exit__(kind, error, traceback)
        self._builder.__exit__(kind, error, traceback)
        if kind is None:
            self.function = self._builder.get().with_attr("global_symbol", self.name)


def local(size: int, dtype: str = "float32") -> Buffer:
    """A buffer that LLVM keeps in registers or on the stack: `size` elements, under 1 KiB.

    Larger ones become workspace allocations inside the loop: give those to `KernelBuilder.scratch`.
    """
    assert size * tvm.runtime.DataType(storage_dtype(dtype)).bits // 8 <= 1024, "over 1 KiB: use scratch"
    return Buffer(T.alloc_buffer((size,), storage_dtype(dtype), scope="global"), dtype, size)


def loop(count: Extent, *, parallel: bool = False) -> Any:
    """A loop context over 0..count; `parallel` splits it statically over the threads."""
    return T.parallel(0, count) if parallel else T.serial(0, count)


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


class Tir:
    """The `Scalar` protocol on TIR expressions, scalar or vector.

    `statements` says whether the expression stands at statement level, where temporaries can be bound and an index
    checked; without it everything stays one expression. `on_index_error` is the kernel's status buffer.
    """

    def __init__(self, *, statements: bool = True, status: Buffer | None = None, lanes: int = 1) -> None:
        self.statements = statements
        self.status = status
        self.lanes = lanes

    # --- values
    def dtype(self, x: Expr) -> str:
        match x:
            case bool():
                return "bool"
            case int():
                return "int32"
            case float():
                return "float32"
            case _:
                dtype = str(x.ty.dtype).split("x")[0]
                return "bfloat16" if dtype == "uint16" else dtype

    def const(self, value: float | int | bool, dtype: str) -> Expr:
        if dtype in HALF:
            return _half_const(float(value), dtype)
        if dtype.startswith("float") and not math.isfinite(value):
            return self._nonfinite(float(value), dtype)
        return tirx.const(value, dtype)

    def _nonfinite(self, value: float, dtype: str) -> Expr:
        if math.isnan(value):
            bits = {"float32": 0x7FC00000, "float64": 0x7FF8000000000000}[dtype]
            return T.reinterpret(dtype, tirx.const(bits, dtype.replace("float", "uint")))
        infinity = T.infinity(dtype)
        return infinity if value > 0 else tirx.const(0.0, dtype) - infinity

    def size(self, value: Any) -> Expr:
        return tirx.const(value, "int32") if isinstance(value, int) else extent(value)

    def bind(self, x: Expr) -> Expr:
        """A temporary, so that an expression used often is computed (and printed) once.

        A one-element buffer rather than `T.bind`, whose pure values TVM's simplifier puts back wherever they are
        used: a GELU epilogue took minutes to lower. LLVM makes it a register.
        """
        if not self.statements or isinstance(x, int | float | tirx.IntImm | tirx.FloatImm):
            return x
        place: Expr = 0
        if _vector_scopes:
            scope = _vector_scopes[-1]
            pool = scope.free.get(self.dtype(x))
            if not pool:
                return x
            buffer, place = pool.pop(), scope.lane
        else:
            buffer = local(1, self.dtype(x))
        buffer.store(place, x)
        return buffer[place]

    def quiet(self) -> Tir:
        """The same without statements: for expressions that stand under a guard."""
        return Tir(statements=False, status=self.status, lanes=self.lanes) if self.statements else self

    def cast(self, x: Expr, dtype: str) -> Expr:
        source = self.dtype(x)
        if source == dtype:
            return x
        if source in HALF:
            return self.cast(self._widened(x, source), dtype)
        if isinstance(x, tirx.IntImm) and category(dtype) == 2:
            return self.const(float(x.value), dtype)
        if dtype == "bool":
            return self.ne(x, self._zero(source))
        if source == "bool":
            return self.select(x, self.const(1, dtype), self.const(0, dtype))
        if dtype in HALF:
            return self._narrowed(self.cast(x, "float32"), dtype)
        if source.startswith("float") and dtype in ("int8", "uint8", "int16"):
            # PyTorch converts through a wider int and wraps; a direct conversion is undefined beyond the range.
            return self._convert(self._convert(x, "int64" if dtype == "uint8" else "int32"), dtype)
        return self._convert(x, dtype)

    def _convert(self, x: Expr, dtype: str) -> Expr:
        """The machine's conversion."""
        return T.Cast(dtype, x)

    def _widened(self, x: Expr, dtype: str) -> Expr:
        """float32 of a half float: exact."""
        if isinstance(x, tirx.IntImm | tirx.FloatImm):
            return self.const(_half_value(x), "float32")
        if dtype == "float16":
            return self._convert(x, "float32")
        return self.reinterpret(self.shift_left(self._convert(x, "uint32"), 16), "float32")

    def _narrowed(self, x: Expr, dtype: str) -> Expr:
        """A half float of float32, rounded to nearest, ties to even."""
        if isinstance(x, tirx.FloatImm):
            return self.const(x.value, dtype)
        if dtype == "float16":
            return self._convert(x, "float16")
        x = self.bind(x)
        bits = self.reinterpret(x, "uint32")
        high = self.shift_right(bits, 16)
        odd = T.bitwise_and(high, self.const(1, "uint32"))
        rounded = self.shift_right(bits + (odd + self.const(0x7FFF, "uint32")), 16)
        # The sum of a NaN may overflow into the sign, or round to an infinity.
        quiet = T.bitwise_or(high, self.const(0x40, "uint32"))
        return self._convert(self.select(self.is_nan(x), quiet, rounded), "uint16")

    def wrapping(self, function: Callable[..., Expr], *x: Expr) -> Expr:
        """`function` of int operands, made of + - * alone, with results that wrap around as PyTorch's do."""
        dtype = self.dtype(x[0])
        wide = WRAPPING.get(dtype)
        if wide is None:
            return function(*x)
        return self._convert(function(*(self._convert(item, wide) for item in x)), dtype)

    def _zero(self, dtype: str) -> Expr:
        return tirx.const(0, dtype)

    def reinterpret(self, x: Expr, dtype: str) -> Expr:
        return T.reinterpret(dtype, x)

    # --- choices
    def select(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        return tirx.Select(opaque_comparison(condition), then, otherwise)

    def guarded(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        return T.if_then_else(condition, then, otherwise)

    def eq(self, a: Expr, b: Expr) -> Expr:
        return self.logical_not(self._differ(a, b)) if self.dtype(a) == "bool" else tirx.EQ(a, b)

    def ne(self, a: Expr, b: Expr) -> Expr:
        if self.dtype(a) == "bool":
            return self._differ(a, b)
        if self.dtype(a).startswith("float"):
            # The code generator's `!=` is ordered: false for NaN.
            return tirx.Or(tirx.NE(a, b), tirx.Or(self.is_nan(a), self.is_nan(b)))
        return tirx.NE(a, b)

    def is_nan(self, x: Expr) -> Expr:
        """By its bits: TVM simplifies `x != x` to false."""
        if isinstance(x, tirx.FloatImm):
            return tirx.const(False, "bool")
        bits = self.dtype(x).replace("float", "uint")
        mantissa = {"uint16": 10, "uint32": 23, "uint64": 52}[bits]
        width = int(bits[4:])
        magnitude = T.bitwise_and(self.reinterpret(x, bits), tirx.const((1 << (width - 1)) - 1, bits))
        return magnitude > tirx.const(((1 << (width - 1 - mantissa)) - 1) << mantissa, bits)

    def _differ(self, a: Expr, b: Expr) -> Expr:
        """Exclusive or of bools; the code generator compares them as floats."""
        return tirx.Or(tirx.And(a, tirx.Not(b)), tirx.And(tirx.Not(a), b))

    def logical_and(self, a: Expr, b: Expr) -> Expr:
        return tirx.And(opaque_comparison(a), opaque_comparison(b))

    def logical_or(self, a: Expr, b: Expr) -> Expr:
        return tirx.Or(opaque_comparison(a), opaque_comparison(b))

    def logical_not(self, a: Expr) -> Expr:
        return tirx.Not(opaque_comparison(a))

    def maximum(self, a: Expr, b: Expr) -> Expr:
        if not self.dtype(a).startswith("float"):
            return tirx.Max(a, b)
        a, b = self.bind(a), self.bind(b)
        # `a` if it is NaN; else `a > b ? a : b`, which is `b` if that is NaN.
        return self.select(self.logical_or(a > b, self.is_nan(a)), a, b)

    def minimum(self, a: Expr, b: Expr) -> Expr:
        if not self.dtype(a).startswith("float"):
            return tirx.Min(a, b)
        a, b = self.bind(a), self.bind(b)
        return self.select(self.logical_or(a < b, self.is_nan(a)), a, b)

    # --- arithmetic
    def divide(self, a: Expr, b: Expr) -> Expr:
        return tirx.Div(a, opaque_zero(b))

    def floordiv(self, a: Expr, b: Expr) -> Expr:
        return tirx.floordiv(a, b)

    def floormod(self, a: Expr, b: Expr) -> Expr:
        return tirx.floormod(a, b)

    def truncdiv(self, a: Expr, b: Expr) -> Expr:
        return T.truncdiv(a, b)

    def bitwise(self, operator: str, a: Expr, b: Expr) -> Expr:
        if self.dtype(a) == "bool":
            as_int = {"&": tirx.And, "|": tirx.Or, "^": self._differ}
            return as_int[operator](a, b)
        functions: dict[str, Callable[[Expr, Expr], Expr]] = {
            "&": T.bitwise_and, "|": T.bitwise_or, "^": T.bitwise_xor, "<<": T.shift_left, ">>": T.shift_right,
        }  # fmt: skip
        return functions[operator](a, b)

    def shift_left(self, x: Expr, bits: int) -> Expr:
        return T.shift_left(x, tirx.const(bits, self.dtype(x)))

    def shift_right(self, x: Expr, bits: int) -> Expr:
        return T.shift_right(x, tirx.const(bits, self.dtype(x)))

    def magnitude(self, x: Expr) -> Expr:
        """|x| of a float32 by its sign bit."""
        return self.reinterpret(
            T.bitwise_and(self.reinterpret(x, "uint32"), tirx.const(0x7FFFFFFF, "uint32")), "float32"
        )

    def copy_sign(self, magnitude: Expr, sign: Expr) -> Expr:
        """float32 `magnitude` (>= 0) with the sign bit of `sign`."""
        bit = T.bitwise_and(self.reinterpret(sign, "uint32"), tirx.const(0x80000000, "uint32"))
        return self.reinterpret(T.bitwise_or(self.reinterpret(magnitude, "uint32"), bit), "float32")

    # --- functions
    def call(self, function: str, *args: Expr) -> Expr:
        dtype = self.dtype(args[0])
        if dtype == "float32" and function in ("exp", "tanh", "sigmoid", "erf"):
            return getattr(vector_math, function)(self, self.bind(args[0]))
        match function:
            case "sigmoid":
                one = self.const(1.0, dtype)
                return one / (one + self.call("exp", self.const(0.0, dtype) - args[0]))
            case "rsqrt":
                return self.const(1.0, dtype) / T.sqrt(args[0])
            case "round":
                return T.nearbyint(args[0])
            case "isnan":
                return self.is_nan(args[0])
            case "isinf":
                return self.eq(T.abs(args[0]), T.infinity(dtype))
            case "pow" if isinstance(args[1], tirx.FloatImm):
                return self._power(args[0], args[1].value, dtype)
            case "sqrt" | "floor" | "ceil" | "trunc" | "abs" | "exp" | "exp2" | "log" | "log2" | "log10" | "pow" | \
                    "sin" | "cos":  # fmt: skip
                # LLVM has these for any width; those without an instruction become one libm call per lane.
                return getattr(T, function)(*args)
            case _ if function in SPECIAL:
                return T.call_pure_extern("float64", f"tp_math_{function}", *args)
            case _:
                name = function + {"float32": "f", "float64": ""}[dtype]
                return T.call_pure_extern(dtype, name, *args)

    def _power(self, x: Expr, exponent: float, dtype: str) -> Expr:
        """The exponents that PyTorch treats apart as well; anything else is libm's pow."""
        x = self.bind(x)
        exact: dict[float, Callable[[], Expr]] = {
            1.0: lambda: x,
            2.0: lambda: x * x,
            3.0: lambda: x * x * x,
            0.5: lambda: T.sqrt(x),
            -0.5: lambda: self.call("rsqrt", x),
            -1.0: lambda: self.const(1.0, dtype) / x,
            -2.0: lambda: self.const(1.0, dtype) / (x * x),
        }
        return exact[exponent]() if exponent in exact else T.pow(x, self.const(exponent, dtype))

    # --- indices from data
    def index(self, value: Expr, size: Any, wraps: bool = True) -> Expr:
        assert self.status is not None, "the kernel was not built with checks_index"
        limit = tirx.const(size, "int64") if isinstance(size, int) else T.Cast("int64", extent(size))
        value = self.bind(T.Cast("int64", value))
        wrapped = value
        if wraps:
            wrapped = self.bind(self.select(value < tirx.const(0, "int64"), value + limit, value))
        valid = self.logical_and(wrapped >= tirx.const(0, "int64"), wrapped < limit)
        if self.statements:
            with T.If(self.logical_not(valid)), T.Then():
                self.status.store(0, tirx.const(1, "int32"))
        return T.Cast("int32", self.select(valid, wrapped, tirx.const(0, "int64")))


def _half_const(value: float, dtype: str) -> Expr:
    """The literal, rounded here: TVM folds a cast of a literal without rounding it."""
    with np.errstate(over="ignore"):
        rounded = np.array(value, np.float32).astype(numpy_dtype(dtype))
    if dtype == "bfloat16":
        return tirx.const(int(rounded.view(np.uint16)), "uint16")
    if math.isfinite(rounded):
        return tirx.const(float(rounded), "float16")
    return T.reinterpret("float16", tirx.const(int(rounded.view(np.uint16)), "uint16"))


def _half_value(x: tirx.IntImm | tirx.FloatImm) -> float:
    if isinstance(x, tirx.FloatImm):
        return float(x.value)
    return float(np.array(x.value, np.uint16).view(numpy_dtype("bfloat16")))


def opaque_comparison(x: Expr) -> Expr:
    """A comparison of floats as the bool of a chosen int8, which TVM does not reason about.

    It takes `not (a < b)`, and what is left where `a < b` does not hold, for `a >= b`, and `a < b or a >= b` for true:
    all wrong for NaN.
    """
    if isinstance(x, tirx.LT | tirx.LE | tirx.GT | tirx.GE | tirx.EQ) and str(x.a.ty.dtype) in ("float32", "float64"):
        # Not a cast: the analysis of a variable that holds one (common subexpressions do) fails on vectors.
        return tirx.NE(tirx.Select(x, tirx.const(1, "int8"), tirx.const(0, "int8")), tirx.const(0, "int8"))
    return x


def opaque_zero(x: Expr) -> Expr:
    """A literal float zero in a form that TVM does not fold: it takes `x * 0` for 0 and refuses `x / 0`."""
    if isinstance(x, tirx.FloatImm) and x.value == 0:
        dtype = str(x.ty.dtype)
        bits = dtype.replace("float", "uint")
        # The code generator takes reinterpret(0) for a null pointer, so +0 is -0 times -1.
        negative_zero = T.reinterpret(dtype, tirx.const(1 << (int(bits[4:]) - 1), bits))
        return negative_zero if math.copysign(1.0, x.value) < 0 else negative_zero * tirx.const(-1.0, dtype)
    return x


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
