"""Whole models as machine code for two architectures, without a GPU."""

from __future__ import annotations

import struct
import tomllib
from functools import cache
from pathlib import Path

import pytest

from transpiler.errors import TranspileError
from transpiler.frontend import read_model
from transpiler.gpu import nvrtc
from transpiler.gpu.cubin import Usage, usage
from transpiler.gpu.cuda import FILE, TEXT, Source, compile_kernels, cuda_source
from transpiler.gpu.nvrtc import compile_code
from transpiler.lower import LoweredProgram, lower
from transpiler.passes import PIPELINES, run_passes
from transpiler.request import Request
from transpiler.target import load_targets

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "tests" / "models"
TARGETS = {target.gpu.arch: target for target in load_targets("cuda")}
FATBIN = 0xBA55ED50  # what such a file begins with
PTX, CUBIN = 1, 2  # kinds of entries
ONE_ARCHITECTURE = 0x100000  # a flag of an entry: for nothing but its own compute capability


@cache
def mnist(arch: str) -> tuple[LoweredProgram, Source]:
    program = read_model(Request(MODELS / "mnist.py", targets=("cuda",))).program
    lowered = lower(run_passes(program, PIPELINES["cuda"].usual), TARGETS[arch])
    return lowered, cuda_source(lowered.kernels, TARGETS[arch].tvm_target())


@pytest.mark.parametrize("arch", TARGETS)
def test_nothing_is_spilled(arch: str) -> None:
    _, source = mnist(arch)
    found = usage(compile_code(source.text, arch).cubin)
    assert set(found) == {launch.entry for launches in source.launches.values() for launch in launches}
    assert all(item.stack == 0 and 0 < item.registers <= 255 for item in found.values()), found


def entries(data: bytes) -> list[tuple[int, str]]:
    """Kind and architecture of what a fat binary holds. NVIDIA does not publish the format: found by making some."""
    magic, _, at, size = struct.unpack_from("<IHHQ", data)
    assert magic == FATBIN
    assert at + size == len(data)
    found = []
    while at < len(data):
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        arch, flags = struct.unpack_from("<I8xQ", data, at + 28)
        found.append((kind, f"sm_{arch}{'a' * bool(flags & ONE_ARCHITECTURE)}"))
        at += header + size
    return found


def test_one_file_for_all_devices() -> None:
    kernels = {arch: mnist(arch)[0].kernels for arch in TARGETS}
    compiled = compile_kernels(kernels, list(TARGETS.values()))
    assert list(compiled) == ["sm_90a", "sm_80"]
    data = compiled["sm_90a"].files[FILE]
    # Machine code for 8.x and 9.0, which the driver does not translate first, and PTX for what is later.
    assert entries(data) == [(CUBIN, "sm_90a"), (CUBIN, "sm_80"), (PTX, "sm_80")]
    for arch in TARGETS:
        assert compiled[arch].launches == mnist(arch)[1].launches
        text = compiled["sm_90a"].files[TEXT] + compiled[arch].files.get(f"kernels.{arch}.cu", b"")
        assert sorted(text.decode().splitlines()) == sorted(mnist(arch)[1].text.splitlines())
    # The same twice: packages are reproducible.
    assert data == compile_kernels(kernels, list(TARGETS.values()))["sm_90a"].files[FILE]
    # Narrowed to Hopper it has no PTX: nothing else could run it.
    narrow = compile_kernels({"sm_90a": kernels["sm_90a"]}, [TARGETS["sm_90a"]])["sm_90a"].files[FILE]
    assert entries(narrow) == [(CUBIN, "sm_90a")]


def test_without_the_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    nvrtc._home.cache_clear()
    nvrtc._library.cache_clear()
    with pytest.raises(TranspileError, match="NVIDIA's compiler for CUDA 13 is not installed") as caught:
        compile_code("", "sm_80")
    nvrtc._home.cache_clear()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert caught.value.problems[0].hints == (f"pip install '{project['name']}[cuda]'",)
    assert "cuda" in project["optional-dependencies"]


SPILLING = """
extern "C" __global__ void spilling(float* x, int n) {
  float kept[32];
  for (int i = 0; i < 32; i++) kept[i] = 0;
  for (int i = 0; i < n; i++) kept[(int)x[i] & 31] += 1;
  __shared__ float shared[64];
  shared[threadIdx.x] = kept[n % 32];
  __syncthreads();
  x[n] = kept[(n + 1) % 32] + shared[63 - threadIdx.x];
}
"""


def test_local_and_shared_memory_are_seen() -> None:
    (found,) = usage(compile_code(SPILLING, "sm_80").cubin).values()
    assert isinstance(found, Usage)
    assert (found.stack, found.shared) == (128, 256)


def test_ptx_names_its_architecture() -> None:
    assert b".target sm_80" in compile_code(SPILLING, "sm_80").ptx


def test_errors_of_the_compiler_are_shown() -> None:
    with pytest.raises(TranspileError, match="NVRTC refuses the kernels for sm_80") as caught:
        compile_code("void f() { nothing(); }", "sm_80")
    assert "nothing" in str(caught.value)


def test_what_is_no_cubin_is_refused() -> None:
    for data in (b"", b"\x7fELF\x02\x01", b"MZ" * 100):
        with pytest.raises(ValueError, match="not a cubin"):
            usage(data)
