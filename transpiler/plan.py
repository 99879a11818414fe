"""The kernel plan: which kernels a function calls, in which order, and where every value lives.

Both emitted forms of a function, the readable `model.py` and the native entry's table, are printed from one
`KernelPlan`, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transpiler.dims import Dim, SymbolRange
from transpiler.errors import Location
from transpiler.ir import Graph, Input, Layout, Role, Tap, TensorType, Value

__all__ = [
    "Block", "Call", "Kernel", "KernelPlan", "Layout", "StateSlot", "Step", "Storage", "Tap", "View",
    "output_names", "storage_of",
]  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """One compiled function
    `int32_t name(const void *in..., void *out..., [void *workspace], [int32_t *status], [int32_t symbol...])`.

    `workspace` is the scratch it needs in bytes (0: no such parameter). A kernel with `checks_index` writes 1 to
    `status` where an index was out of bounds. One that runs `in_place` finds the old content of its only output there
    and changes a part of it; if an index is out of bounds it changes nothing. `flops` and `bytes` are what one call
    of the algorithm that was chosen computes and moves at least, every input read once; `reread_bytes` are the weights
    that it reads again, step by step.
    `symbols` are the sizes it takes as parameters; the other sizes are expressions over them.
    """

    name: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    summary: str
    workspace: Dim = 0
    checks_index: bool = False
    flops: Dim = 0
    bytes: Dim = 0
    reread_bytes: Dim = 0
    symbols: tuple[str, ...] = ()
    in_place: bool = False


@dataclass(frozen=True)
class StateSlot:
    """A buffer that outlives a call: `value` is its content at the start of one, at byte `offset` of the state.

    It starts as the prepared weight `initial`, or as zeros if that is empty.
    """

    key: str
    value: Value
    offset: int
    initial: str = ""


@dataclass(frozen=True)
class Block:
    """Memory of the arena that the runtime places: `size` bytes of elements of `width` bytes, in use from call `first`
    to call `last`."""

    name: str
    size: Dim
    width: int
    first: int
    last: int


@dataclass(frozen=True)
class Call:
    """One kernel call. `covers` lists the source lines of every node that was fused into it, in order.
    Its workspace is at byte `workspace_offset` of the arena, or in the block of that number if the plan has blocks.
    `into` is the value that a kernel in place changes, whose memory is the output's."""

    kernel: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    covers: tuple[Location, ...] = ()
    workspace_offset: int = 0
    into: Value | None = None


@dataclass(frozen=True)
class View:
    """`output` is `input` under another shape: the same bytes, no code."""

    input: Value
    output: Value


Step = Call | View


@dataclass(frozen=True)
class Storage:
    """Where a value lives: `kind` "input"/"output" (with `index` among the flat user ones), "weight" (at byte
    `offset` of the prepared weights), "state" or "arena" (at byte `offset` of it) or "block" (`index`)."""

    kind: str
    index: int = 0
    offset: int = 0


@dataclass(frozen=True)
class KernelPlan:
    """A function, ready to be emitted.

    `weights` are the prepared tensors in file order (their values are the outputs of `prepare`); `fused` maps a
    module path that has no value of its own any more to the nearest path in `taps`. If sizes vary, `symbols` are
    their bounds by name and `blocks` is the arena, which has no offsets yet. `updates` are the states whose new content
    is copied into them when all calls are done; others are written in place.

    `target` is what it was made for. `weights_file` is the file that has the weights in its layout, under the names of
    `stored` where those are others: targets of one package share a file (`transpiler.parts`).
    The functions of a program have `kernels`, `weights`, `prepare` and `state` in common: each plan holds all of them.
    """

    function: str
    kernels: tuple[Kernel, ...]
    steps: tuple[Step, ...]
    inputs: tuple[Input, ...]  # the user's in flat order, then the state of the random generator if there is one
    outputs: tuple[Value, ...]  # the user's, in flat order
    weights: tuple[Value, ...]
    prepare: Graph
    storage: Mapping[str, Storage]
    arena_bytes: int
    weight_bytes: int
    taps: Mapping[str, Tap] = field(default_factory=dict)
    fused: Mapping[str, str] = field(default_factory=dict)
    symbols: Mapping[str, SymbolRange] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    state: tuple[StateSlot, ...] = ()
    state_bytes: int = 0
    updates: Mapping[str, Value] = field(default_factory=dict)
    target: str = "cpu"
    weights_file: str = "weights.cpu.safetensors"
    stored: Mapping[str, str] = field(default_factory=dict)

    @property
    def user_inputs(self) -> tuple[Input, ...]:
        return tuple(item for item in self.inputs if item.role is Role.USER)

    def kernel(self, name: str) -> Kernel:
        return next(kernel for kernel in self.kernels if kernel.name == name)

    def calls(self) -> tuple[Call, ...]:
        return tuple(step for step in self.steps if isinstance(step, Call))


def storage_of(plan: KernelPlan, value: Value) -> Storage:
    """Where `value` lives; a view lives where its input does unless the plan says otherwise."""
    if value.name not in plan.storage:
        views = {step.output.name: step.input for step in plan.steps if isinstance(step, View)}
        while value.name not in plan.storage:
            value = views[value.name]
    return plan.storage[value.name]


def output_names(plan: KernelPlan) -> tuple[str, ...]:
    """A name per flat output: the user's variable where there is one and it is unique, else `output<i>`."""
    hints = [value.hint for value in plan.outputs]
    return tuple(
        hint if hint and hint.isidentifier() and hints.count(hint) == 1 else f"output{index}"
        for index, hint in enumerate(hints)
    )
