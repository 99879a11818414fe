"""The host side of a kernel as TVM leaves it, read as a list of launches. What is not understood is refused: a launch
that was left out, or made with another size, would be silently wrong."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm import ir, tirx

from transpiler.dims import Dim, dim_max, dim_min, floordiv, mod, symbol
from transpiler.errors import TranspileError

Number = Dim | float
_INTS: Mapping[str, Callable[[Any, Any], Dim]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "FloorDiv": floordiv,
    "FloorMod": mod,
    "Min": dim_min,
    "Max": dim_max,
}
_GROUPS = {f"blockIdx.{axis}": position for position, axis in enumerate("xyz")}
_THREADS = {f"threadIdx.{axis}": position for position, axis in enumerate("xyz")}
_SHARED = "tirx.use_dyn_shared_memory"
_CLUSTER = "clusterCtaIdx.x"
TENSOR_MAP = "tensor_map"  # the call that says which tensor a descriptor is of


@dataclass(frozen=True)
class HostLaunch:
    """A launch of the device function `function`: per parameter a buffer (the position of one of the kernel's
    pointers), a map (the number of one of `maps`) or a number, the workgroups by axis, the threads of one, and the
    bytes of memory that it shares beside what the code declares. `maps` are descriptors of tensors: the number that the
    schedule gave them, the buffer, and at which of its elements the tensor begins. So many neighbours along the first
    axis are a `cluster`."""

    function: str
    arguments: tuple[tuple[str, Number], ...]
    grid: tuple[Dim, Dim, Dim]
    workgroup: tuple[int, int, int]
    shared_bytes: int = 0
    maps: tuple[tuple[int, int, Dim], ...] = ()
    cluster: int = 1


def read_launches(kernel: str, function: Any) -> tuple[HostLaunch, ...]:
    """The launches of a host function over pointers and int32 sizes.

    Raises:
        TranspileError: "gpu-host" for a statement or an expression without a meaning here.
    """
    return _Host(kernel, function).launches()


class _Host:
    def __init__(self, kernel: str, function: Any) -> None:
        self.kernel, self.function = kernel, function
        self.places: dict[Any, int] = {}
        self.numbers: dict[Any, Number] = {}
        self.maps: dict[Any, tuple[int, int, Dim]] = {}
        self.found: list[HostLaunch] = []
        pointers = 0
        for parameter in function.params:
            if hasattr(parameter.ty, "element_type"):
                self.places[parameter] = pointers
                pointers += 1
            else:
                self.numbers[parameter] = symbol(str(parameter.name))

    def launches(self) -> tuple[HostLaunch, ...]:
        self.statement(self.function.body)
        return tuple(self.found)

    def refuse(self, what: str) -> TranspileError:
        return TranspileError(
            "gpu-host",
            f"Kernel {self.kernel!r} leaves work to the host that is no launch: {what}.",
            hints=["bind the outermost loops of its schedule to threads"],
        )

    def statement(self, node: Any) -> None:
        match type(node).__name__:
            case "SeqStmt":
                for child in node.seq:
                    self.statement(child)
            case "Bind" if _is_call(node.value, "tirx.tvm_stack_alloca"):
                pass  # the place of a descriptor, which the runtime has
            case "Bind":
                self.numbers[node.var] = self.number(node.value)
            case "DeclBuffer":
                self.places[node.buffer] = self.place(node.data)
            case "Evaluate" if isinstance(node.value, tirx.IntImm):
                pass
            case "Evaluate" if _is_call(node.value, "tirx.call_ffi_kernel"):
                self.launch(node.value)
            case "Evaluate" if _is_call(node.value, "tirx.tvm_call_packed"):
                self.tensor_map(node.value)
            case "Evaluate" if _is_call(node.value, "tirx.ret"):
                pass
            case "Return":
                pass
            case kind:
                raise self.refuse(f"{kind}: {str(node).strip()}")

    def launch(self, call: Any) -> None:
        tags = [str(tag) for tag in call.attrs.launch_params]
        name, *rest = call.args
        arguments, extents = rest[: len(rest) - len(tags)], rest[len(rest) - len(tags) :]
        grid: list[Dim] = [1, 1, 1]
        threads = [1, 1, 1]
        shared, cluster = 0, 1
        for tag, extent in zip(tags, extents, strict=True):
            if tag in _GROUPS:
                grid[_GROUPS[tag]] = self.size(extent)
            elif tag in _THREADS and isinstance(extent, tirx.IntImm):
                threads[_THREADS[tag]] = int(extent.value)
            elif tag == _SHARED and isinstance(extent, tirx.IntImm):
                shared = int(extent.value)
            elif tag == _CLUSTER and isinstance(extent, tirx.IntImm):
                cluster = int(extent.value)
            else:
                raise self.refuse(f"the launch parameter {tag} = {extent}")
        maps = [node for node in arguments if isinstance(node, tirx.Var) and node in self.maps]
        self.found.append(
            HostLaunch(
                str(name.value),
                tuple(("map", maps.index(node)) if node in maps else self.argument(node) for node in arguments),
                (grid[0], grid[1], grid[2]),
                (threads[0], threads[1], threads[2]),
                shared,
                tuple(self.maps[node] for node in maps),
                cluster,
            )
        )

    def tensor_map(self, call: Any) -> None:
        name, variable, *rest = call.args
        if str(getattr(name, "value", "")) != TENSOR_MAP:
            raise self.refuse(f"the call {call}")
        number, data, offset = rest
        self.maps[variable] = (int(number.value), self.place(data), self.size(offset))

    def argument(self, node: Any) -> tuple[str, Number]:
        pointer = node in self.places if isinstance(node, tirx.Var) else _is_call(node, "tirx.buffer_data")
        return ("buffer", self.place(node)) if pointer else ("number", self.number(node))

    def place(self, data: Any) -> int:
        while isinstance(data, ir.Call):
            data = data.args[0]
        if data not in self.places:
            raise self.refuse(f"memory of its own ({data})")
        return self.places[data]

    def size(self, node: Any) -> Dim:
        value = self.number(node)
        if isinstance(value, float):
            raise self.refuse(f"the size {node}")
        return value

    def number(self, node: Any) -> Number:
        kind = type(node).__name__
        if kind == "IntImm":
            return int(node.value)
        if kind == "FloatImm":
            return float(node.value)
        if kind == "Var" and node in self.numbers:
            return self.numbers[node]
        if kind == "Cast" and str(node.ty.dtype) in ("int32", "int64"):
            return self.size(node.value)
        if kind in _INTS:
            return _INTS[kind](self.size(node.a), self.size(node.b))
        if _is_call(node, "tirx.shift_right", "tirx.shift_left") and isinstance(node.args[1], tirx.IntImm):
            factor = 1 << int(node.args[1].value)
            left = self.size(node.args[0])
            return floordiv(left, factor) if node.op.name.endswith("right") else left * factor
        raise self.refuse(f"the expression {node}")


def _is_call(node: Any, *names: str) -> bool:
    return isinstance(node, ir.Call) and getattr(node.op, "name", "").replace("prim.", "tirx.") in names
