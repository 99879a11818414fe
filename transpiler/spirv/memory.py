"""What a kernel reads and writes: bindings, arrays of a workgroup and of an invocation, push constants.

Small ints are widened when they are loaded, and narrowed when they are stored, by conversions that 8- and 16-bit
storage allow without 8- and 16-bit arithmetic. Memory that is not a buffer holds them in 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .arithmetic import Arithmetic, Value
from .dtypes import BOOL, FLOAT16, UINT32, Capability, DType
from .kernel import PushConstant
from .opcodes import BuiltIn, Decoration, Op, StorageClass


@dataclass(eq=False)
class Storage:
    """An array in memory: `dtype` is TIR's, `element` what lies there."""

    variable: int
    storage_class: StorageClass
    dtype: DType
    element: DType
    written: bool = False


class Memory:
    """Declares and accesses storage."""

    def __init__(self, s: Arithmetic) -> None:
        self.s, self.module = s, s.module
        self.shared_bytes = 0
        self._blocks: dict[DType, int] = {}
        self._builtins: dict[BuiltIn, int] = {}

    def buffer(self, name: str, dtype: DType, binding: int, *, restrict: bool) -> Storage:
        """A storage buffer of set 0."""
        element, module = dtype.storage, self.module
        if element.bits == 8:
            module.need(Capability.STORAGE_BUFFER_8BIT)
        if element.bits == 16:
            module.need(Capability.STORAGE_BUFFER_16BIT)
        if element not in self._blocks:
            array = module.runtime_array(module.scalar_type(element), element.nbytes)
            self._blocks[element] = module.struct(array)
            module.member_offset(self._blocks[element], 0, 0)
            module.name(self._blocks[element], f"array_of_{element}")
        pointer = module.pointer(StorageClass.STORAGE_BUFFER, self._blocks[element])
        variable = module.variable(pointer, StorageClass.STORAGE_BUFFER)
        module.name(variable, name)
        module.decorate(variable, Decoration.DESCRIPTOR_SET, 0)
        module.decorate(variable, Decoration.BINDING, binding)
        if restrict:
            module.decorate(variable, Decoration.RESTRICT)
        return Storage(variable, StorageClass.STORAGE_BUFFER, dtype, element)

    def array(self, name: str, dtype: DType, size: int, *, shared: bool) -> Storage:
        """An array of the workgroup or of the invocation, of undefined contents."""
        element, module = dtype.private, self.module
        if element == FLOAT16:
            module.need(Capability.FLOAT16)
        length = module.constant(max(size, 1), UINT32)
        storage_class = StorageClass.WORKGROUP if shared else StorageClass.FUNCTION
        pointer = module.pointer(storage_class, module.type(Op.TYPE_ARRAY, module.scalar_type(element), length))
        variable = module.variable(pointer, storage_class)
        module.name(variable, name)
        if shared:
            self.shared_bytes += -(-max(size, 1) * element.nbytes // 16) * 16
        return Storage(variable, storage_class, dtype, element)

    def address(self, storage: Storage, index: Value) -> int:
        element = self.module.scalar_type(storage.element)
        path = [index.id]
        if storage.storage_class == StorageClass.STORAGE_BUFFER:
            path.insert(0, self.module.constant(0, UINT32))
        pointer = self.module.pointer(storage.storage_class, element)
        return self.module.pure(Op.ACCESS_CHAIN, pointer, storage.variable, *path)

    def load(self, storage: Storage, index: Value) -> Value:
        loaded = self.module.result(Op.LOAD, self.module.scalar_type(storage.element), self.address(storage, index))
        return self._widened(loaded, storage.element, storage.dtype)

    def _widened(self, id_: int, element: DType, dtype: DType) -> Value:
        if element.register != element:
            op = Op.S_CONVERT if element.kind == "int" else Op.U_CONVERT
            id_ = self.module.pure(op, self.module.scalar_type(element.register), id_)
        held = Value(self.s, id_, element)
        if dtype == BOOL:
            # Tested in 32 bits, whatever its storage.
            return self.s.compare("ne", Value(self.s, id_, UINT32), self.s.const(0, UINT32))
        return Value(self.s, held.id, dtype)

    def store(self, storage: Storage, index: Value, value: Value) -> None:
        assert value.dtype == storage.dtype, f"a {value.dtype} into an array of {storage.dtype}"
        id_, element = value.id, storage.element
        if storage.dtype == BOOL:
            id_ = self.s.cast(value, UINT32).id
        if element.register != element:
            op = Op.S_CONVERT if element.kind == "int" else Op.U_CONVERT
            id_ = self.module.pure(op, self.module.scalar_type(element), id_)
        self.module.emit(Op.STORE, self.address(storage, index), id_)
        storage.written = True

    def builtin(self, which: BuiltIn, axis: int) -> Value:
        """A component of a built-in vector, as uint32."""
        module = self.module
        word = module.scalar_type(UINT32)
        if which not in self._builtins:
            pointer = module.pointer(StorageClass.INPUT, module.type(Op.TYPE_VECTOR, word, 3))
            variable = self._builtins[which] = module.variable(pointer, StorageClass.INPUT)
            module.decorate(variable, Decoration.BUILT_IN, which)
            module.name(variable, which.name.lower())
            module.interface.append(variable)
        component = module.pointer(StorageClass.INPUT, word)
        address = module.pure(Op.ACCESS_CHAIN, component, self._builtins[which], module.constant(axis, UINT32))
        return Value(self.s, module.pure(Op.LOAD, word, address), UINT32)

    def push_constants(self, parameters: Sequence[tuple[int, str, DType]]) -> tuple[list[PushConstant], list[Value]]:
        """The layout of (position, name, dtype) and the values, loaded. Small ints and bool are 32 bits."""
        module = self.module
        fields, offset = [], 0
        for position, name, dtype in parameters:
            held = dtype.private
            offset = -(-offset // held.nbytes) * held.nbytes
            fields.append(PushConstant(name, str(dtype), position, offset, held.bits))
            offset += held.nbytes
        if not fields:
            return [], []
        types = [module.scalar_type(dtype.private) for _, _, dtype in parameters]
        block = module.struct(*types)
        for member, field in enumerate(fields):
            module.member_offset(block, member, field.offset)
        variable = module.variable(module.pointer(StorageClass.PUSH_CONSTANT, block), StorageClass.PUSH_CONSTANT)
        module.name(variable, "push_constants")
        values = []
        for member, (type_, (_, name, dtype)) in enumerate(zip(types, parameters, strict=True)):
            pointer = module.pointer(StorageClass.PUSH_CONSTANT, type_)
            address = module.pure(Op.ACCESS_CHAIN, pointer, variable, module.constant(member, UINT32))
            loaded = module.pure(Op.LOAD, type_, address)
            module.name(loaded, name)
            values.append(self._widened(loaded, dtype.private, dtype))
        return fields, values
