"""Elements of 8 and 16 bits in words of 32, for devices without 8- and 16-bit storage.

Loads take an element out of its word. Stores clear its bits and set them by two atomic operations, which leave those of
the neighbours alone: each element is written by one thread only, and no other reads it at that time.
"""

from __future__ import annotations

from collections.abc import Callable

from .arithmetic import Arithmetic, Value
from .dtypes import FLOAT16, UINT32, DType
from .half import pack_half, unpack_half
from .opcodes import DEVICE_SCOPE, Op

Address = Callable[[Value], int]


def read_part(s: Arithmetic, element: DType, index: Value, address: Address, *, shared: bool) -> int:
    """The register with element `index`; `shared`: other threads write to its word meanwhile. `address` gives the
    pointer to a word."""
    module, word = s.module, s.module.scalar_type(UINT32)
    place, offset = _split(s, element, index)
    if shared:
        scope, relaxed = module.constant(DEVICE_SCOPE, UINT32), module.constant(0, UINT32)
        loaded = module.result(Op.ATOMIC_LOAD, word, address(place), scope, relaxed)
    else:
        loaded = module.result(Op.LOAD, word, address(place))
    bits = s.emit(Op.SHIFT_RIGHT_LOGICAL, UINT32, Value(s, loaded, UINT32), offset)
    if element == FLOAT16:
        return unpack_half(s, s.bitwise("and", bits, s.const(0xFFFF, UINT32))).id
    if element.kind == "int":
        bits = s.emit(Op.BITCAST, DType("int", 32), bits)
    return s.normalised(Value(s, bits.id, element)).id


def write_part(s: Arithmetic, element: DType, index: Value, id_: int, address: Address) -> None:
    """Element `index` becomes the register `id_`."""
    module = s.module
    place, offset = _split(s, element, index)
    value = Value(s, id_, element.register)
    if element == FLOAT16:
        value = pack_half(s, value)
    elif element.kind == "int":
        value = s.emit(Op.BITCAST, UINT32, value)
    mask = s.const((1 << element.bits) - 1, UINT32)
    bits = s.emit(Op.SHIFT_LEFT_LOGICAL, UINT32, s.bitwise("and", Value(s, value.id, UINT32), mask), offset)
    others = s.bitwise_not(s.emit(Op.SHIFT_LEFT_LOGICAL, UINT32, mask, offset))
    scope, relaxed = module.constant(DEVICE_SCOPE, UINT32), module.constant(0, UINT32)
    pointer, word = address(place), module.scalar_type(UINT32)
    module.result(Op.ATOMIC_AND, word, pointer, scope, relaxed, others.id)
    module.result(Op.ATOMIC_OR, word, pointer, scope, relaxed, bits.id)


def _split(s: Arithmetic, element: DType, index: Value) -> tuple[Value, Value]:
    """The word of an element, and its first bit there."""
    number = s.cast(index, UINT32)
    count = 32 // element.bits
    part = s.bitwise("and", number, s.const(count - 1, UINT32))
    return s.shift_right(number, count.bit_length() - 1), part * s.const(element.bits, UINT32)
