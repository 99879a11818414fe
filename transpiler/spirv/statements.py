"""TIR statements -> the blocks of a kernel. One method per node; a node without one is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import ir, tirx
from tvm.tirx.stmt import ForKind

from .arithmetic import Arithmetic, Value
from .bounds import Bounds, is_innermost
from .control import Loop, choose, loop, repeat_while
from .dtypes import INT32, UINT32, parse, unsupported
from .expressions import Lanes, dtype_of
from .memory import Memory
from .opcodes import (
    ACQUIRE_RELEASE,
    UNIFORM_MEMORY,
    WORKGROUP_MEMORY,
    WORKGROUP_SCOPE,
    BuiltIn,
    Op,
)
from .subgroups import Subgroups

MAX_GROUPS = 65535  # what every Vulkan device has on each axis
_AXES = "xyz"
# Attributes that say nothing about what is computed.
_IGNORED_ATTRIBUTES = frozenset({"reduce_scope", "pragma_import_c", "storage_alignment", "volatile_scope", "target"})


@dataclass
class Launch:
    """What the function says about its workgroups."""

    workgroup: list[int] = field(default_factory=lambda: [1, 1, 1])
    grid: list[int | None] = field(default_factory=lambda: [1, 1, 1])
    folded: int | None = None
    indices: dict[str, Value] = field(default_factory=dict)


class Statements(Subgroups):
    """Writes a function's body; `tags` are the thread axes that the function launches. Innermost loops are unrolled
    `unroll` times."""

    def __init__(self, s: Arithmetic, memory: Memory, tags: tuple[str, ...], unroll: int = 1) -> None:
        super().__init__(s, memory)
        self.tags, self.unroll = tags, unroll
        self.bounds = Bounds()
        self.launch = Launch()
        self.loops: list[Loop] = []

    def statement(self, node: Any) -> None:
        kind = type(node).__name__
        method: Callable[[Any], None] | None = getattr(self, f"_do_{kind}", None)
        if method is None:
            raise unsupported(f"the statement {kind}: {node}")
        method(node)

    def _do_SeqStmt(self, node: Any) -> None:
        for child in node.seq:
            if not self.s.module.open:
                return  # behind a break or a continue
            self.statement(child)

    def _do_Bind(self, node: Any) -> None:
        self.variables[node.var] = self.visit(node.value)

    def _do_AssertStmt(self, node: Any) -> None:
        raise unsupported(f"a check on the device: {node}")

    # --- threads
    def _do_AttrStmt(self, node: Any) -> None:
        if node.attr_key == "thread_extent":
            self._thread(node)
        elif node.attr_key not in _IGNORED_ATTRIBUTES:
            raise unsupported(f"the attribute {node.attr_key}")
        self.statement(node.body)

    def _thread(self, node: Any) -> None:
        tag, variable = str(node.node.thread_tag), node.node.var
        if tag not in self.launch.indices:
            prefix, _, letter = tag.partition(".")
            if prefix not in ("blockIdx", "threadIdx") or letter not in _AXES:
                raise unsupported(f"the thread axis {tag}")
            bind = self._local_index if prefix == "threadIdx" else self._group_index
            self.launch.indices[tag] = bind(_AXES.index(letter), node.value)
        dtype, _ = dtype_of(variable)
        self.bounds.thread(variable, node.value)
        self.variables[variable] = (self.s.cast(self.launch.indices[tag], dtype),)

    def _local_index(self, axis: int, extent: Any) -> Value:
        if not isinstance(extent, tirx.IntImm):
            raise unsupported(f"a workgroup whose size is not known: {extent}")
        self.launch.workgroup[axis] = int(extent.value)
        return self._int32(self.memory.builtin(BuiltIn.LOCAL_INVOCATION_ID, axis))

    def _group_index(self, axis: int, extent: Any) -> Value:
        """The workgroup's index. Where there may be more than an axis has, axis 0 goes on along an unused one."""
        fixed = isinstance(extent, tirx.IntImm)
        self.launch.grid[axis] = int(extent.value) if fixed else None
        index = self._int32(self.memory.builtin(BuiltIn.WORKGROUP_ID, axis))
        if fixed and int(extent.value) <= MAX_GROUPS:
            return index
        free = [other for other in (2, 1) if f"blockIdx.{_AXES[other]}" not in self.tags]
        if axis != 0 or not free:
            if fixed:
                raise unsupported(f"{extent} workgroups on axis {_AXES[axis]}")
            return index
        self.launch.folded = free[0]
        row = self._int32(self.memory.builtin(BuiltIn.WORKGROUP_ID, free[0]))
        width = self._int32(self.memory.builtin(BuiltIn.NUM_WORKGROUPS, 0))
        index = index + row * width
        count = self.s.cast(self.scalar(extent), INT32)
        choose(self.s, self.s.compare("ge", index, count), self._leave, tuple)
        return index

    def _int32(self, x: Value) -> Value:
        return self.s.cast(x, INT32)

    def _leave(self) -> Lanes:
        self.s.module.leave()
        return ()

    # --- memory
    def _do_AllocBuffer(self, node: Any) -> None:
        buffer, size = node.buffer, 1
        for extent in buffer.shape:
            if not isinstance(extent, tirx.IntImm):
                raise unsupported(f"the array {buffer.name}, whose size is not known")
            size *= int(extent.value)
        scope = buffer.scope() if callable(buffer.scope) else str(buffer.scope)
        if scope.partition("_")[0] not in ("shared", "local", "global", "shared.dyn", "shared.unwatched"):
            raise unsupported(f"memory of scope {scope!r}")
        dtype, lanes = parse(str(buffer.dtype))
        if lanes != 1:
            raise unsupported(f"the array {buffer.name} of vectors")
        shared = scope.startswith("shared")
        self.storages[buffer] = self.memory.array(buffer.name, dtype, size, shared=shared)

    def _do_DeclBuffer(self, node: Any) -> None:
        """Another name for memory that is there."""
        data = node.data
        while isinstance(data, ir.Call):
            data = data.args[0]
        storage, dtype = self.storage(data), parse(str(node.buffer.dtype))
        if dtype != (storage.dtype, 1):
            raise unsupported(f"{node.buffer.name}: memory of {storage.dtype} seen as {node.buffer.dtype}")
        offset = node.buffer.elem_offset
        if offset is not None and not (isinstance(offset, tirx.IntImm) and offset.value == 0):
            raise unsupported(f"the view {node.buffer.name} from element {offset} on")
        self.storages[node.buffer] = storage

    def _do_BufferStore(self, node: Any) -> None:
        if getattr(node, "predicate", None) is not None:
            raise unsupported("a store under a mask")
        storage, values = self.storage(node.buffer), self.visit(node.value)
        index = self.index(node.indices)
        if len(values) != len(index):
            raise unsupported(f"{len(values)} values stored to {len(index)} places")
        for place, value in zip(index, values, strict=True):
            self.memory.store(storage, place, value)

    # --- control flow
    def _do_IfThenElse(self, node: Any) -> None:
        otherwise = node.else_case
        choose(
            self.s,
            self.scalar(node.condition),
            lambda: self._block(node.then_case),
            lambda: self._block(otherwise) if otherwise is not None else (),
        )

    def _block(self, node: Any) -> Lanes:
        self.statement(node)
        return ()

    def _do_For(self, node: Any) -> None:
        kind = ForKind(node.kind)
        # Inside of a thread, turns that may run at once run one after the other.
        if kind not in (ForKind.SERIAL, ForKind.UNROLLED, ForKind.PARALLEL):
            raise unsupported(f"a loop of kind {kind.name}")
        start, extent = self.scalar(node.min), self.scalar(node.extent)
        stride = self.scalar(node.step) if getattr(node, "step", None) is not None else None
        stop = extent if start.literal == 0 else start + extent
        most = self.bounds.most(node)
        uniform = self.bounds.uniform(node)
        if self.unroll > 1 and stride is None and is_innermost(node.body):
            self._unrolled(node, start, stop, extent, most, uniform)
            return
        self._loop_over(node, start, stop, stride, [], most, uniform)

    def _unrolled(self, node: Any, start: Value, stop: Value, extent: Value, most: int | None, uniform: bool) -> None:
        """`unroll` bodies a turn; what is left over has none if the number of turns is known."""
        one, times = self.s.const(1, stop.dtype), self.s.const(self.unroll, stop.dtype)
        steps = [one] * (self.unroll - 1)
        if isinstance(node.extent, tirx.IntImm):
            turns, left = divmod(int(node.extent.value), self.unroll)
            whole = start + self.s.const(turns * self.unroll, stop.dtype)
            if turns:
                self._loop_over(node, start, whole, times, steps, turns, uniform)
            for number in range(left):
                self.variables[node.loop_var] = (whole + self.s.const(number, stop.dtype),)
                self.statement(node.body)
            return
        whole = start + self.s.divide(extent, times) * times
        self._loop_over(node, start, whole, times, steps, None if most is None else most // self.unroll, uniform)
        self._loop_over(node, whole, stop, None, [], self.unroll - 1, uniform)

    def _loop_over(
        self,
        node: Any,
        start: Value,
        stop: Value,
        stride: Value | None,
        steps: Sequence[Value],
        most: int | None,
        uniform: bool,
    ) -> None:
        """The body from `start` to `stop`, once more behind each of `steps`."""

        def body(index: Value, state: Sequence[Value]) -> Lanes:
            self.s.module.name(index.id, node.loop_var.name)
            self.variables[node.loop_var] = (index,)
            self.statement(node.body)
            for step in steps:
                index = index + step
                self.variables[node.loop_var] = (index,)
                self.statement(node.body)
            self.loops.pop()
            return ()

        loop(
            self.s, stop, (), body, start=start, stride=stride, entered=self.loops.append, most=most, uniform=uniform
        )  # fmt: skip

    def _do_While(self, node: Any) -> None:
        def body(labels: Loop) -> None:
            self.loops.append(labels)
            self.statement(node.body)
            self.loops.pop()

        repeat_while(self.s, lambda: self.scalar(node.condition), body)

    def _do_Break(self, node: Any) -> None:
        self.s.module.branch(self._loop().merge)

    def _do_Continue(self, node: Any) -> None:
        self.s.module.branch(self._loop().next)

    def _loop(self) -> Loop:
        if not self.loops:
            raise unsupported("a break or a continue outside of a loop")
        return self.loops[-1]

    def _call_break_loop(self, node: Any) -> Lanes:
        self._do_Break(node)
        return ()

    def _call_continue_loop(self, node: Any) -> Lanes:
        self._do_Continue(node)
        return ()

    # --- calls for their effect
    def _do_Evaluate(self, node: Any) -> None:
        if isinstance(node.value, ir.Call):
            self.visit(node.value)
        elif not isinstance(node.value, tirx.IntImm):
            raise unsupported(f"the statement {node}")

    def _call_tvm_storage_sync(self, node: Any, scope: Any, *rest: Any) -> Lanes:
        """A barrier of the workgroup, for its memory and for buffers."""
        if str(scope.value) not in ("shared", "shared.dyn"):
            raise unsupported(f"a barrier of scope {scope.value!r}")
        workgroup = self.s.const(WORKGROUP_SCOPE, UINT32)
        semantics = self.s.const(ACQUIRE_RELEASE | UNIFORM_MEMORY | WORKGROUP_MEMORY, UINT32)
        self.s.module.emit(Op.CONTROL_BARRIER, workgroup.id, workgroup.id, semantics.id)
        return ()

    def _call_atomic_add(self, node: Any, address: Any, value: Any) -> Lanes:
        """Adds to a 32-bit int and gives what was there."""
        place = address.args[0]
        buffer = place.buffer if hasattr(place, "buffer") else place.source
        storage, (index,) = self.storage(buffer), self.index(place.indices)
        addend = self.scalar(value)
        if storage.dtype not in (INT32, UINT32):
            raise unsupported(f"atomic addition of {storage.dtype}")
        return (self.memory.atomic_add(storage, index, addend),)
