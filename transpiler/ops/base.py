"""What an op is: attributes, ATen names, type rule, numpy reference, element-wise meaning, conformance samples.

One op is one subclass of `Op` in one file of its family; `REGISTRY` maps its name to it and `ATEN` maps ATen overload
names to the function that imports them. Torch and TVM are not imported here: an importer works on names and values,
and the TIR meaning of an op is written against the `Scalar` protocol that `transpiler.lower` implements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, dataclass_transform

import numpy as np

from transpiler.dims import Dim, SymExpr
from transpiler.ir import Array, TensorType, Value

Attribute = None | bool | int | float | str | SymExpr | tuple["Attribute", ...]

REGISTRY: dict[str, type[Op]] = {}
ATEN: dict[str, Callable[..., Any]] = {}


class OpError(ValueError):
    """Attributes or input types that the op does not take. The importer turns it into a user error."""


@dataclass(frozen=True)
class Sample:
    """One conformance case: the op with its attributes, and how its inputs are drawn.

    `inputs` holds an array per input. `exact` demands bitwise equality with the reference.
    """

    id: str
    op: Op
    inputs: tuple[Array, ...]
    exact: bool = False


# An element of a tensor as a target's expression (a TIR PrimExpr on every target of today).
Expr = Any
# Reads one element: `load(i, j, k)`.
Load = Callable[..., Expr]


class Scalar(Protocol):
    """Operations on target expressions. `+ - *`, `<` and friends work on the expressions directly."""

    def const(self, value: float | int | bool, dtype: str) -> Expr: ...
    def size(self, value: Dim) -> Expr:
        """A size as an index expression."""

    def dtype(self, x: Expr) -> str: ...
    def bind(self, x: Expr) -> Expr:
        """`x` as a value that is computed once where it is used several times; expressions are trees."""

    def cast(self, x: Expr, dtype: str) -> Expr:
        """PyTorch's CPU cast: truncation to ints, != 0 to bool."""

    def select(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        """Both sides are evaluated."""

    def guarded(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        """`then` (a load that may be out of bounds) is evaluated only where `condition` holds."""

    def call(self, function: str, *args: Expr) -> Expr:
        """exp, log, log1p, expm1, sqrt, rsqrt, sin, cos, tan, tanh, sigmoid, erf, pow, floor, ceil, trunc,
        round (half to even), abs, isnan, isinf, fmod, atan, atan2, asin, acos, sinh, cosh, ..."""

    def eq(self, a: Expr, b: Expr) -> Expr: ...
    def ne(self, a: Expr, b: Expr) -> Expr: ...
    def logical_and(self, a: Expr, b: Expr) -> Expr: ...
    def logical_or(self, a: Expr, b: Expr) -> Expr: ...
    def logical_not(self, a: Expr) -> Expr: ...
    def bitwise(self, operator: str, a: Expr, b: Expr) -> Expr:
        """operator: & | ^ << >>"""

    def wrapping(self, function: Callable[..., Expr], *x: Expr) -> Expr:
        """`function(*x)`, made of + - * alone; of integers with results that wrap around."""

    def divide(self, a: Expr, b: Expr) -> Expr:
        """True division of floats."""

    def divide_rounded(self, a: Expr, b: Expr) -> Expr:
        """The float nearest to the quotient, on devices too whose division gives a neighbour: for what jumps there."""

    def floordiv(self, a: Expr, b: Expr) -> Expr:
        """Rounds down."""

    def floormod(self, a: Expr, b: Expr) -> Expr: ...
    def truncdiv(self, a: Expr, b: Expr) -> Expr:
        """Rounds towards zero."""

    def divisor(self, value: Expr) -> Expr:
        """The integer `value`; 0 reports a ZeroDivisionError at run time and gives 1."""

    def maximum(self, a: Expr, b: Expr) -> Expr:
        """NaN if either is NaN."""

    def minimum(self, a: Expr, b: Expr) -> Expr: ...
    def index(self, value: Expr, size: Dim, wraps: bool = True) -> Expr:
        """`value` (int32 or int64) as an index into `size` elements: negative values count from the end if it `wraps`;
        one that is out of bounds reports an IndexError at run time and reads element 0."""


@dataclass_transform(frozen_default=True, kw_only_default=False)
@dataclass(frozen=True)
class Op:
    """Base of all ops. Subclasses are frozen dataclasses whose fields are the attributes.

    class LeakyRelu(Elementwise, name="leaky_relu", aten=["leaky_relu.default"]):
        slope: float = 0.01

    `aten` registers the default importer: tensor arguments become inputs in order, the remaining arguments fill the
    attributes in order or by keyword. Anything else is an explicit `@aten(...)` function.
    """

    name: ClassVar[str] = ""
    # Data may not fit (`Scalar.index`, `Scalar.divisor`): the kernel needs a status word to report it.
    checks_index: ClassVar[bool] = False
    # Arithmetic operations per output element, roughly: what recomputing it inside another loop costs.
    cost: ClassVar[int] = 1
    # Elements are copied as they are; all others compute half floats as float32 (see passes/half.py).
    moves: ClassVar[bool] = False
    # Attributes that texts leave out while they have their default.
    unsaid: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, *, name: str = "", aten: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True)(cls)
        if not name:
            return
        known = REGISTRY.get(name)
        # A user's model.py may be run again in one process.
        again = known is not None and known.__qualname__ == cls.__qualname__ and known.__module__ == cls.__module__
        if known is not None and (not again or cls.__module__.startswith("transpiler.")):
            raise ValueError(f"op {name!r} is registered twice")
        cls.name = name
        REGISTRY[name] = cls
        for overload in aten:
            register_aten(overload, lambda context, *args, _op=cls, **kw: import_default(context, _op, args, kw))

    # --- meaning -----------------------------------------------------------------------------------------------
    # Bases of a family leave some of these to their ops; that no op lacks one is for the conformance suite to show.
    def infer(self, *types: Any, **_: Any) -> TensorType | tuple[TensorType, ...]:
        """Output types from input types. Raises OpError for types the op does not take."""
        raise NotImplementedError(self.name)

    def reference(self, *inputs: Any, **_: Any) -> Array | tuple[Array, ...]:
        """The op's meaning in numpy: plain, obviously right, never fast. Computes in the input's dtype."""
        raise NotImplementedError(self.name)

    def host(self, *names: Any, **_: Any) -> str | None:
        """A numpy expression over the named arrays that computes this op in generated code, or None.

        Ops that have one can be moved into `prepare`, the graph that turns a state_dict into the packed weights.
        The names available are `np` and the functions of the generated package's `runtime/host.py`.
        """
        return None

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        """Conformance samples: every attribute, odd sizes, broadcasting, each dtype the op claims, corner values."""
        return iter(())

    def infer_types(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        result = self.infer(*types)
        return (result,) if isinstance(result, TensorType) else result

    def attributes(self) -> dict[str, Attribute]:
        """Attributes by name; those that are `unsaid` only where they differ from their default."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        default = {item.name: item.default for item in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if name not in self.unsaid or value != default[name]}

    @property
    def is_static(self) -> bool:
        """Whether no attribute is a size that varies."""
        return not any(map(_is_symbolic, self.attributes().values()))


def _is_symbolic(value: Attribute) -> bool:
    return any(map(_is_symbolic, value)) if isinstance(value, tuple) else isinstance(value, SymExpr)


class Elementwise(Op):
    """Output element i depends on element i of the (broadcast) inputs only."""

    def result_dtype(self, *dtypes: str) -> str:
        """All inputs have one dtype, which is the result's, unless overridden."""
        if len(set(dtypes)) > 1:
            raise OpError(f"{self.name}: inputs of one dtype expected, got {', '.join(dtypes)}")
        return dtypes[0]

    def infer(self, *types: TensorType) -> TensorType:
        return TensorType(self.result_dtype(*(t.dtype for t in types)), broadcast_shapes(*(t.shape for t in types)))

    def scalar(self, s: Scalar, *x: Expr) -> Expr:
        """One output element from one element of each input."""
        raise NotImplementedError(self.name)


class Injective(Op):
    """An output element is read from (at most a few) input elements at computed indices: transpose, pad, gather."""

    moves = True

    def element(self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]) -> Expr:
        """The output element at `index`; `inputs[n](*i)` reads input n, `types` are the inputs' types."""
        raise NotImplementedError(self.name)


@dataclass(frozen=True)
class Reduction:
    """How a `Reduce` op computes one output element.

    `extents` are the reduced loops; `body(r)` is the element at reduction index r; `state` accumulators start at
    `init` and are combined by `combine(state, element)`; `finish(state)` gives the output element(s).
    """

    extents: tuple[Dim, ...]
    init: tuple[Expr, ...]
    body: Callable[[Sequence[Expr]], tuple[Expr, ...]]
    combine: Callable[[tuple[Expr, ...], tuple[Expr, ...]], tuple[Expr, ...]]
    finish: Callable[[tuple[Expr, ...]], Expr]


class Reduce(Op):
    """An output element is a reduction over a box of input elements: sum, max, pools, variance."""

    def reduction(
        self, s: Scalar, inputs: Sequence[Load], types: Sequence[TensorType], index: Sequence[Expr]
    ) -> Reduction:
        raise NotImplementedError(self.name)


class Opaque(Op):
    """An op with loops of its own: a schedule of every target that claims it computes it (matmul, conv, rnn, sort)."""


class Product(Opaque):
    """Sums of products: linear layers, matmul, convolutions, attention.

    With the attribute `precision` "tf32", float32 operands may be rounded to TF32 (8 bits of exponent, 10 of mantissa)
    before they are multiplied; sums are in float32. A target without such units computes in float32. Half floats need
    no attribute: they are what a `widen` before the operand reads (see passes/precision.py).
    """

    unsaid = frozenset({"precision"})

    def __post_init__(self) -> None:
        if getattr(self, "precision", "") not in ("", "tf32"):
            raise ValueError(f"the precision of {self.name} is '' or 'tf32'")


# --- importing from ATen -----------------------------------------------------------------------------------------


class ImportContext(Protocol):
    """What an ATen importer may do. FX tensors arrive as `Value`, everything else as plain Python (dtypes as str)."""

    def emit(self, op: Op, *inputs: Value) -> Any:
        """Append a node; its output Value, or a tuple of them."""

    def scalar(self, value: float | int | bool, dtype: str) -> Value:
        """A rank-0 constant."""

    def array(self, data: Array) -> Value:
        """A constant tensor."""

    def cast(self, value: Value, dtype: str) -> Value:
        """The value itself if it has the dtype already."""

    def out_types(self) -> tuple[TensorType, ...]:
        """What PyTorch says the FX node's tensor outputs are; the importer's result must match it."""

    def storage(self) -> tuple[tuple[Dim, ...], Dim]:
        """Strides and storage offset, in elements, that PyTorch gives the FX node's first tensor argument."""

    def random_source(self) -> tuple[Value, int]:
        """The state of the generator, int64[2], and a stream that no other operation of the model draws from."""

    def unsupported(self, reason: str) -> Exception:
        """Raise this for argument combinations that are refused; `reason` is shown to the user."""


def register_aten(overload: str, function: Callable[..., Any]) -> None:
    if overload in ATEN:
        raise ValueError(f"ATen overload {overload!r} is registered twice")
    ATEN[overload] = function


def aten(*overloads: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an importer `f(context, *args, **kwargs) -> Value | tuple[Value, ...]` for ATen overloads."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for overload in overloads:
            register_aten(overload, function)
        return function

    return register


def import_default(context: ImportContext, op: type[Op], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Tensor arguments become inputs, the remaining ones attributes in order; None keeps an attribute's default."""
    inputs = [value for value in args if isinstance(value, Value)]
    plain = [value for value in args if not isinstance(value, Value)]
    names = [item.name for item in dataclasses.fields(op)]
    if len(plain) > len(names):
        raise context.unsupported(f"takes {len(names)} attributes, got {len(plain)}")
    given = dict(zip(names, plain, strict=False)) | {key: value for key, value in kwargs.items() if key in names}
    if extra := sorted(set(kwargs) - set(names)):
        raise context.unsupported(f"argument {', '.join(extra)} has no counterpart in {op.name!r}")
    return context.emit(op(**{k: freeze(v) for k, v in given.items() if v is not None}), *inputs)


def freeze(value: Any) -> Attribute:
    """Lists become tuples, so that ops can be hashed and compared."""
    return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value


# --- shared rules ------------------------------------------------------------------------------------------------


def broadcast_shapes(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """numpy's broadcasting of shapes. Raises OpError if they do not broadcast."""
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = []
    for axis in range(rank):
        dims = [shape[axis - rank] for shape in shapes if len(shape) >= rank - axis]
        wide = [dim for dim in dims if dim != 1]
        if any(dim != wide[0] for dim in wide):
            raise OpError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
        result.append(wide[0] if wide else 1)
    return tuple(result)


def normalize_axis(axis: int, rank: int) -> int:
    """A non-negative axis. Raises OpError if out of range. Rank 0 accepts -1 and 0, as PyTorch does."""
    if not -max(rank, 1) <= axis < max(rank, 1):
        raise OpError(f"axis {axis} is out of range for rank {rank}")
    return axis % max(rank, 1)


def rng(seed: str) -> np.random.Generator:
    """A generator seeded by a text, so that samples are the same in every run."""
    return np.random.default_rng(list(seed.encode()))
