"""NVIDIA's run-time compiler and its container for machine code, loaded from their packages: no toolkit, no GPU.

NVRTC compiles CUDA text for one architecture, nvFatbin puts the results for several into one file from which the
driver takes what suits the device.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transpiler.errors import TranspileError

MAJOR = 13
OPTIONS = ("-std=c++17", "-default-device", "--device-int128")


@dataclass(frozen=True)
class Code:
    """Machine code of one architecture, and the PTX that it was made of."""

    cubin: bytes
    ptx: bytes


def compile_code(source: str, arch: str) -> Code:
    """`source` for `arch`, such as "sm_80"; its PTX is for that architecture and, without a letter, for later ones.

    Raises:
        TranspileError: "no-nvrtc" where the packages are missing, "cuda-compiler" if NVRTC does not take the text.
    """
    library = _library("nvrtc")
    program = ctypes.c_void_p()
    options = [*OPTIONS, f"--gpu-architecture={arch}", f"-I{_home() / 'include'}"]
    texts = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
    try:
        code = library.nvrtcCompileProgram(program, len(options), texts)
        if code:
            log = _read(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise TranspileError("cuda-compiler", f"NVRTC refuses the kernels for {arch}.", notes=[log[:4000]])
        return Code(_read(library, program, "CUBIN"), _read(library, program, "PTX"))
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def fatbin(cubins: Mapping[str, bytes], ptx: Mapping[str, bytes]) -> bytes:
    """One file of the machine code and the PTX, both by architecture. Raises as `compile_cubin` does."""
    library = _library("nvFatbin")
    handle = ctypes.c_void_p()
    _check(library, library.nvFatbinCreate(ctypes.byref(handle), (ctypes.c_char_p * 1)(b"-64"), ctypes.c_size_t(1)))
    try:
        for arch, code in cubins.items():
            number = arch.removeprefix("sm_").encode()
            size = ctypes.c_size_t(len(code))
            _check(library, library.nvFatbinAddCubin(handle, code, size, number, b"kernels"))
        for arch, text in ptx.items():
            number = arch.removeprefix("sm_").encode()
            size = ctypes.c_size_t(len(text))
            _check(library, library.nvFatbinAddPTX(handle, text, size, number, b"kernels", b""))
        size = ctypes.c_size_t()
        _check(library, library.nvFatbinSize(handle, ctypes.byref(size)))
        data = ctypes.create_string_buffer(size.value)
        _check(library, library.nvFatbinGet(handle, data))
        return data.raw
    finally:
        library.nvFatbinDestroy(ctypes.byref(handle))


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, data))
    return data.raw


def _check(library: ctypes.CDLL, code: int) -> None:
    if code:
        raise TranspileError("cuda-compiler", f"{Path(library._name).name} reports error {code}.")


@cache
def _library(name: str) -> ctypes.CDLL:
    folder = _home() / "lib"
    if name == "nvrtc":
        # NVRTC asks the loader for it by name, and finds it if it is there already.
        for builtins in sorted(folder.glob(f"libnvrtc-builtins.so.{MAJOR}.*")):
            ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(folder / f"lib{name.lower()}.so.{MAJOR}"))


@cache
def _home() -> Path:
    """The folder of NVIDIA's packages for this major version: `lib`, `include`."""
    found = importlib.util.find_spec("nvidia")
    places = (found.submodule_search_locations or ()) if found else ()
    for place in places:
        home = Path(place) / f"cu{MAJOR}"
        needed = (home / "lib" / f"libnvrtc.so.{MAJOR}", home / "lib" / f"libnvfatbin.so.{MAJOR}", home / "include")
        if all(path.exists() for path in needed):
            return home
    raise TranspileError(
        "no-nvrtc",
        f"NVIDIA's compiler for CUDA {MAJOR} is not installed.",
        hints=["pip install 'torch-transpiler[cuda]'"],
    )
