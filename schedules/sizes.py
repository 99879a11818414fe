"""Sizes in schedules: ints where they are fixed, int32 expressions over a kernel's symbol parameters where not.

A rule does its algebra on shapes (`transpiler.dims`), so that sizes of workspaces and counts of operations come out as
expressions the plan can evaluate, and turns them into loop extents with `extent`. Within `kernel_symbols`, every
kernel that is built takes the symbols' values as trailing int32 parameters; without symbols nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm import tirx

from transpiler.dims import Dim, SymExpr, parse_dim
from transpiler.target import Target

Expr = Any
Extent = Any  # int, or an int32 expression

# Work (in element operations) below which starting the threads costs more than they give.
PARALLEL_THRESHOLD = 16384

_variables: dict[str, Expr] = {}


@dataclass(frozen=True)
class Machine:
    """What the words of schedules mean: from which work on a loop is `parallel`, in which of TVM's scopes `local`
    memory lies, and whether there are instructions that convert float16; of a GPU, how many threads run as one and can
    read each other's registers, 0 if that is not known, whether those that run as one, however many, have
    instructions for sums and the like, whether a division gives the float nearest to the quotient, and whether there
    are ints of 64 bits on every device."""

    parallel_threshold: int
    local_scope: str
    converts_float16: bool = True
    is_gpu: bool = False
    warp: int = 0
    subgroups: bool = False
    rounds_division: bool = True
    wide_ints: bool = True


CPU = Machine(PARALLEL_THRESHOLD, "global")
# x86-64 without F16C: a conversion by the compiler would be a call per element.
OLD_CPU = Machine(PARALLEL_THRESHOLD, "global", converts_float16=False)
# Every loop that may be split over threads is: a GPU has too many of them to leave any idle.
GPU = Machine(0, "local", is_gpu=True)
_machine = [CPU]


@contextmanager
def kernel_symbols(names: Sequence[str], machine: Machine = CPU) -> Iterator[None]:
    """The symbols of the kernels that are built inside, in the order of their parameters, and what they are for."""
    _variables.update({name: tirx.Var(name, "int32") for name in names})
    _machine.append(machine)
    try:
        yield
    finally:
        _machine.pop()
        _variables.clear()


def machine_of(target: Target) -> Machine:
    """What kernels for a target are for."""
    if target.is_gpu:
        # Of Vulkan's devices none says how many it will be.
        if target.kind == "cuda":
            return replace(GPU, warp=target.gpu.subgroup)
        return replace(GPU, subgroups="subgroups" in target.gpu.features, rounds_division=False, wide_ints=False)
    return OLD_CPU if target.isa.machine == "x86_64" and "f16c" not in target.isa.features else CPU


def machine() -> Machine:
    """What the current kernel is for."""
    return _machine[-1]


def symbol_parameters() -> dict[str, Expr]:
    """The current kernel's symbols by name."""
    return dict(_variables)


def extent(size: Dim) -> Extent:
    """A size as a loop extent. Raises KeyError for a symbol that the kernel does not take."""
    if isinstance(size, int):
        return size
    if not isinstance(size, SymExpr):  # an expression already
        return size
    total: Expr = 0
    for monomial, coefficient in size.terms:
        term: Expr = coefficient
        for atom in monomial:
            term = term * _atom(atom)
        total = total + term
    return total


def _atom(atom: Any) -> Expr:
    if atom.kind == "symbol":
        return _variables[atom.name]
    left, right = extent(parse_dim(atom.left)), extent(parse_dim(atom.right))
    match atom.kind:
        case "//":
            return tirx.floordiv(_expr(left), right)
        case "%":
            return tirx.floormod(_expr(left), right)
        case "min":
            return tirx.min(_expr(left), _expr(right))
        case _:
            return tirx.max(_expr(left), _expr(right))


def _expr(value: Extent) -> Expr:
    return tirx.const(value, "int32") if isinstance(value, int) else value


def extents(shape: Sequence[Dim]) -> tuple[Extent, ...]:
    """A shape as loop extents."""
    return tuple(extent(dim) for dim in shape)


def is_fixed(*sizes: Any) -> bool:
    """Whether all sizes are known when the kernel is built."""
    return all(isinstance(size, int) for size in sizes)


def is_empty(shape: Sequence[Dim]) -> bool:
    """Whether a shape is known to hold nothing."""
    return any(isinstance(dim, int) and dim == 0 for dim in shape)


def is_large(work: Dim) -> bool:
    """Whether a loop of `work` operations is worth the threads; where that varies, the runtime decides per call."""
    return not isinstance(work, int) or work >= machine().parallel_threshold


def is_several(loops: Extent) -> bool:
    """Whether a loop runs more than once, or may."""
    return not isinstance(loops, int) or loops > 1


def ceil_div(size: Any, step: int) -> Any:
    """How many steps cover `size`: of a size, or of an extent."""
    return -(-size // step) if isinstance(size, int) else (size + (step - 1)) // step


def smaller(a: Extent, b: Extent) -> Extent:
    return min(a, b) if is_fixed(a, b) else tirx.min(_expr(a), _expr(b))


def count(shape: Sequence[Any]) -> Any:
    """The number of elements: of a shape, or of extents."""
    return prod(shape, start=1)
