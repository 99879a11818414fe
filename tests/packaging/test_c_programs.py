"""The C and Rust programs of docs/examples against a package with all instruction sets."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.models.support import load
from tests.packaging.support import run
from transpiler import Package, transpile
from transpiler.target import load_targets, runs_here

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# Instructions of a vector register that a processor without the set does not have: zmm or mask registers, and any VEX
# encoding, whose mnemonics alone begin with v.
ABOVE = {"avx2": re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])"), "baseline": re.compile(r"^v[a-z]|%[yz]mm")}
# SSE3, SSSE3, SSE4 and POPCNT; those of SSE2 and before are everywhere.
NEWER_THAN_SSE2 = re.compile(
    r"^(addsub|h(add|sub)|lddqu|movs[hl]dup|movddup|pshufb|ph(add|sub)|pmaddubs|pmulhrs|psign|pabs|palignr|blend|pblend"
    r"|dpp[sd]|extractps|insertps|movntdqa|mpsadbw|packusdw|pcmpeqq|pcmpgtq|pcmp[ei]str|pextr[bdq]|phminpos|pinsr[bdq]"
    r"|pmax(sb|sd|ud|uw)|pmin(sb|sd|ud|uw)|pmov[sz]x|pmuldq|pmulld|ptest|round[ps][sd]|popcnt|crc32|lzcnt|tzcnt|movbe"
    r"|andn\b|bextr|bls|bzhi|mulx|pdep|pext|rorx|s[ahr]+[lr]x)"
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    module, args, _ = load("mnist")
    isas = [target.isa.name for target in load_targets("cpu", triple="x86_64-unknown-linux-gnu")]
    return transpile(module, args, name="mnist", out=tmp_path_factory.mktemp("c"), isa=isas)


@pytest.fixture(scope="module")
def folder(package: Package) -> Path:
    return package.path / "src" / "mnist"


@pytest.fixture(scope="module")
def classify(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C example, built by the command in its first comment."""
    work = tmp_path_factory.mktemp("build")
    source = EXAMPLES / "c_program" / "classify.c"
    (command,) = re.findall(r"\* +(cc classify\.c .*)", source.read_text())
    run("sh", "-c", command.replace("classify.c", str(source)), cwd=work, PKG_CONFIG_PATH=str(folder / "lib/pkgconfig"))
    return work / "classify"


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 1, 28, 28), np.float32)


def expected(module: torch.nn.Module, seed: int) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = module.double()(torch.from_numpy(image(seed)).double()).numpy()[0]
    return result


def classified(program: Path, *arguments: Path, **environment: str) -> tuple[str, np.ndarray]:
    done = subprocess.run(
        [program, *arguments], input=image(1).tobytes(), env=environment, capture_output=True, check=True
    )
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert [int(digit) for digit, _ in lines] == list(range(10))
    return done.stderr.decode(), np.array([float(value) for _, value in lines])


@pytest.mark.parametrize("isa", [target.isa.name for target in load_targets("cpu") if runs_here(target.isa)])
def test_the_c_program_agrees_with_pytorch(classify: Path, isa: str) -> None:
    said, got = classified(classify, TRANSPILE_ISA=isa)
    assert said == f"kernels for {isa}\n"
    np.testing.assert_allclose(got, expected(load("mnist")[0], 1), atol=2e-6)


def test_other_weights_are_prepared_for_it(package: Package, folder: Path, classify: Path, tmp_path: Path) -> None:
    module = load("mnist", seed=2)[0]
    save_file(module.state_dict(), tmp_path / "new.safetensors")
    command, path = [sys.executable, "-m", "mnist", "prepare"], str(folder.parent)
    run(*command, "new.safetensors", "new.prepared", cwd=tmp_path, PYTHONPATH=path)
    _, got = classified(classify, tmp_path / "new.prepared")
    np.testing.assert_allclose(got, expected(module, 1), atol=2e-6)
    again = package.load(weights=tmp_path / "new.prepared")
    np.testing.assert_array_equal(again(image(1))[0], got.astype(np.float32))
    again.load_weights({key: value.numpy() for key, value in load("mnist")[0].state_dict().items()})
    again.save_prepared(tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == (folder / "weights.cpu.safetensors").read_bytes()
    complaint = run(*command, "missing", "x", cwd=tmp_path, fails=True, PYTHONPATH=path)
    assert "error:" in complaint
    assert "Traceback" not in complaint


def test_weights_beside_the_wheel(
    package: Package, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open(NULL) where the wheel left the weights out: in the folder that TRANSPILE_WEIGHTS names, as in Python."""
    monkeypatch.delenv("TRANSPILE_WEIGHTS", raising=False)
    copy = shutil.copytree(folder, tmp_path / "mnist", ignore=shutil.ignore_patterns("weights.*"))
    library = ctypes.CDLL(str(copy / "lib/libmnist.so"))
    library.mnist_last_error.restype = ctypes.c_char_p

    def opened(path: Path | None = None) -> str:
        model = ctypes.c_void_p()
        if library.mnist_open(None if path is None else bytes(path), 1, ctypes.byref(model)):
            return str(library.mnist_last_error().decode())
        library.mnist_destroy(model)
        return ""

    assert "weights.cpu.safetensors is missing; open a file of weights, or let TRANSPILE_WEIGHTS name" in opened()
    monkeypatch.setenv("TRANSPILE_WEIGHTS", str(tmp_path))
    beside = tmp_path / "mnist-0.1.0.weights.cpu.safetensors"
    assert opened() == f"the folder TRANSPILE_WEIGHTS={tmp_path} has no {beside.name}"
    package.wheel(tmp_path, bundle_weights="separate")
    assert beside.is_file()
    assert opened() == ""
    os.mkfifo(tmp_path / "pipe")  # which is not waited for
    assert opened(tmp_path / "pipe") == f"{tmp_path}/pipe is not a weights file"
    assert opened(tmp_path) == f"{tmp_path} is not a weights file"


def test_the_rust_program_agrees_with_pytorch(folder: Path, tmp_path: Path) -> None:
    source = EXAMPLES / "rust_program" / "classify.rs"
    lines = re.findall(r"//! +((?:rustc|-C).*)", source.read_text())
    command = " ".join(line.rstrip(" \\") for line in lines)
    assert command.startswith("rustc -O classify.rs")
    environment = {"PKG_CONFIG_PATH": str(folder / "lib/pkgconfig")}
    run("sh", "-c", command.replace("classify.rs", str(source)), cwd=tmp_path, **environment)
    images = b"".join(image(seed).tobytes() for seed in range(3))
    done = subprocess.run([tmp_path / "classify"], input=images, capture_output=True, check=True)
    got = np.array([line.split() for line in done.stdout.decode().splitlines()], np.float64)
    module = load("mnist")[0]
    np.testing.assert_allclose(got, np.stack([expected(module, seed) for seed in range(3)]), atol=2e-6)


@pytest.mark.parametrize("file", ["kernels/cpu/avx2/mnist.so", "kernels/cpu/baseline/mnist.so", "lib/libmnist.so"])
def test_no_instruction_is_newer_than_its_set(folder: Path, file: str) -> None:
    done = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", folder / file], capture_output=True, text=True, check=True
    )
    found = [line.split("\t", 1)[1] for line in done.stdout.splitlines() if line.count("\t") >= 1]
    assert len(found) > 1000
    above = ABOVE["avx2" if "avx2" in file else "baseline"]
    wrong = [text for text in found if above.search(text)]
    if "avx2" not in file:
        wrong += [text for text in found if NEWER_THAN_SSE2.match(text)]
    assert wrong == []


@pytest.mark.parametrize(
    ("processor", "isa"),
    [("Haswell", "avx2"), ("Haswell,-movbe", "baseline"), ("SandyBridge", "baseline"), ("Opteron_G1", "baseline")],
)
def test_an_emulated_processor_gets_what_it_can_run(classify: Path, processor: str, isa: str) -> None:
    """None of these has AVX-512; SandyBridge has AVX but not AVX2, the first Opteron SSE2 and nothing after it."""
    emulator = emulated((classify,), processor)
    done = subprocess.run(emulator, input=image(1).tobytes(), capture_output=True, check=True)
    assert said(done) == f"kernels for {isa}"
    got = np.array([float(line.split()[1]) for line in done.stdout.decode().splitlines()])
    np.testing.assert_allclose(got, expected(load("mnist")[0], 1), atol=2e-6)


@pytest.mark.parametrize(
    ("forced", "lacks"), [("avx512", "avx512f"), ("avx2", None), ("baseline", None), ("neon", "no kernels for neon")]
)
def test_an_emulated_processor_cannot_be_forced_beyond_itself(classify: Path, forced: str, lacks: str | None) -> None:
    command = emulated((classify,), "Haswell")
    environment = {"TRANSPILE_ISA": forced}
    done = subprocess.run(command, input=image(1).tobytes(), env=environment, capture_output=True, check=False)
    if lacks is None:
        assert (done.returncode, said(done)) == (0, f"kernels for {forced}")
        return
    assert done.returncode == 1
    assert f"TRANSPILE_ISA={forced}: " in said(done)
    assert lacks in said(done)


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    """What the program wrote; the lines above it are the emulator's, about features that no program asks for."""
    return done.stderr.decode().splitlines()[-1]


def emulated(command: tuple[str | Path, ...], processor: str) -> list[str | Path]:
    return ["qemu-x86_64", "-cpu", processor, *command]


class Total(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.tensor([1.0, -2.0, 0.5]))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        self.calls.add_(1)
        return self.total * self.calls


def test_a_state_starts_as_the_buffers_and_moves_on(tmp_path: Path) -> None:
    x = np.array([1, 2, 3], np.float32)
    package = transpile(Total(), (torch.from_numpy(x),), name="totals", out=tmp_path)
    library = ctypes.CDLL(str(package.path / "src/totals/lib/libtotals.so"))
    library.totals_last_error.restype = ctypes.c_char_p
    library.totals_state_bytes.restype = ctypes.c_uint64
    model = ctypes.c_void_p()
    assert library.totals_open(None, 1, ctypes.byref(model)) == 0, library.totals_last_error()
    memory = np.full(library.totals_state_bytes() + 128, 255, np.uint8)
    state = memory.ctypes.data + -memory.ctypes.data % 64
    assert library.totals_reset(model, ctypes.c_void_p(state + 8)) == 1
    assert library.totals_last_error() == b"the state must be aligned to 64 bytes"
    out = np.empty(3, np.float32)
    pointers = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, out)]
    for _ in range(2):  # reset twice: nothing of the first round is left
        assert library.totals_reset(model, ctypes.c_void_p(state)) == 0
        module = Total()
        for _ in range(3):
            assert library.totals_run(model, 0, ctypes.c_void_p(state), *pointers, None) == 0
            np.testing.assert_array_equal(out, module(torch.from_numpy(x)).numpy())
    library.totals_destroy(model)
