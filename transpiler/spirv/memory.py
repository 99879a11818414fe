"""What a kernel reads and writes: bindings, arrays of a workgroup and of an invocation, push constants.

Small ints are widened when they are loaded, and narrowed when they are stored, by conversions that 8- and 16-bit
storage allow without 8- and 16-bit arithmetic. Memory that is not a buffer holds them in 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .arithmetic import Arithmetic, Value
from .control import choose
from .dtypes import BOOL, FLOAT16, FLOAT32, INT32, UINT32, Capability, DType, unsupported
from .kernel import PushConstant
from .opcodes import DEVICE_SCOPE, WORKGROUP_SCOPE, BuiltIn, Decoration, Op, StorageClass
from .words import read_part, write_part

# The specialization constant that is true where buffers of several windows are bound in pieces.
SPLIT = 0

QUAD = 4  # elements of a vector in memory
MAX_ELEMENTS = 1 << 31  # of a buffer: indices are int32


@dataclass(eq=False)
class Storage:
    """An array in memory: `dtype` is TIR's, `element` what lies there. `quads` is the same memory as
    vectors of four elements, 0 until something reads it so.

    A buffer of several `variables` is bound in as many pieces, each of `window` elements but for the last, where the
    device cannot bind it at once; else the first of them is all of it. One that is `packed` is seen as words of 32
    bits, each of which holds several elements. One that is `overlaid` may be the same memory as another.
    """

    variables: tuple[int, ...]
    storage_class: StorageClass
    dtype: DType
    element: DType
    written: bool = False
    window: int = 0
    packed: bool = False
    helpers: dict[str, int] = field(default_factory=dict)
    name: str = ""
    binding: int = 0
    quads: int = 0
    overlaid: bool = False

    @property
    def carried(self) -> DType:
        """How an element goes to and from helper functions, which take no values of 8 or 16 bits."""
        return FLOAT32 if self.element == FLOAT16 else self.element.register

    @property
    def has_quads(self) -> bool:
        """Whether four elements from a multiple of four on can be read at once."""
        whole = self.storage_class == StorageClass.STORAGE_BUFFER and len(self.variables) == 1
        return whole and self.element.bits == 32 and self.dtype == self.element


class Memory:
    """Declares and accesses storage.

    `window_bytes` is the size of a piece of buffers with windows. `packed`: elements of 8 and 16 bits are taken out of
    words, which needs no feature of the device; `rewritten` are the buffers, by number, that the kernel writes then.
    """

    def __init__(
        self, s: Arithmetic, *, window_bytes: int = 0, packed: bool = False, rewritten: frozenset[int] = frozenset()
    ) -> None:
        self.s, self.module = s, s.module
        self.window_bytes, self.packed, self._rewritten = window_bytes, packed, rewritten
        self.shared_bytes = 0
        self._bindings = 0
        self._buffers = 0
        self._blocks: dict[tuple[DType, int], int] = {}
        self._builtins: dict[BuiltIn, int] = {}

    def buffer(self, name: str, dtype: DType, *, windows: int = 1, overlaid: bool = False) -> Storage:
        """A storage buffer of set 0, at the next bindings.

        Raises:
            TranspileError: its pieces have more elements together than indices can count.
        """
        element, module = dtype.storage, self.module
        if windows > 1 and windows * self.window_bytes > MAX_ELEMENTS * element.nbytes:
            raise unsupported(f"a buffer of more than 2^31 elements ({name})")
        packed = self.packed and element.bits < 32
        if element.bits == 8 and not packed:
            module.need(Capability.STORAGE_BUFFER_8BIT)
        if element.bits == 16 and not packed:
            module.need(Capability.STORAGE_BUFFER_16BIT)
        held, first = UINT32 if packed else element, self._bindings
        self._bindings += windows
        variables = tuple(
            self._bound(f"{name}_{number}" if number else name, held, 1, first + number) for number in range(windows)
        )
        # What other threads change is read as they write it.
        written = packed and self._buffers in self._rewritten
        self._buffers += 1
        window = self.window_bytes // element.nbytes
        return Storage(
            variables,
            StorageClass.STORAGE_BUFFER,
            dtype,
            element,
            written,
            window,
            packed,
            name=name,
            binding=first,
            overlaid=overlaid,
        )

    def _bound(self, name: str, element: DType, lanes: int, binding: int) -> int:
        """A variable for a binding, an array of elements or of vectors of `lanes`."""
        module, key = self.module, (element, lanes)
        if key not in self._blocks:
            type_ = module.scalar_type(element)
            type_ = type_ if lanes == 1 else module.type(Op.TYPE_VECTOR, type_, lanes)
            array = module.runtime_array(type_, element.nbytes * lanes)
            self._blocks[key] = module.struct(array)
            module.member_offset(self._blocks[key], 0, 0)
            module.name(self._blocks[key], f"array_of_{element}" + f"x{lanes}" * (lanes > 1))
        pointer = module.pointer(StorageClass.STORAGE_BUFFER, self._blocks[key])
        variable = module.variable(pointer, StorageClass.STORAGE_BUFFER)
        module.name(variable, name)
        module.decorate(variable, Decoration.DESCRIPTOR_SET, 0)
        module.decorate(variable, Decoration.BINDING, binding)
        return variable

    def finish(self, storage: Storage, *, restrict: bool) -> None:
        """Says of a buffer what is known when the kernel is written. `restrict`: no other buffer is the same memory, if
        it is not overlaid."""
        for variable in (*storage.variables, *filter(None, [storage.quads])):
            if not storage.written and not storage.overlaid:
                self.module.decorate(variable, Decoration.NON_WRITABLE)
            if storage.overlaid or (storage.written and storage.quads):
                self.module.decorate(variable, Decoration.ALIASED)
            elif restrict:
                self.module.decorate(variable, Decoration.RESTRICT)

    def array(self, name: str, dtype: DType, size: int, *, shared: bool) -> Storage:
        """An array of the workgroup or of the invocation, of undefined contents."""
        element, module = dtype.private, self.module
        if element == FLOAT16:
            if self.module.wide_halves:
                element = FLOAT32
            else:
                module.need(Capability.FLOAT16)
        length = module.constant(max(size, 1), UINT32)
        storage_class = StorageClass.WORKGROUP if shared else StorageClass.FUNCTION
        pointer = module.pointer(storage_class, module.type(Op.TYPE_ARRAY, module.scalar_type(element), length))
        variable = module.variable(pointer, storage_class)
        module.name(variable, name)
        if shared:
            self.shared_bytes += -(-max(size, 1) * element.nbytes // 16) * 16
        return Storage((variable,), storage_class, dtype, element)

    # --- one element
    def load(self, storage: Storage, index: Value) -> Value:
        if len(storage.variables) > 1:
            id_ = self.module.result(
                Op.FUNCTION_CALL,
                self.module.scalar_type(storage.carried),
                self._helper(storage, "load", storage.carried, self._carried_load),
                self.s.cast(index, INT32).id,
            )
            if storage.carried != storage.element.register:
                id_ = self.s.cast(Value(self.s, id_, storage.carried), storage.element).id
        else:
            id_ = self._read(storage, storage.variables[0], index)
        return self._value(id_, storage.dtype)

    def store(self, storage: Storage, index: Value, value: Value) -> None:
        assert value.dtype == storage.dtype, f"a {value.dtype} into an array of {storage.dtype}"
        if storage.dtype == BOOL:
            value = self.s.cast(value, UINT32)
        storage.written = True
        if len(storage.variables) > 1:
            if storage.carried != storage.element.register:
                value = self.s.cast(value, storage.carried)
            helper = self._helper(storage, "store", None, self._carried_store, storage.carried)
            self.module.result(
                Op.FUNCTION_CALL, self.module.type(Op.TYPE_VOID), helper, self.s.cast(index, INT32).id, value.id
            )
        else:
            self._write(storage, storage.variables[0], index, value.id)

    def atomic_add(self, storage: Storage, index: Value, value: Value) -> Value:
        """What was there before; of 32-bit ints."""
        storage.written = True
        if len(storage.variables) == 1:
            return self._add(storage, storage.variables[0], index, value)
        helper = self._helper(storage, "add", storage.dtype, self._add, storage.dtype)
        type_, index = self.module.scalar_type(storage.dtype), self.s.cast(index, INT32)
        return Value(self.s, self.module.result(Op.FUNCTION_CALL, type_, helper, index.id, value.id), storage.dtype)

    def address(self, storage: Storage, variable: int, index: Value) -> int:
        element = self.module.scalar_type(UINT32 if storage.packed else storage.element)
        path = [index.id]
        if storage.storage_class == StorageClass.STORAGE_BUFFER:
            path.insert(0, self.module.constant(0, UINT32))
        pointer = self.module.pointer(storage.storage_class, element)
        return self.module.pure(Op.ACCESS_CHAIN, pointer, variable, *path)

    def load_quad(self, storage: Storage, index: Value) -> tuple[Value, ...]:
        """Four elements; `index`, that of the first one, is a multiple of four."""
        module = self.module
        if not storage.quads:
            storage.quads = self._bound(f"{storage.name}_quads", storage.element, QUAD, storage.binding)
        element = module.scalar_type(storage.element)
        vector = module.type(Op.TYPE_VECTOR, element, QUAD)
        pointer = module.pointer(StorageClass.STORAGE_BUFFER, vector)
        place = self.s.shift_right(index, self.s.const(2, index.dtype))
        address = module.pure(Op.ACCESS_CHAIN, pointer, storage.quads, module.constant(0, UINT32), place.id)
        loaded = module.result(Op.LOAD, vector, address)
        return tuple(
            Value(self.s, module.pure(Op.COMPOSITE_EXTRACT, element, loaded, lane), storage.dtype)
            for lane in range(QUAD)
        )

    def _read(self, storage: Storage, variable: int, index: Value) -> int:
        """The element, small ints widened."""
        element = storage.element
        if storage.packed:
            changes = storage.written or storage.overlaid
            return read_part(self.s, element, index, lambda word: self.address(storage, variable, word), shared=changes)
        id_ = self.module.result(Op.LOAD, self.module.scalar_type(element), self.address(storage, variable, index))
        if element.register != element:
            op = Op.S_CONVERT if element.kind == "int" else Op.U_CONVERT
            id_ = self.module.pure(op, self.module.scalar_type(element.register), id_)
        return id_

    def _write(self, storage: Storage, variable: int, index: Value, id_: int) -> None:
        element = storage.element
        if storage.packed:
            write_part(self.s, element, index, id_, lambda word: self.address(storage, variable, word))
            return
        if element.register != element:
            op = Op.S_CONVERT if element.kind == "int" else Op.U_CONVERT
            id_ = self.module.pure(op, self.module.scalar_type(element), id_)
        self.module.emit(Op.STORE, self.address(storage, variable, index), id_)

    def _add(self, storage: Storage, variable: int, index: Value, value: Value) -> Value:
        shared = storage.storage_class == StorageClass.WORKGROUP
        scope = self.module.constant(WORKGROUP_SCOPE if shared else DEVICE_SCOPE, UINT32)
        type_, pointer = self.module.scalar_type(storage.dtype), self.address(storage, variable, index)
        relaxed = self.module.constant(0, UINT32)
        id_ = self.module.result(Op.ATOMIC_I_ADD, type_, pointer, scope, relaxed, value.id)
        return Value(self.s, id_, storage.dtype)

    def _value(self, id_: int, dtype: DType) -> Value:
        if dtype == BOOL:
            # Tested in 32 bits, whatever its storage.
            return self.s.compare("ne", Value(self.s, id_, UINT32), self.s.const(0, UINT32))
        return Value(self.s, id_, dtype)

    # --- elements of buffers with windows
    def _carried_load(self, storage: Storage, variable: int, index: Value) -> Value:
        loaded = Value(self.s, self._read(storage, variable, index), storage.element)
        return self.s.cast(loaded, FLOAT32) if storage.element == FLOAT16 else loaded

    def _carried_store(self, storage: Storage, variable: int, index: Value, value: Value) -> None:
        if storage.element == FLOAT16:
            value = self.s.cast(value, FLOAT16)
        self._write(storage, variable, index, value.id)

    def _helper(
        self, storage: Storage, name: str, result: DType | None, access: Callable[..., Value | None], *values: DType
    ) -> int:
        """The function that finds the window of an element and does `access` there: written once a buffer."""
        if name in storage.helpers:
            return storage.helpers[name]
        module, s = self.module, self.s
        type_ = module.type(Op.TYPE_VOID) if result is None else module.scalar_type(result)
        types = [module.scalar_type(INT32), *map(module.scalar_type, values)]
        split = Value(s, module.flag(SPLIT, "split"), BOOL)
        with module.helper(f"{name}_of_windows", type_, *types) as (id_, (first, *rest)):
            index = Value(s, first, INT32)
            given = [Value(s, item, dtype) for item, dtype in zip(rest, values, strict=True)]

            def within(number: int) -> tuple[Value, ...]:
                start = s.const(number * storage.window, INT32)
                value = access(storage, storage.variables[number], index - start if number else index, *given)
                return () if value is None else (value,)

            def among(first: int, last: int) -> tuple[Value, ...]:
                if first == last:
                    return within(first)
                middle = (first + last + 1) // 2
                behind = s.compare("ge", index, s.const(middle * storage.window, INT32))
                return choose(s, behind, lambda: among(middle, last), lambda: among(first, middle - 1))

            found = choose(s, split, lambda: among(0, len(storage.variables) - 1), lambda: within(0))
            if result is None:
                module.leave()
            else:
                module.leave_with(found[0].id)
        storage.helpers[name] = id_
        return id_

    def builtin(self, which: BuiltIn, axis: int) -> Value:
        """A component of a built-in vector, as uint32."""
        module = self.module
        word = module.scalar_type(UINT32)
        variable = self._builtin(which, module.type(Op.TYPE_VECTOR, word, 3))
        component = module.pointer(StorageClass.INPUT, word)
        address = module.pure(Op.ACCESS_CHAIN, component, variable, module.constant(axis, UINT32))
        return Value(self.s, module.pure(Op.LOAD, word, address), UINT32)

    def builtin_scalar(self, which: BuiltIn) -> Value:
        """A built-in uint32."""
        word = self.module.scalar_type(UINT32)
        return Value(self.s, self.module.pure(Op.LOAD, word, self._builtin(which, word)), UINT32)

    def _builtin(self, which: BuiltIn, type_: int) -> int:
        """The variable of a built-in."""
        module = self.module
        if which not in self._builtins:
            pointer = module.pointer(StorageClass.INPUT, type_)
            variable = self._builtins[which] = module.variable(pointer, StorageClass.INPUT)
            module.decorate(variable, Decoration.BUILT_IN, which)
            module.name(variable, which.name.lower())
            module.interface.append(variable)
        return self._builtins[which]

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
        for member, item in enumerate(fields):
            module.member_offset(block, member, item.offset)
        variable = module.variable(module.pointer(StorageClass.PUSH_CONSTANT, block), StorageClass.PUSH_CONSTANT)
        module.name(variable, "push_constants")
        values = []
        for member, (type_, (_, name, dtype)) in enumerate(zip(types, parameters, strict=True)):
            pointer = module.pointer(StorageClass.PUSH_CONSTANT, type_)
            address = module.pure(Op.ACCESS_CHAIN, pointer, variable, module.constant(member, UINT32))
            loaded = module.pure(Op.LOAD, type_, address)
            module.name(loaded, name)
            values.append(self._value(loaded, dtype))
        return fields, values
