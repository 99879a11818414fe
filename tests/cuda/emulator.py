"""CUDA text -> a library for the CPU, and its launches."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transpiler.gpu.cuda import TYPES
from transpiler.ir import Array

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
    body = re.sub(r"^#include .*\n", "", text, flags=re.MULTILINE).replace(TYPES, "")
    body = _DYNAMIC.sub(r"uchar *\1 = emulator::shared;", _MACHINE.sub(_meaning, body))
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
    if parts := re.fullmatch(r"wgmma_(f16|bf16)_(\d+)(_across)?", name):
        kind = f"{parts[1]}, {parts[2]}, {'true' if parts[3] else 'false'}"
        head = f"static void {name}(float *sum, uint64_t a, uint64_t b)"
        return f"{head} {{ wgmma<emulator::{kind}>(sum, a, b); }}\n"
    if parts := re.fullmatch(r"wgmma_(begin|wait)_\d+", name):
        return f"static void {name}(float *) {{ wgmma_{parts[1]}(); }}\n"
    return ""


def _launcher(name: str, parameters: str) -> str:
    types = [
        re.sub(r"\b__restrict__\b|\bconst\b", "", item).rpartition(" ")[0].strip() for item in parameters.split(",")
    ]
    arguments = ", ".join(f"*static_cast<{type_}*>(arguments[{index}])" for index, type_ in enumerate(types))
    return (
        f'extern "C" const char *launch_{name}(const int *grid, const int *block, int order, int late, int shared,\n'
        f"                                     void **arguments) {{\n"
        f"  emulator::late = late;\n  emulator::shared_bytes = shared;\n"
        f"  return emulator::run({{grid[0], grid[1], grid[2]}}, {{block[0], block[1], block[2]}}, order,\n"
        f"                       [=] {{ {name}({arguments}); }});\n}}\n"
    )


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
        late: bool = False,
        shared: int = 0,
    ) -> None:
        """One launch; the arguments are pointers to the arrays, then the scalars.

        Args:
            order: -1 runs the threads of a block from the last to the first.
            late: asynchronous copies land when they are waited for, not where they begin.
            shared: bytes of dynamic shared memory.

        Raises:
            EmulationError: threads wait for others that never come, or an access is misaligned or out of bounds.
        """
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        values = [ctypes.create_string_buffer(value, len(value)) for value in scalars]
        places = [ctypes.addressof(item) for item in [*pointers, *values]]
        function = getattr(self._library, f"launch_{kernel}")
        function.restype = ctypes.c_char_p
        sizes = [(ctypes.c_int * 3)(*size) for size in (grid, block)]
        wrong = function(*sizes, order, int(late), shared, (ctypes.c_void_p * len(places))(*places))
        if wrong:
            raise EmulationError(f"{kernel}: {wrong.decode()}")


def padded(array: Array, guard: int) -> Array:
    """The bytes of an array, and `guard` bytes of 0xA5 behind them."""
    return np.concatenate([np.ascontiguousarray(array).reshape(-1).view(np.uint8), np.full(guard, 0xA5, np.uint8)])
