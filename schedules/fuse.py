"""Placing ops inside loop nests: the expression of any value of a fused group at any index.

`Inline` composes the element-wise meaning of a group's ops, so that a fused group is one loop nest with no buffers
for what lies between. A schedule with loops of its own (matmul, convolution) gives the anchor's result through
`anchored` and lets `Inline` compute the epilogue on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx import analysis
from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim, dim_min
from transpiler.group import Group, Lowered
from transpiler.ir import Node, TensorType, Value
from transpiler.ops.base import Elementwise, Injective
from transpiler.ops.dtypes import HALF, numpy_dtype
from transpiler.plan import Kernel

from .scalar import VECTOR_FUNCTIONS, Tir, opaque_comparison, opaque_zero
from .sizes import ceil_div, count, extent, extents, is_empty, is_fixed, smaller, symbol_parameters
from .tir import LANES, KernelBuilder, Operands, flat_offset, loop, unflatten, value_dtype, vector_loop

Expr = Any
Index = Sequence[Expr]

# Elements of a piece of a long last dim that stands alone.
CHUNK = 1024


class Probe(Tir):
    """Evaluates an expression without emitting anything, to learn what it needs.

    `scalar_only` is set by operations that cannot stand in a vector loop over `lane`: guards that depend on it,
    indices from data, calls of libm. `cost` counts operations, `binds` the dtypes of the temporaries.
    """

    def __init__(self, lane: Expr | None = None, *, outer: Probe | None = None) -> None:
        super().__init__(statements=outer is None)
        self.scalar_only = False
        self.cost = 0
        self.binds: list[str] = []
        self._lane = lane
        self._outer = outer
        # What stands for values that depend on the lane.
        self._varying: list[Expr] = outer._varying if outer is not None else [] if lane is None else [lane]

    def _note(self, cost: int, scalar_only: bool = False) -> None:
        self.cost += cost
        self.scalar_only |= scalar_only
        if self._outer is not None:
            self._outer._note(cost, scalar_only)

    def quiet(self) -> Tir:
        return Probe(self._lane, outer=self) if self.statements else self

    def bind(self, x: Expr) -> Expr:
        if isinstance(x, int | float | tirx.IntImm | tirx.FloatImm):
            return x
        if self.statements:
            self.binds.append(self.dtype(x))
        return self._stand_in("bound", x)

    def _stand_in(self, name: str, x: Expr) -> Expr:
        """A variable in the place of `x`, which depends on the lane if `x` does."""
        variable = tirx.Var(name, value_dtype(self.dtype(x)))
        if self._varies(x):
            self._varying.append(variable)
        return variable

    def _varies(self, x: Expr) -> bool:
        if isinstance(x, bool | int | float):
            return False
        return any(any(used.same_as(item) for item in self._varying) for used in analysis.undefined_vars(x))

    def guarded(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        self._note(1, self._varies(condition))
        return then

    def divisor(self, value: Expr) -> Expr:
        self._note(2, True)
        return tirx.Var("divisor", self.dtype(value))

    def index(self, value: Expr, size: Any, wraps: bool = True) -> Expr:
        self._note(4, True)
        return tirx.const(0, "int32")

    VECTOR_CALLS = VECTOR_FUNCTIONS | {"sqrt", "rsqrt", "floor", "ceil", "trunc", "round", "abs", "isnan", "isinf"}

    def call(self, function: str, *args: Expr) -> Expr:
        dtype = self.dtype(args[0])
        vector = function in self.VECTOR_CALLS or (function == "pow" and isinstance(args[1], tirx.FloatImm))
        if dtype == "float64" and function in VECTOR_FUNCTIONS:
            vector = False
        self._note(10, not vector)
        return self._stand_in("called", super().call(function, *args))


class Inline:
    """Expressions for the values of `group` inside a kernel.

    `anchored` maps the name of the anchor's output to a function of the index that gives its element. Values that are
    used more than once at statement level are bound to a temporary.
    """

    def __init__(
        self,
        group: Group,
        builder: Operands,
        s: Tir,
        anchored: Mapping[str, Callable[[Index], Expr]] | None = None,
    ) -> None:
        self.group, self.builder, self.s = group, builder, s
        self.anchored = dict(anchored or {})
        self._producers = {value.name: node for node in group.nodes for value in node.outputs}
        self._uses: dict[str, int] = {}
        for node in group.nodes:
            for value in node.inputs:
                self._uses[value.name] = self._uses.get(value.name, 0) + 1
        self._memo: dict[tuple[str, tuple[int, ...]], tuple[Expr, Index]] = {}

    def value(self, value: Value, index: Index) -> Expr:
        """The element of `value` at `index` (one entry per dim, ints or expressions), at statement level."""
        return self._evaluate(value, index, self.s)

    def load(self, value: Value, *, s: Tir | None = None) -> Callable[..., Expr]:
        """A function of the index that reads `value` as one pure expression: safe inside a guard."""
        quiet = s or self.s.quiet()
        return lambda *index: self._evaluate(value, index, quiet)

    def _evaluate(self, value: Value, index: Index, s: Tir) -> Expr:
        if value.name in self.anchored:
            return self.anchored[value.name](index)
        shape = value.type.shape
        index = [0 if size == 1 else position for position, size in zip(index, shape, strict=True)]
        node = self._producers.get(value.name)
        if node is None:
            buffer = self.builder.inputs[self.group.input_index(value)]
            return buffer[flat_offset(index, shape)]
        key = (value.name, tuple(id(position) for position in index))
        if s.statements and key in self._memo:
            return self._memo[key][0]
        if isinstance(node.op, Elementwise):
            elements = [
                self._evaluate(item, index[len(index) - item.type.rank :] if item.type.rank else (), s)
                for item in node.inputs
            ]
            result = _apply(node, s, elements)
        elif isinstance(node.op, Injective):
            loads = [self.load(item, s=None if s.statements else s) for item in node.inputs]
            result = node.op.element(s, loads, [item.type for item in node.inputs], index)
            result = opaque_zero(result) if not node.inputs else result
        else:
            raise TypeError(f"{node.op.name} has loops of its own and cannot be inlined")
        if s.statements:
            if self._uses.get(value.name, 0) > 1:
                result = s.bind(result)
            # `index` is kept alive so that its ids stay unique.
            self._memo[key] = (result, index)
        return result


def _apply(node: Node, s: Tir, elements: list[Expr]) -> Expr:
    """One element of an element-wise node, in a form that TVM's simplifier takes no liberties with.

    It assumes that floats are no NaN: it turns `x == x` into true and `x - x` into 0. So the same float does not come
    twice, and nothing is concluded from comparisons.
    """
    assert isinstance(node.op, Elementwise)
    names = [value.name for value in node.inputs]
    for position, value in enumerate(node.inputs):
        if value.name in names[:position] and value.type.is_float and value.dtype not in HALF:
            bits = f"uint{value.dtype.removeprefix('float')}"
            elements[position] = s.reinterpret(s.reinterpret(elements[position], bits), value.dtype)
    return opaque_comparison(node.op.scalar(s, *elements))


def probe(group: Group, builder: Operands, value: Value, anchor: Value | None = None) -> Probe:
    """What computing one element of `value` needs; `anchor` is taken as given."""
    index = probe_index(value.type.rank)
    probed = Probe(index[-1] if index else None)
    anchored = {anchor.name: lambda _index: probed.bind(tirx.Var("result", anchor.dtype))} if anchor else {}
    Inline(group, builder, probed, anchored).value(value, index)
    return probed


def probe_index(rank: int) -> list[Expr]:
    """Placeholder index variables."""
    return [tirx.Var(f"p{axis}", "int32") for axis in range(rank)]


def needs_status(group: Group) -> bool:
    """Whether data that do not fit any op of the group are reported."""
    return any(getattr(node.op, "checks_index", False) for node in group.nodes)


def output_loops(
    shape: Sequence[Dim],
    body: Callable[[list[Expr]], None],
    *,
    vector: bool,
    parallel: bool,
    temporaries: Sequence[str] = (),
) -> None:
    """Loops over all of `shape`; `body(index)` runs per element (in a vector loop: per lane).

    The last dim is the inner loop, LANES at a time if `vector`; the dims before it are fused into one loop, which is
    split over the threads if `parallel`. A long last dim is cut into chunks first, so that there is an outer loop.
    """
    if is_empty(shape):
        return
    *outer_shape, last = shape or (1,)
    inner = extent(last)
    chunk = inner
    outer_count = count(outer_shape)
    if isinstance(outer_count, int) and outer_count < 16:
        if not is_fixed(inner):
            chunk = CHUNK
        elif inner >= 2 * CHUNK:
            chunk = next((size for size in (1024, 1000, 896, 960, 800, 784, 768, 640, 512) if inner % size == 0), inner)
    chunks = ceil_div(inner, chunk) if isinstance(chunk, int) else 1
    outer = [*extents(outer_shape), chunks]
    rank = len(shape)

    def at(fused: Expr, position: Expr) -> list[Expr]:
        *leading, chunk_index = unflatten(fused, outer)
        return [*leading, chunk_index * chunk + position] if rank else []

    with loop(count(outer), parallel=parallel and not (is_fixed(*outer) and count(outer) == 1)) as fused:
        length = chunk
        if is_fixed(chunk) and not is_fixed(inner):  # the last chunk may be short
            length = T.bind(smaller(chunk, inner - tirx.floormod(fused, chunks) * chunk))
        main = length // LANES * LANES if vector else 0
        if not is_fixed(main) or main:
            with T.serial(0, main // LANES) as step, vector_loop(LANES, temporaries) as lane:
                body(at(fused, step * LANES + lane))
        if not is_fixed(length - main) or length - main:
            with T.serial(0, length - main) as rest:
                body(at(fused, rest if is_fixed(main) and main == 0 else main + rest))


def merge_dims(shapes: Sequence[tuple[Dim, ...]], full: tuple[Dim, ...]) -> list[list[int]]:
    """Runs of axes of `full` that can be one loop: in every (broadcast) shape all of the run is there or all is 1."""
    rank = len(full)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    runs: list[list[int]] = []
    for axis in range(rank):
        same = runs and all(
            (shape[axis] == 1) == all(shape[other] == 1 for other in runs[-1])
            or full[axis] == 1
            or all(full[other] == 1 for other in runs[-1])
            for shape in padded
        )
        if same:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs


def describe(
    group: Group,
    name: str,
    *,
    flops: Dim,
    reread: Dim = 0,
    workspace: Dim = 0,
    checks_index: bool = False,
    in_place: bool = False,
) -> Kernel:
    """The kernel record; `workspace` and `reread`, the weights that a call reads again, in bytes."""
    moved: Dim = 0
    for value in group.inputs:
        moved = moved + (_bytes(value.type) if group.anchor is not None else _read(group, value))
    # In place, what is read is written, and no more.
    for value in group.inputs if in_place else group.outputs:
        moved = moved + _bytes(value.type)
    return Kernel(
        name=name,
        inputs=tuple(value.type for value in group.inputs),
        outputs=tuple(value.type for value in group.outputs),
        summary=" + ".join(node.op.name for node in group.nodes if node.op.name not in ("reshape", "widen")),
        workspace=workspace,
        checks_index=checks_index,
        flops=flops,
        bytes=moved,
        reread_bytes=reread,
        symbols=tuple(symbol_parameters()),
        in_place=in_place,
    )


def _read(group: Group, value: Value) -> Dim:
    """Bytes of `value` that a group without loops of its own reads: at most an element per use and output element, a
    few rows of a large table."""
    uses = sum(used.name == value.name for node in group.nodes for used in node.inputs)
    written = sum(count(output.type.shape) for output in group.outputs)
    read: Dim = dim_min(count(value.type.shape), written * uses) * numpy_dtype(value.dtype).itemsize
    return read


def _bytes(type_: TensorType) -> Dim:
    size: Dim = count(type_.shape) * numpy_dtype(type_.dtype).itemsize
    return size


def lowered(
    group: Group,
    builder: KernelBuilder,
    *,
    flops: Dim,
    reread: Dim = 0,
    workspace: Dim = 0,
    in_place: bool = False,
) -> Lowered:
    """`Lowered` of a finished builder; see `describe`."""
    kernel = describe(
        group,
        builder.name,
        flops=flops,
        reread=reread,
        workspace=workspace,
        checks_index=builder.checks_index,
        in_place=in_place,
    )
    return Lowered(kernel, builder.function, tensor_maps=tuple(builder.tensor_maps))
