"""Packages for processors and Pythons that this machine does not have, and refusals where none can run."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.support import load
from tests.packaging.emulation import python_here, python_of
from transpiler import Package, transpile
from transpiler.c_compiler import c_compiler
from transpiler.elf import read_needs
from transpiler.errors import TranspileErrors
from transpiler.target import load_targets
from transpiler.testing import run_generated_tests

ARM = "aarch64-unknown-linux-gnu"
CROSS_LIBRARIES = "/usr/aarch64-linux-gnu"  # libc6-arm64-cross
PROGRAM = r"""
#include <stdio.h>
#include <scaled.h>
int main(void) {
  float x[6] = {-2, -1, 0, 1, 2, 3}, y[8];
  const void *inputs[] = {x};
  void *outputs[] = {y};
  scaled_model *model;
  if (scaled_open(NULL, 2, &model) || scaled_run(model, 0, NULL, inputs, outputs, NULL)) {
    printf("%s\n", scaled_last_error());
    return 1;
  }
  scaled_destroy(model);
  for (int i = 0; i < 8; ++i) printf("%.9g\n", y[i]);
  printf("%s\n", scaled_isa());
  return 0;
}
"""


def small() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).eval()
    return module, torch.arange(-2.0, 4.0).reshape(2, 3)


def build(folder: Path, **options: Any) -> Package:
    module, x = small()
    return transpile(module, (x,), name="scaled", out=folder, **options)


def test_a_package_for_aarch64_runs_there(tmp_path: Path) -> None:
    """Cross-compiled by zig, called from C, run by qemu-user."""
    package = build(tmp_path, triple=ARM, test=True)
    assert package.report.foreign
    assert package.report.tests is None
    folder = package.path / "src" / "scaled"
    libraries = [path.read_bytes() for path in folder.rglob("*.so")]
    assert {read_needs(library).machine for library in libraries} == {"aarch64"}
    (tmp_path / "main.c").write_text(PROGRAM)
    flags = [f"-I{folder}/include", f"-L{folder}/lib", "-lscaled", f"-Wl,-rpath,{folder}/lib", "-o", "main"]
    c_compiler(ARM).run(["main.c", *flags], tmp_path)
    command = ["qemu-aarch64", "-L", CROSS_LIBRARIES, "./main"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *numbers, isa = done.stdout.split()
    assert isa == "neon"
    module, x = small()
    with torch.no_grad():
        exact = module.double()(x.double()).numpy()
    np.testing.assert_allclose(np.array(numbers, np.float64).reshape(2, 4), exact, atol=1e-6)
    with pytest.raises(Exception, match=r"built for aarch64 processors; this one is x86_64"):
        package.load()


def test_an_older_glibc_is_asked_for(tmp_path: Path) -> None:
    package = build(tmp_path, glibc="2.17", isa="baseline", test=True)
    assert package.report.tests is not None
    assert package.report.tests.ok
    manifest = package.load().manifest
    assert manifest["platform"]["tag"] == "manylinux_2_17_x86_64"
    with pytest.raises(TranspileErrors, match=r"--glibc '2\.5': expected a version such as 2\.28, at least 2\.17"):
        build(tmp_path, glibc="2.5")


def test_triples_and_instruction_sets_that_do_not_fit_are_refused() -> None:
    assert [target.isa.name for target in load_targets("cpu", triple="aarch64-linux-gnu")] == ["neon"]
    everything = load_targets("cpu", ("baseline", "avx512"), "x86_64-linux-gnu")
    assert [target.isa.name for target in everything] == ["avx512", "baseline"], "best first"
    for triple, said in (
        ("aarch64-apple-darwin", "packages run on Linux only; known: x86_64-unknown-linux-gnu, aarch64-unknown-linux"),
        ("x86_64-pc-windows-msvc", "packages run on Linux only"),
        ("riscv64-unknown-linux-gnu", "Unknown triple 'riscv64-unknown-linux-gnu'; known: x86_64"),
    ):
        with pytest.raises(TranspileErrors, match=said):
            load_targets("cpu", triple=triple)
    with pytest.raises(TranspileErrors, match=r"avx2 is not an instruction set of aarch64-.*; it has: neon"):
        load_targets("cpu", ("avx2",), ARM)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(tmp_path_factory.mktemp("here"), isa="native").load


@pytest.mark.parametrize(("system", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("freebsd14", "freebsd14")])
def test_other_systems_are_refused(
    module: Any, monkeypatch: pytest.MonkeyPatch, system: str, name: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(Exception, match=f"runs on Linux only, not on {name}") as caught:
        module()
    assert type(caught.value).__name__ == "PackageError"
    with pytest.raises(TranspileErrors, match=f"transpile runs on Linux only, not on {name}"):
        build(tmp_path)


def test_a_device_that_the_package_lacks(module: Any) -> None:
    assert module(device="cpu").device == "cpu"
    text = r"device: this package has kernels for cpu \(.*\) only, got 'cuda'; on this machine: cpu: cpu \(.*\)"
    for wanted in ("cuda", ["cpu", "cuda"]):
        with pytest.raises(ValueError, match=text.replace("'cuda'", re.escape(repr(wanted)))):
            module(device=wanted)


# --- whole generated suites under emulators: long -----------------------------------------------------------

MAX = "qemu-x86_64 -cpu max"
SUITES = ["mnist", "lstm", "bottleneck_block", "bi_gru"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_the_generated_suite_passes_on_aarch64(name: str, tmp_path: Path, aarch64: Path) -> None:
    model, args, kwargs = load(name)
    package = transpile(model, args, kwargs, name=name, out=tmp_path, triple=ARM)
    report = run_generated_tests(package.path, python=[str(aarch64)], timeout=3600)
    assert report.ok, report.output
    assert report.skipped == 0


@pytest.fixture(scope="session")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_of(
        tmp_path_factory.mktemp("aarch64"), suite="bookworm", version="3.11", debian="arm64", machine="aarch64",
        emulator="qemu-aarch64",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize(("processor", "isa"), [("Haswell", "avx2"), ("Nehalem", "baseline")])
def test_the_generated_suite_passes_without_avx512(name: str, processor: str, isa: str, tmp_path: Path) -> None:
    model, args, kwargs = load(name)
    names = [target.isa.name for target in load_targets("cpu", triple="x86_64-unknown-linux-gnu")]
    package = transpile(model, args, kwargs, name=name, out=tmp_path, isa=names)
    python = ["qemu-x86_64", "-cpu", processor, sys.executable]
    code = f"import sys; sys.path.insert(0, 'src'); from {name} import Model; print(Model.runnable_isas()[0])"
    chosen = subprocess.run([*python, "-c", code], cwd=package.path, capture_output=True, text=True, check=True)
    assert chosen.stdout.split()[-1] == isa
    report = run_generated_tests(package.path, python=python, timeout=3600)
    assert report.ok, report.output
    assert report.skipped == 0


@pytest.mark.slow
@pytest.mark.parametrize(("version", "numpy"), [("3.10", "numpy==1.26.0"), ("3.12", "numpy")])
@pytest.mark.parametrize("name", ["mnist", "bi_gru"])
def test_the_generated_suite_passes_with_the_pythons_of_this_machine(
    name: str, version: str, numpy: str, tmp_path: Path
) -> None:
    """The oldest Python and the oldest numpy that a package asks for, and a newer one."""
    model, args, kwargs = load(name)
    package = transpile(model, args, kwargs, name=name, out=tmp_path)
    python = python_here(tmp_path / "python", version, numpy)
    report = run_generated_tests(package.path, python=[str(python)], timeout=600)
    assert report.ok, report.output
    assert report.skipped == 0


@pytest.mark.slow
@pytest.mark.parametrize(("version", "suite"), [("3.11", "bookworm"), ("3.13", "trixie"), ("3.14", "forky")])
def test_the_generated_suite_passes_with_other_pythons(version: str, suite: str, tmp_path: Path) -> None:
    """Interpreters of Debian releases, with their own C library."""
    model, args, kwargs = load("mnist")
    package = transpile(model, args, kwargs, name="mnist", out=tmp_path, isa="avx2")
    python = python_of(
        tmp_path / "root",
        suite=suite,
        version=version,
        debian="amd64",
        machine="x86_64",
        emulator=MAX,
    )
    report = run_generated_tests(package.path, python=[str(python)], timeout=3600)
    assert report.ok, report.output
