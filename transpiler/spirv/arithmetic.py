"""Typed values and their operations.

A value is one lane: vectors of TIR are tuples of values, as the hardware that runs SPIR-V executes one lane of each
invocation at a time. Ints of 8 and 16 bits are held in 32, always extended, and every operation that may leave their
range brings them back, so that they wrap around. What float operations mean:

- `x * y + z` is one Fma (which a device may still round twice); every other result is rounded on its own and not
  reassociated (NoContraction).
- Comparisons are ordered, false for NaN, except `!=`, which is unordered: C's meaning.
- min(x, y) is `x < y ? x : y` and max likewise: y where one of them is NaN, as TVM's CPU code generator does it.
"""

from __future__ import annotations

from .dtypes import BOOL, FLOAT16, UINT32, Capability, DType, parse, unsupported
from .module import Module
from .opcodes import Glsl, Op

_ARITHMETIC = {
    "add": (Op.F_ADD, Op.I_ADD),
    "sub": (Op.F_SUB, Op.I_SUB),
    "mul": (Op.F_MUL, Op.I_MUL),
}
# float, int, uint
_COMPARISONS = {
    "lt": (Op.F_ORD_LESS_THAN, Op.S_LESS_THAN, Op.U_LESS_THAN),
    "le": (Op.F_ORD_LESS_THAN_EQUAL, Op.S_LESS_THAN_EQUAL, Op.U_LESS_THAN_EQUAL),
    "gt": (Op.F_ORD_GREATER_THAN, Op.S_GREATER_THAN, Op.U_GREATER_THAN),
    "ge": (Op.F_ORD_GREATER_THAN_EQUAL, Op.S_GREATER_THAN_EQUAL, Op.U_GREATER_THAN_EQUAL),
    "eq": (Op.F_ORD_EQUAL, Op.I_EQUAL, Op.I_EQUAL),
    "ne": (Op.F_UNORD_NOT_EQUAL, Op.I_NOT_EQUAL, Op.I_NOT_EQUAL),
}
_BITWISE = {
    "and": (Op.BITWISE_AND, Op.LOGICAL_AND),
    "or": (Op.BITWISE_OR, Op.LOGICAL_OR),
    "xor": (Op.BITWISE_XOR, Op.LOGICAL_NOT_EQUAL),
}
# What is right on float32 for the float16 of the same value.
_SAME_IF_WIDE = {Op.SELECT, Op.F_NEGATE, *(ops[0] for ops in _COMPARISONS.values())}
MANTISSA_BITS = {16: 10, 32: 23, 64: 52}


class Value:
    """One lane: its id, its dtype (as TIR sees it), and its number if it is a literal."""

    __slots__ = ("dtype", "id", "literal", "s")

    def __init__(self, s: Arithmetic, id_: int, dtype: DType, literal: float | None = None) -> None:
        self.s, self.id, self.dtype, self.literal = s, id_, dtype, literal

    def __add__(self, other: Value) -> Value:
        return self.s.add(self, other)

    def __sub__(self, other: Value) -> Value:
        return self.s.sub(self, other)

    def __mul__(self, other: Value) -> Value:
        return self.s.mul(self, other)

    def __truediv__(self, other: Value) -> Value:
        return self.s.divide(self, other)

    def __lt__(self, other: Value) -> Value:
        return self.s.compare("lt", self, other)

    def __gt__(self, other: Value) -> Value:
        return self.s.compare("gt", self, other)

    def __le__(self, other: Value) -> Value:
        return self.s.compare("le", self, other)

    def __ge__(self, other: Value) -> Value:
        return self.s.compare("ge", self, other)


class Arithmetic:
    """Operations that write into a module. Names and arguments are those of `schedules.scalar.Tir` where it has the
    operation too, so that the polynomials of `schedules.vector_math` can be written through either.
    """

    def __init__(self, module: Module) -> None:
        self.module = module

    def emit(self, op: Op, dtype: DType, *operands: Value, exact: bool = False) -> Value:
        """A pure instruction on registers."""
        if FLOAT16 in (dtype, *(x.dtype for x in operands)):
            self._need_halves(op)
        type_ = self.module.scalar_type(dtype.register)
        return Value(self, self.module.pure(op, type_, *(x.id for x in operands), exact=exact), dtype)

    def _need_halves(self, op: Op) -> None:
        """An operation on float16: only conversions are there without the device's arithmetic. Of those that are held
        as float32, comparisons and choices are the same."""
        if not self.module.wide_halves:
            if op != Op.F_CONVERT:
                self.module.need(Capability.FLOAT16)
        elif op not in _SAME_IF_WIDE:
            raise unsupported(f"{op.name} of float16 without float16 arithmetic")

    def glsl(self, instruction: Glsl, dtype: DType, *operands: Value) -> Value:
        if dtype == FLOAT16:
            self._need_halves(Op.EXT_INST)
        type_ = self.module.scalar_type(dtype.register)
        return Value(self, self.module.extended(instruction, type_, *(x.id for x in operands)), dtype)

    # --- literals
    def const(self, value: float | int | bool, dtype: DType | str) -> Value:
        if isinstance(dtype, str):
            dtype, _ = parse(dtype)
        if dtype == FLOAT16 and not self.module.wide_halves:
            self.module.need(Capability.FLOAT16)
        if dtype.is_int:
            value = wrapped(int(value), dtype)
        return Value(self, self.module.constant(value, dtype.register), dtype, literal=value)

    def bind(self, x: Value) -> Value:
        return x

    # --- arithmetic
    def add(self, x: Value, y: Value) -> Value:
        if x.dtype.is_float:
            for product, other in ((x, y), (y, x)):
                factors = self.module.product(product.id)
                if factors is not None:
                    a, b = (Value(self, id_, x.dtype) for id_ in factors)
                    return self.glsl(Glsl.FMA, x.dtype, a, b, other)
        return self._plain("add", x, y)

    def sub(self, x: Value, y: Value) -> Value:
        return self._plain("sub", x, y)

    def mul(self, x: Value, y: Value) -> Value:
        return self._plain("mul", x, y)

    def plain_add(self, x: Value, y: Value) -> Value:
        """A sum that is rounded on its own, whatever x and y are: for error terms."""
        return self._plain("add", x, y)

    def _plain(self, name: str, x: Value, y: Value) -> Value:
        float_op, int_op = _ARITHMETIC[name]
        if x.dtype.is_float:
            return self.emit(float_op, x.dtype, x, y, exact=True)
        if not x.dtype.is_int:
            raise unsupported(f"{name} of {x.dtype}")
        return self.normalised(self.emit(int_op, x.dtype, x, y))

    def normalised(self, x: Value) -> Value:
        """A small int extended again from its low bits."""
        missing = 32 - x.dtype.bits
        if not x.dtype.is_int or missing <= 0:
            return x
        if x.dtype.kind == "uint":
            mask = self.const((1 << x.dtype.bits) - 1, UINT32)
            return self.emit(Op.BITWISE_AND, x.dtype, x, mask)
        bits = self.const(missing, UINT32)
        return self.emit(Op.SHIFT_RIGHT_ARITHMETIC, x.dtype, self.emit(Op.SHIFT_LEFT_LOGICAL, x.dtype, x, bits), bits)

    def negate(self, x: Value) -> Value:
        if x.dtype.is_float:
            return self.emit(Op.F_NEGATE, x.dtype, x)
        return self.sub(self.const(0, x.dtype), x)

    def divide(self, x: Value, y: Value) -> Value:
        """C's `/`: ints truncate; the smallest int by -1 wraps around; an int by 0 is undefined."""
        if x.dtype.is_float:
            return self.emit(Op.F_DIV, x.dtype, x, y, exact=True)
        if x.dtype.kind == "uint":
            return self.emit(Op.U_DIV, x.dtype, x, y)
        if not x.dtype.is_int:
            raise unsupported(f"division of {x.dtype}")
        if y.literal is not None and y.literal != -1:
            return self.emit(Op.S_DIV, x.dtype, x, y)
        minus_one = self.compare("eq", y, self.const(-1, y.dtype))
        safe = self.select(minus_one, self.const(1, y.dtype), y)
        return self.select(minus_one, self.negate(x), self.emit(Op.S_DIV, x.dtype, x, safe))

    def remainder(self, x: Value, y: Value) -> Value:
        """C's `%` of ints. Vulkan leaves OpSRem undefined for negative operands."""
        if x.dtype.kind == "uint":
            return self.emit(Op.U_MOD, x.dtype, x, y)
        if not x.dtype.is_int:
            raise unsupported(f"the remainder of {x.dtype}", hint="fmod is a function")
        return x - self.divide(x, y) * y

    def floor_divide(self, x: Value, y: Value) -> Value:
        if x.dtype.is_float:
            return self.glsl(Glsl.FLOOR, x.dtype, x / y)
        quotient = self.divide(x, y)
        return self.select(self._signs_differ(x, y), quotient - self.const(1, x.dtype), quotient)

    def floor_remainder(self, x: Value, y: Value) -> Value:
        remainder = self.remainder(x, y)
        return self.select(self._signs_differ(x, y), remainder + y, remainder)

    def _signs_differ(self, x: Value, y: Value) -> Value:
        """Whether the truncated quotient is not the floor."""
        if x.dtype.kind == "uint":
            return self.const(False, BOOL)
        remainder, zero = self.remainder(x, y), self.const(0, x.dtype)
        differ = self.compare("lt", self.bitwise("xor", remainder, y), zero)
        return self.logical_and(differ, self.compare("ne", remainder, zero))

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        return self.glsl(Glsl.FMA, x.dtype, x, y, z)

    # --- comparisons and choices
    def compare(self, name: str, x: Value, y: Value) -> Value:
        if x.dtype == BOOL:
            if name not in ("eq", "ne"):
                raise unsupported(f"the order of bools ({name})")
            return self.emit(Op.LOGICAL_EQUAL if name == "eq" else Op.LOGICAL_NOT_EQUAL, BOOL, x, y)
        kinds: tuple[str, ...] = ("float", "int", "uint")
        return self.emit(_COMPARISONS[name][kinds.index(x.dtype.kind)], BOOL, x, y)

    def minimum(self, x: Value, y: Value) -> Value:
        return self.select(x < y, x, y)

    def maximum(self, x: Value, y: Value) -> Value:
        return self.select(x > y, x, y)

    def select(self, condition: Value, then: Value, otherwise: Value) -> Value:
        if condition.literal is not None:
            return then if condition.literal else otherwise
        return self.emit(Op.SELECT, then.dtype, condition, then, otherwise)

    def logical_and(self, x: Value, y: Value) -> Value:
        return self.emit(Op.LOGICAL_AND, BOOL, x, y)

    def logical_or(self, x: Value, y: Value) -> Value:
        return self.emit(Op.LOGICAL_OR, BOOL, x, y)

    def logical_not(self, x: Value) -> Value:
        return self.emit(Op.LOGICAL_NOT, BOOL, x)

    # --- bits
    def bitwise(self, name: str, x: Value, y: Value) -> Value:
        if x.dtype.is_float:
            raise unsupported(f"bitwise {name} of {x.dtype}")
        op, logical = _BITWISE[name]
        return self.emit(logical if x.dtype == BOOL else op, x.dtype, x, y)

    def bitwise_not(self, x: Value) -> Value:
        return self.logical_not(x) if x.dtype == BOOL else self.normalised(self.emit(Op.NOT, x.dtype, x))

    def shift_left(self, x: Value, bits: Value | int) -> Value:
        return self.normalised(self.emit(Op.SHIFT_LEFT_LOGICAL, x.dtype, x, self._bits(bits)))

    def shift_right(self, x: Value, bits: Value | int) -> Value:
        """Of signed ints arithmetic. Shifts by the width or more are undefined, as in C."""
        op = Op.SHIFT_RIGHT_ARITHMETIC if x.dtype.kind == "int" else Op.SHIFT_RIGHT_LOGICAL
        return self.emit(op, x.dtype, x, self._bits(bits))

    def _bits(self, bits: Value | int) -> Value:
        return self.const(bits, UINT32) if isinstance(bits, int) else bits

    def reinterpret(self, x: Value, dtype: DType | str) -> Value:
        """The same bits as another dtype of the same width."""
        if isinstance(dtype, str):
            dtype, _ = parse(dtype)
        if x.dtype == dtype:
            return x
        if x.dtype.bits != dtype.bits or BOOL in (x.dtype, dtype):
            raise unsupported(f"the bits of {x.dtype} as {dtype}")
        if x.dtype.bits >= 32:
            return self.emit(Op.BITCAST, dtype, x)
        if x.dtype.is_int and dtype.is_int:
            return self.normalised(self.emit(Op.BITCAST, dtype, x))
        return self._reinterpret_half(x, dtype)

    def _reinterpret_half(self, x: Value, dtype: DType) -> Value:
        """Between float16 and ints of 16 bits, by the packing of two halves into a word."""
        if self.module.wide_halves:
            from .half import pack_half, unpack_half

            if dtype == FLOAT16:
                return unpack_half(self, self.cast(self.reinterpret(x, DType("uint", 16)), UINT32))
            return self.reinterpret(Value(self, pack_half(self, x).id, DType("uint", 16)), dtype)
        pair, word = self.module.type(Op.TYPE_VECTOR, self.module.scalar_type(FLOAT16), 2), UINT32
        self.module.need(Capability.FLOAT16)
        if dtype == FLOAT16:
            halves = self.module.pure(
                Op.BITCAST, pair, self.emit(Op.BITCAST, word, x).id if x.dtype.kind == "int" else x.id
            )
            type_ = self.module.scalar_type(FLOAT16)
            return Value(self, self.module.pure(Op.COMPOSITE_EXTRACT, type_, halves, 0), FLOAT16)
        zero = self.const(0.0, FLOAT16)
        halves = self.module.pure(Op.COMPOSITE_CONSTRUCT, pair, x.id, zero.id)
        bits = Value(self, self.module.pure(Op.BITCAST, self.module.scalar_type(word), halves), DType("uint", 16))
        return self.reinterpret(bits, dtype)

    # --- floats by their bits
    def uint_of(self, dtype: DType) -> DType:
        return DType("uint", dtype.bits)

    def magnitude(self, x: Value) -> Value:
        return self.glsl(Glsl.F_ABS, x.dtype, x)

    def negative_magnitude(self, x: Value) -> Value:
        return self.negate(self.magnitude(x))

    def copy_sign(self, magnitude: Value, sign: Value) -> Value:
        bits = self.uint_of(sign.dtype)
        top = self.bitwise("and", self.reinterpret(sign, bits), self.const(1 << (bits.bits - 1), bits))
        low = self.bitwise("and", self.reinterpret(magnitude, bits), self.const((1 << (bits.bits - 1)) - 1, bits))
        return self.reinterpret(self.bitwise("or", low, top), magnitude.dtype)

    def is_nan(self, x: Value) -> Value:
        """By its bits: compilers may take it that there are no NaNs."""
        return self._magnitude_bits(x, "gt")

    def is_infinite(self, x: Value) -> Value:
        return self._magnitude_bits(x, "eq")

    def _magnitude_bits(self, x: Value, comparison: str) -> Value:
        if not x.dtype.is_float:
            return self.const(False, BOOL)
        bits = self.uint_of(x.dtype)
        mantissa = MANTISSA_BITS[x.dtype.bits]
        infinity = ((1 << (x.dtype.bits - 1 - mantissa)) - 1) << mantissa
        low = self.bitwise("and", self.reinterpret(x, bits), self.const((1 << (bits.bits - 1)) - 1, bits))
        return self.compare(comparison, low, self.const(infinity, bits))

    def cast(self, x: Value, dtype: DType | str) -> Value:
        from .conversion import cast

        return cast(self, x, dtype if isinstance(dtype, DType) else parse(dtype)[0])


def wrapped(value: int, dtype: DType) -> int:
    """`value` modulo the width of an int dtype, within its range."""
    value &= (1 << dtype.bits) - 1
    return value - (1 << dtype.bits) if dtype.kind == "int" and value >> (dtype.bits - 1) else value
