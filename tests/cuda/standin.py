"""The stand-in for NVIDIA's driver, built and started; and `python -m tests.cuda.standin FATBIN CAPABILITY FILE`, with
which it makes a package's kernels code for this processor, and writes into FILE where that is."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "standin.cpp"
ROOT = HERE.parent.parent
CACHE = Path(tempfile.gettempdir()) / f"standin-{os.getuid()}"
FLAGS = ("-std=c++17", "-O1", "-w", "-fPIC", "-shared")


def build(text: str, name: str, *flags: str) -> Path:
    """A library of C++ text; made once per text."""
    key = hashlib.sha256("\0".join([text, *flags]).encode()).hexdigest()[:24]
    folder = CACHE / key
    library = folder / name
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source, made = Path(scratch) / "text.cpp", Path(scratch) / name
            source.write_text(text)
            command = ["g++", *FLAGS, "-I", str(HERE), *flags, str(source), "-o", str(made), "-ldl"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr[:3000]}")
            made.replace(library)
    return library


@cache
def driver_folder() -> Path:
    """Where the stand-in is, as libcuda.so.1."""
    maps = (HERE / "tensor_maps.h").read_text()
    text = SOURCE.read_text().replace('#include "tensor_maps.h"\n', maps.replace("#pragma once\n", ""))
    return build(text, "libcuda.so.1", "-fvisibility=hidden", "-Wl,-soname,libcuda.so.1").parent


def environment() -> dict[str, str]:
    """Variables with which a process finds the stand-in in place of a driver."""
    paths = [str(driver_folder()), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    made = CACHE / f"made-{_headers()}"
    made.mkdir(parents=True, exist_ok=True)
    return {
        "LD_LIBRARY_PATH": ":".join(paths),
        "STANDIN_MADE": str(made),
        "STANDIN_BUILD": f"cd '{ROOT}' && PYTHONPATH='{ROOT}' '{sys.executable}' -m tests.cuda.standin",
    }


@cache
def loaded() -> ctypes.CDLL:
    """The stand-in in this process, where `cuda.bindings` finds it, too."""
    library = ctypes.CDLL(str(driver_folder() / "libcuda.so.1"))
    for name in ("standin_faults", "standin_left"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def faults() -> str:
    """What callers in this process did wrong since the last time this was asked."""
    found: bytes = loaded().standin_faults()
    return found.decode()


def left() -> str:
    """What callers in this process have made and not destroyed; everything that streams have to do is done."""
    found: bytes = loaded().standin_left()
    return found.decode()


def kernel_library(fatbin: Path, capability: tuple[int, int]) -> Path:
    """The kernels beside `fatbin` that a device of this compute capability runs, as code for this processor."""
    from tests.cuda.emulator import _KERNEL, translate
    from transpiler.gpu.here import runs_code

    archs = sorted((path.name.split(".")[1] for path in fatbin.parent.glob("launches.*.json")), reverse=True)
    forced = os.environ.get("CUDA_FORCE_PTX_JIT", "0") != "0"
    fitting = [arch for arch in archs if runs_code(capability, arch) and not (forced and arch[-1].isalpha())]
    parts = [fatbin.with_name(name) for name in ("kernels.cu", f"kernels.{fitting[0]}.cu")]
    text = "".join(path.read_text() for path in parts if path.exists())
    launchers = [_launcher(name, parameters) for name, parameters in _KERNEL.findall(text)]
    return build("\n".join([translate(text), *launchers, f"// {_headers()}"]), "kernels.so")


def _headers() -> str:
    texts = [path.read_text() for path in [*sorted(HERE.glob("*.h")), HERE / "emulator.py", Path(__file__)]]
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def _launcher(name: str, parameters: str) -> str:
    from tests.cuda.emulator import parameter_type

    sizes = []
    for item in filter(None, map(str.strip, parameters.split(","))):
        kind = parameter_type(item)
        # Below 0: what holds an address, which has to be one of the device.
        sizes.append("-8" if kind.endswith("*") else "-128" if kind == "CUtensorMap" else f"(int)sizeof({kind})")
    return (
        f'extern "C" const char *standin_{name}(const int *grid, const int *block, int shared, int cluster,\n'
        f"                                      void **arguments) {{\n"
        f"  return launch_{name}(grid, block, 1, 1, shared, cluster, arguments);\n}}\n"
        f'extern "C" const int sizes_{name}[] = {{{", ".join([str(len(sizes)), *sizes])}}};\n'
    )


def main() -> None:
    major, minor = sys.argv[2].split(".")
    library = kernel_library(Path(sys.argv[1]), (int(major), int(minor)))
    with tempfile.NamedTemporaryFile("w", dir=Path(sys.argv[3]).parent, delete=False) as file:
        file.write(str(library))
    Path(file.name).replace(sys.argv[3])


if __name__ == "__main__":
    main()
