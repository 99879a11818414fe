"""CUDA text -> a library for the CPU, and its launches."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from transpiler.dims import evaluate
from transpiler.gpu.cuda import TYPES
from transpiler.gpu.cuda_text import TENSOR_MAP
from transpiler.gpu.launches import TensorMap
from transpiler.ir import Array

LATE_COPIES, LATE_PRODUCTS = 1, 2
ELEMENTS = {"uint16": 1, "float32": 7, "tfloat32": 11}  # CUtensorMapDataType
HEADER = Path(__file__).with_name("emulator.h")
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([\d, ]+\) )?(\w+)\(([^)]*)\);')
_SHARED = re.compile(
    r"__shared__ (?:(?:__align__|alignas)\(\d+\) )?((?:unsigned )?\w+(?: long| char)?) (\w+)\[(\d+)\];"
)


# Functions of inline machine code; tensor_cores.h has what they mean.
_MACHINE = re.compile(r"^__forceinline__ __device__ \w+ (\w+)\(.*\n", re.MULTILINE)
_DYNAMIC = re.compile(r"extern __shared__ __align__\(\d+\) uchar (\w+)\[\];")


class EmulationError(Exception):
    """A kernel cannot go on; the text says where."""


def translate(text: str) -> str:
    """C++ of the kernels: their own text between the header and one function per kernel that launches it."""
    body = re.sub(r"^#include .*\n", "", text, flags=re.MULTILINE).replace(TYPES, "").replace(TENSOR_MAP, "")
    body = _DYNAMIC.sub(r"uchar *\1 = emulator::shared[emulator::running->rank];", _MACHINE.sub(_meaning, body))
    body = _SHARED.sub(r"alignas(16) static \1 \2[\3]; static long \2_block = -1; emulator::fresh(\2, \2_block);", body)
    if "__shared__" in body:
        raise ValueError(f"shared memory of a form that is not known: {body[body.index('__shared__') :][:80]}")
    launchers = [_launcher(name, parameters) for name, parameters in _KERNEL.findall(text)]
    return "\n".join([f'#include "{HEADER.name}"', body, *launchers])


def _meaning(found: re.Match[str]) -> str:
    """What tensor_cores.h has as a template is named by its arguments."""
    name = found[1]
    if parts := re.fullmatch(r"copies_wait_(\d+)", name):
        return f"static void {name}() {{ copies_wait<{parts[1]}>(); }}\n"
    if parts := re.fullmatch(r"registers_(?:up|down)_\d+", name):
        return f"static void {name}() {{}}\n"
    if parts := re.fullmatch(r"wgmma_pending_(\d+)", name):
        return f"static void {name}() {{ wgmma_pending({parts[1]}); }}\n"
    if parts := re.fullmatch(r"tensor_copy_(\d)(_pixels)?(_multicast)?", name):
        return _tensor_copy(name, int(parts[1]), pixels=bool(parts[2]), multicast=bool(parts[3]))
    if parts := re.fullmatch(r"wgmma_(f16|bf16|tf32)_(\d+)(_across)?", name):
        kind = f"{parts[1]}, {parts[2]}, {'true' if parts[3] else 'false'}"
        head = f"static void {name}(float *sum, uint64_t a, uint64_t b)"
        return f"{head} {{ wgmma<emulator::{kind}>(sum, a, b); }}\n"
    if parts := re.fullmatch(r"group_(first|registers)_(f16|bf16)_(\d+)", name):
        left = "uint64_t a" if parts[1] == "first" else "const uint32_t *a"
        call = f"group_{parts[1]}<emulator::{parts[2]}, {parts[3]}>(sum, a, b);"
        return f"static void {name}(float *sum, {left}, uint64_t b) {{ {call} }}\n"
    if parts := re.fullmatch(r"group_(?:fence|wait_(\d))((?:_[fr]\d+)*)", name):
        arrays = ", ".join("float *" if kind == "f" else "uint32_t *" for kind in re.findall(r"_([fr])", parts[2]))
        return f"static void {name}({arrays}) {{ {f'wgmma_pending({parts[1]});' if parts[1] else ''} }}\n"
    if parts := re.fullmatch(r"wgmma_(begin|wait)_\d+", name):
        return f"static void {name}(float *) {{ wgmma_{parts[1]}(); }}\n"
    return ""


def _tensor_copy(name: str, rank: int, *, pixels: bool, multicast: bool) -> str:
    places, offsets = ([f"{letter}{i}" for i in range(count)] for letter, count in (("c", rank), ("o", rank - 2)))
    taken = [*places, *offsets] if pixels else places
    taken += ["mask"] if multicast else []
    taps = f"int offsets[] = {{{', '.join(offsets)}}}; " if pixels else "const int *offsets = nullptr; "
    return (
        f"static void {name}(unsigned to, uint64_t map, unsigned barrier, {', '.join(f'int {x}' for x in taken)}) {{ "
        f"int places[] = {{{', '.join(places)}}}; {taps}"
        f"emulator::tensor_copy(to, (const void *)map, barrier, {rank}, places, offsets, "
        f"{'mask' if multicast else '0'}); }}\n"
    )


def _launcher(name: str, parameters: str) -> str:
    types = [parameter_type(item) for item in parameters.split(",")]
    arguments = ", ".join(f"*static_cast<{type_}*>(arguments[{index}])" for index, type_ in enumerate(types))
    return (
        f'extern "C" const char *launch_{name}(const int *grid, const int *block, int order, int late, int shared,\n'
        f"                                     int cluster, void **arguments) {{\n"
        f"  emulator::late = late;\n  emulator::shared_bytes = shared;\n"
        f"  return emulator::run({{grid[0], grid[1], grid[2]}}, {{block[0], block[1], block[2]}}, order,\n"
        f"                       cluster, [=] {{ {name}({arguments}); }});\n}}\n"
    )


def parameter_type(text: str) -> str:
    """Of a parameter of a kernel."""
    return re.sub(r"\b(?:__restrict__|const|__grid_constant__)\b", "", text).rpartition(" ")[0].strip()


class Emulator:
    """The kernels of a CUDA text, compiled into `folder`."""

    def __init__(self, text: str, folder: Path) -> None:
        source, library = folder / "kernels.cpp", folder / "kernels.so"
        source.write_text(translate(text))
        command = ["g++", "-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-I", str(HEADER.parent)]
        done = subprocess.run([*command, source, "-o", library], capture_output=True, text=True, check=False)
        if done.returncode:
            raise EmulationError(f"the text is not understood: {done.stderr[:3000]}")
        self._library = ctypes.CDLL(str(library))

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        arrays: Sequence[Array],
        scalars: Sequence[bytes] = (),
        order: int = 1,
        *,
        late: int = 0,
        shared: int = 0,
        cluster: int = 1,
        maps: Sequence[tuple[int, TensorMap]] = (),
    ) -> None:
        """One launch; the arguments are pointers to the arrays, then the scalars.

        Args:
            order: -1 runs the threads of a block from the last to the first.
            late: LATE_COPIES: asynchronous copies land when they are waited for, not where they begin; LATE_PRODUCTS:
                likewise products of warpgroups.
            shared: bytes of dynamic shared memory.
            cluster: so many neighbouring blocks run together.
            maps: descriptors of the last of the arrays, with their places among the arguments; their sizes are numbers.

        Raises:
            EmulationError: threads wait for others that never come, or an access is misaligned or out of bounds.
        """
        own = len(arrays) - len(maps)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays[:own]]
        values = [ctypes.create_string_buffer(value, len(value)) for value in scalars]
        places = [ctypes.addressof(item) for item in [*pointers, *values]]
        memory = np.zeros(128 * (len(maps) + 1), np.uint8)
        for index, ((position, tensor), array) in enumerate(zip(maps, arrays[own:], strict=True)):
            place = -(-memory.ctypes.data // 128) * 128 + 128 * index
            self._describe(place, tensor, array.ctypes.data)
            places.insert(position, place)
        function = getattr(self._library, f"launch_{kernel}")
        function.restype = ctypes.c_char_p
        sizes = [(ctypes.c_int * 3)(*size) for size in (grid, block)]
        wrong = function(*sizes, order, late, shared, cluster, (ctypes.c_void_p * len(places))(*places))
        if wrong:
            raise EmulationError(f"{kernel}: {wrong.decode()}")

    def _describe(self, place: int, tensor: TensorMap, address: int) -> None:
        """A descriptor at `place`. Raises EmulationError: a driver would not take the tensor."""

        def array(kind: type[Any], values: Sequence[Any]) -> Any:
            return (kind * max(len(values), 1))(*values)

        corners = [array(ctypes.c_int, corner) if tensor.lower else None for corner in (tensor.lower, tensor.upper)]
        function = self._library.encode_tensor_map
        function.restype = ctypes.c_char_p
        wrong = function(
            ctypes.c_void_p(place), ELEMENTS[tensor.element], len(tensor.sizes),
            ctypes.c_uint64(address + evaluate(tensor.offset, {})), array(ctypes.c_uint64, tensor.sizes),
            array(ctypes.c_uint64, tensor.strides), array(ctypes.c_uint32, tensor.box), *corners,
            array(ctypes.c_uint32, tensor.steps),
        )  # fmt: skip
        if wrong:
            raise EmulationError(f"no descriptor of a tensor: {wrong.decode()}")


def at_sizes(tensor: TensorMap, symbols: Mapping[str, int]) -> TensorMap:
    """The tensor with numbers for its sizes."""
    sizes, strides = (tuple(evaluate(dim, symbols) for dim in dims) for dims in (tensor.sizes, tensor.strides))
    return replace(tensor, sizes=sizes, strides=strides, offset=evaluate(tensor.offset, symbols))


def padded(array: Array, guard: int) -> Array:
    """The bytes of an array, and `guard` bytes of 0xA5 behind them."""
    return np.concatenate([np.ascontiguousarray(array).reshape(-1).view(np.uint8), np.full(guard, 0xA5, np.uint8)])
