"""Casts, as PyTorch does them on a CPU (x86-64).

| from | to | |
|---|---|---|
| int | int | wraps around |
| float | int32, int64 | towards zero; NaN and what lies outside of the range give the smallest int |
| float | int8, int16, uint16 | through int32, then wraps around |
| float | uint8 | through int64, then wraps around |
| float | uint32 | through int64, then wraps around |
| float | uint64 | below 2^63 as int64, else unsigned; NaN and what lies outside: 2^63 |
| int, float | bool | whether it differs from 0; NaN does |
| int | float | rounded to nearest, ties to even (the module declares RoundingModeRTE) |

SPIR-V leaves conversions of floats beyond an int's range undefined, so ranges are tested here. float32 values of 2^31
and more are multiples of 256, thus 0 as uint8, and so is the smallest int32: int32 serves for float32 there.
"""

from __future__ import annotations

from .arithmetic import Arithmetic, Value
from .dtypes import BOOL, FLOAT16, FLOAT32, FLOAT64, INT32, INT64, UINT8, UINT32, UINT64, DType, unsupported
from .half import rounded_to_half
from .opcodes import Op


def cast(s: Arithmetic, x: Value, dtype: DType) -> Value:
    source = x.dtype
    if source == dtype:
        return x
    if source == BOOL:
        return s.select(x, s.const(1, dtype), s.const(0, dtype))
    if dtype == BOOL:
        return s.compare("ne", x, s.const(0, source))
    if x.literal is not None and source.is_int and dtype.is_int:
        return s.const(int(x.literal), dtype)
    if FLOAT16 in (source, dtype) and s.module.wide_halves:
        return _wide(s, x, dtype)
    if source.is_int:
        return _int_to_int(s, x, dtype) if dtype.is_int else _int_to_float(s, x, dtype)
    return s.emit(Op.F_CONVERT, dtype, x) if dtype.is_float else _float_to_int(s, x, dtype)


def _wide(s: Arithmetic, x: Value, dtype: DType) -> Value:
    """From or to a float16 that is held as float32."""
    if x.dtype == FLOAT16:
        return cast(s, Value(s, x.id, FLOAT32), dtype)
    if x.dtype != FLOAT32:  # rounded twice
        raise unsupported(f"float16 of {x.dtype} without 16-bit types")
    return rounded_to_half(s, x)


def _int_to_int(s: Arithmetic, x: Value, dtype: DType) -> Value:
    held, wanted = x.dtype.register, dtype.register
    if held.bits != wanted.bits:
        if wanted.bits == 64 and x.dtype != UINT32:
            x = _extended(s, x)
        else:
            x = s.emit(Op.S_CONVERT if held.kind == "int" else Op.U_CONVERT, DType(held.kind, wanted.bits), x)
        held = DType(x.dtype.kind, wanted.bits)
    if held.kind != wanted.kind:
        x = s.emit(Op.BITCAST, wanted, x)
    return s.normalised(Value(s, x.id, dtype))


def _extended(s: Arithmetic, x: Value) -> Value:
    """int64 of an int that fits int32, made of an unsigned extension.

    Mesa (22.3 for one) takes comparisons of OpSConvert's results with constants for what they are not: each is answered
    as for the largest or smallest int.
    """
    offset = 1 << 31
    word = s.reinterpret(Value(s, x.id, x.dtype.register), UINT32)
    shifted = s.bitwise("xor", word, s.const(offset, UINT32))
    return s.sub(s.emit(Op.BITCAST, INT64, s.emit(Op.U_CONVERT, UINT64, shifted)), s.const(offset, INT64))


def _int_to_float(s: Arithmetic, x: Value, dtype: DType) -> Value:
    op = Op.CONVERT_S_TO_F if x.dtype.kind == "int" else Op.CONVERT_U_TO_F
    return s.emit(op, dtype, x)


def _float_to_int(s: Arithmetic, x: Value, dtype: DType) -> Value:
    if x.dtype == FLOAT16:
        x = cast(s, x, FLOAT32)
    if dtype == UINT64:
        return _float_to_uint64(s, x)
    if dtype == UINT32:
        return cast(s, _checked(s, x, INT64), UINT32)
    if dtype in (INT32, INT64):
        return _checked(s, x, dtype)
    wide = x.dtype == FLOAT64 and dtype == UINT8
    return cast(s, _checked(s, x, INT64 if wide else INT32), dtype)


def _checked(s: Arithmetic, x: Value, dtype: DType) -> Value:
    """Towards zero; the smallest int where x is NaN or out of range."""
    limit = 2.0 ** (dtype.bits - 1)
    fits = s.logical_and(x >= s.const(-limit, x.dtype), x < s.const(limit, x.dtype))
    if x.dtype == FLOAT64 and dtype == INT32:
        # The smallest int less a fraction truncates into the range.
        fits = s.logical_and(x > s.const(-limit - 1.0, x.dtype), x < s.const(limit, x.dtype))
    inside = s.select(fits, x, s.const(0.0, x.dtype))
    return s.select(fits, s.emit(Op.CONVERT_F_TO_S, dtype, inside), s.const(-(1 << (dtype.bits - 1)), dtype))


def _float_to_uint64(s: Arithmetic, x: Value) -> Value:
    low, high = s.const(2.0**63, x.dtype), s.const(2.0**64, x.dtype)
    upper = s.logical_and(x >= low, x < high)
    unsigned = s.emit(Op.CONVERT_F_TO_U, UINT64, s.select(upper, x, low))
    return s.select(upper, unsigned, cast(s, _checked(s, x, INT64), UINT64))
