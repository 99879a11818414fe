"""Attention of blocks whose warpgroups share their work out (compute capability 9.0): numbers by the emulator, machine
code, errors to be found, and what it leaves to the other form."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from tests.conformance.heads import Heads, exact
from tests.conformance.kernels import op_group
from tests.cuda.emulator import EmulationError
from tests.cuda.library import CudaLibrary, other
from tests.cuda.test_attention import group_of, wrong
from transpiler import transpile
from transpiler.dims import symbol
from transpiler.gpu.cubin import operations, sequences, usage
from transpiler.gpu.cuda import cuda_source
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import Group, Lowered
from transpiler.ir import Array, TensorType
from transpiler.ops.attention import Attention
from transpiler.ops.base import Sample, rng
from transpiler.ops.dtypes import numpy_dtype
from transpiler.schedule import import_schedule, schedule
from transpiler.target import load_target

ARCH = "sm_90a"
TARGET = load_target("cuda", ARCH)
SHARED = 232448
CAUSAL = Attention(causal=True)
# (op, batch of q, batch of k and v, L, S, E, Ev, dtype, multiprocessors): both sizes of tiles and of heads, one block
# that takes all tiles and more blocks than there are tiles, one step and more than there are stages, rests.
CASES: Mapping[str, tuple[Attention, tuple[int, ...], tuple[int, ...], int, int, int, int, str, int]] = {
    "cross": (Attention(), (1, 2), (1, 2), 150, 700, 64, 64, "float16", 3),
    "causal": (CAUSAL, (1, 2), (1, 2), 270, 200, 128, 128, "bfloat16", 2),
    "causal_small": (CAUSAL, (3,), (3,), 131, 131, 64, 64, "float16", 132),
    "causal_tall": (CAUSAL, (1, 1), (1, 1), 200, 70, 64, 128, "float16", 1),
    "causal_wide": (CAUSAL, (), (), 140, 300, 64, 64, "bfloat16", 132),
    "whole": (Attention(), (1, 1), (1, 1), 128, 384, 128, 64, "float16", 132),
    "grouped": (Attention(scale=-0.2, enable_gqa=True), (2, 4), (1, 2), 66, 190, 64, 64, "float16", 2),
    "odd_heads": (Attention(), (1,), (1,), 70, 130, 72, 40, "bfloat16", 132),
    "one_key": (Attention(), (2, 1), (2, 1), 66, 1, 64, 64, "float16", 132),
}


def drawn(name: str) -> tuple[Array, ...]:
    _, batch, own, length, keys, e, ev, dtype, _ = CASES[name]
    g = rng(f"hopper{name}")
    shapes = (*batch, length, e), (*own, keys, e), (*own, keys, ev)
    return tuple(g.standard_normal(shape, np.float32).astype(numpy_dtype(dtype)) for shape in shapes)


def on(processors: int, group: Group, name: str) -> Lowered:
    """For a device of so many multiprocessors."""
    module = import_schedule("cuda.hopper_attention")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CARDS", {ARCH: replace(module.CARDS[ARCH], processors=processors)})
        return schedule(group, TARGET, name)


@cache
def kernels() -> dict[str, tuple[Lowered, Sample]]:
    found = {}
    for name, (op, *_, processors) in CASES.items():
        sample = Sample(name, op, drawn(name))
        found[name] = on(processors, op_group(op, sample.inputs), name), sample
    return found


@cache
def library() -> CudaLibrary:
    return CudaLibrary([item for item, _ in kernels().values()], target=TARGET)


@pytest.mark.parametrize("name", CASES)
def test_attention(name: str) -> None:
    _, sample = kernels()[name]
    (got,) = library().run(name, *sample.inputs)
    assert wrong(got, sample) < 1


def masked() -> dict[str, Sample]:
    """Rows that attend to the first keys alone, to the last one, which is NaN in a head, and to nothing."""
    g = rng("hopper masks")
    shapes = (1, 2, 70, 64), (1, 2, 140, 64), (1, 2, 140, 64)
    q, k, v = (g.standard_normal(shape, np.float32).astype(np.float16) for shape in shapes)
    keep = g.random((70, 140)) < 0.5
    keep[0, 3:] = keep[1, :139] = keep[2] = keep[3:, 139] = False
    keep[1, 139] = True
    bad = k.copy()
    bad[0, 1, 139, 2] = np.nan
    added = g.standard_normal((2, 1, 140)).astype(np.float16)
    added[0, 0, 5:9] = -np.inf
    lowest = np.where(keep, 0, ml_dtypes.finfo(ml_dtypes.bfloat16).min).astype(ml_dtypes.bfloat16)
    brain = tuple(x.astype(ml_dtypes.bfloat16) for x in (q, k, v))
    return {
        "kept": Sample("kept", Attention(), (q, bad, v, keep)),
        "lowest": Sample("lowest", Attention(), (*brain, lowest)),
        "per_head": Sample("per_head", CAUSAL, (q, k, v, added)),
    }


def test_masks() -> None:
    samples = masked()
    masks = CudaLibrary([on(132, op_group(x.op, x.inputs), name) for name, x in samples.items()], target=TARGET)
    assert masks.text.count("group_registers_f16_64(") > 2 * len(samples)
    for name, sample in samples.items():
        (got,) = masks.run(name, *sample.inputs)
        assert wrong(got, sample) < 1, name
    (got,) = masks.run("kept", *samples["kept"].inputs)
    assert (got[0, :, 2] == 0).all()
    assert np.isnan(got[0, 1, 1]).all()


VIEWS: Mapping[str, Heads] = {
    "chunks": Heads("chunks", "float16", 2, 70, 70, 2, 64, CAUSAL),
    "cache": Heads("cache", "bfloat16", 2, 66, 131, 1, 128),
}


def test_views() -> None:
    """Slices, transposes and repeated keys are read where they are; what lies behind the last key is none."""
    groups = {name: case.group(name) for name, case in VIEWS.items()}
    views = CudaLibrary([on(132, group, name) for name, (group, _) in groups.items()], target=TARGET)
    for name, (group, inputs) in groups.items():
        (launch,) = views.launches[name]
        assert len(launch.maps) == 3, name
        (got,) = views.run(name, *inputs)
        want = exact(group, inputs)
        bound = 2 * float(ml_dtypes.finfo(got.dtype).eps) * np.abs(want).max()
        assert np.abs(got.astype(np.float64) - want).max() < bound, name


def test_sizes_that_vary() -> None:
    n = symbol("n")
    types = [TensorType("float16", (1, 2, n, 64))] * 3
    varies = CudaLibrary([on(3, group_of(CAUSAL, types, widened=True), "varies")], target=TARGET)
    assert "group_registers_f16_64" in varies.text
    g = rng("hopper varies")
    for length in (1, 140):
        inputs = tuple(g.standard_normal((1, 2, length, 64), np.float32).astype(np.float16) for _ in range(3))
        (got,) = varies.run("varies", *inputs, sizes={"n": length})
        assert wrong(got, Sample("varies", CAUSAL, inputs)) < 1


class Heads64(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(48, 384), nn.Linear(128, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 64)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        z: torch.Tensor = self.out(y.transpose(1, 2).flatten(2))
        return z


@pytest.mark.slow
def test_a_package(driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors of parts of one projection, with sizes that vary, through the whole runtime."""
    monkeypatch.setenv("STANDIN_CAPABILITY", "9.0")
    torch.manual_seed(1)
    model, x = Heads64().eval(), torch.randn(2, 70, 48)
    length = torch.export.Dim("length", min=1, max=140)
    package = transpile(
        model, (x,), target="cuda", arch=ARCH, name="heads", out=tmp_path, precision="float16",
        dynamic_shapes=({1: length},), test=False,
    )  # fmt: skip
    listed = json.loads((package.path / "src/heads/kernels/cuda/launches.sm_90a.json").read_text())
    launches = [launch for kernel in listed["kernels"].values() for launch in kernel["launches"]]
    assert [len(launch.get("maps", ())) for launch in launches].count(3) == 1
    with package.load() as loaded:
        for size in (70, 140, 1):
            x = torch.randn(2, size, 48)
            with torch.no_grad():
                expected = model(x).numpy()
            assert np.abs(loaded(x.numpy()) - expected).max() < 0.02 * np.abs(expected).max()
    gc.collect()


@pytest.mark.parametrize(
    ("shapes", "arch", "warpgroups"),
    [
        (((2, 65, 64), (2, 9, 64), (2, 9, 64)), ARCH, True),
        (((2, 64, 64), (2, 9, 64), (2, 9, 64)), ARCH, False),
        (((2, 300, 32), (2, 300, 32), (2, 300, 64)), ARCH, False),
        (((2, 300, 64), (2, 300, 64), (2, 300, 64)), "sm_80", False),
    ],
)
def test_which_form_is_taken(shapes: tuple[tuple[int, ...], ...], arch: str, warpgroups: bool) -> None:
    group = op_group(Attention(), [np.zeros(shape, np.float16) for shape in shapes])
    target = load_target("cuda", arch)
    text = cuda_source([schedule(group, target, "taken")], target.tvm_target()).text
    assert ("group_registers_" in text) == warpgroups


def test_machine_code() -> None:
    chosen = ("cross", "causal", "whole")
    source = cuda_source([kernels()[name][0] for name in chosen], TARGET.tvm_target())
    cubin = compile_code(source.text, ARCH).cubin
    used, found, order = usage(cubin), operations(cubin), sequences(cubin)
    for name in chosen:
        e, ev = CASES[name][5:7]
        (launch,) = source.launches[name]
        counted = found[launch.entry]
        assert used[launch.entry].stack == 0, name
        assert launch.shared_bytes <= SHARED - 1024, name
        # The first keys and the last values apart from the others: 16 of a summed dim in an instruction.
        assert counted["HGMMA"] == 2 * (e // 16 + 128 // 16), name
        # Three fences and four waits: where the compiler takes products one after the other there are more.
        assert counted["WARPGROUP"] == 7, name
        # Weights are computed between the wait for their scores and that for the last products: a lane has 64 of them,
        # and how much its two rows are scaled down.
        parts = " ".join(order[launch.entry]).split("WARPGROUP")
        assert parts[3].count("HGMMA") == e // 16 + 128 // 16, name
        assert [part.count("MUFU") for part in parts[2:6]] == [66, 0, 66, 0], name
        # The tile's queries, the first and the other keys, the other and the last values, in panels of 64.
        assert counted["UTMALDG"] == 3 * (e // 64) + 2 * (ev // 64), name
        assert counted["USETMAXREG"] == (2 if launch.workgroup[0] == 384 else 0), name
        assert counted["BAR"] == 1, name
        assert counted["HMMA"] == counted["LDSM"] == counted["LDGSTS"] == 0, name
    assert {source.launches[name][0].workgroup[0] for name in chosen} == {256, 384}


ERRORS: Mapping[str, Callable[[str], str]] = {
    "no wait for keys": other(r"barrier_wait\((?![^;]*\^ 1)[^;]*\);", ""),
    "no wait for readers": other(r"barrier_wait\([^;]*\^ 1\)+;", ""),
    "no wait for scores": other(r"group_wait_1_[^;]*;", ""),
    "no wait for values": other(r"group_wait_0_f\d+_r[^;]*;", ""),
    "no end of a group": other(r"wgmma_end_group\(\);", ""),
    "never scaled down": other(r"(_ptr_\d+)\[([^]]*)\] = \(\1\[\2\] \* _ptr_\d+\[[01]\]\);", ""),
    "no diagonal": other(r"<= ", "< "),
    "keys that are none": other(r"\(_ptr_\d+\[0\] < 200\) && ", ""),
    "half of the lanes of a row": other(r"__shfl_xor_sync\(([^;]*), 2, 32\)", r"__shfl_xor_sync(\1, 0, 32)"),
    "too few bytes": other(r"(barrier_expect\([^;]*, \(uint\))(\d+)\);", r"\1(\2 - 128));"),
    "another panel": other(r"\+ \(uint64_t\)1024ULL\)", "+ (uint64_t)0ULL)"),
    "arrives twice": other(r"(barrier_arrive\([^;]*;)", r"\1 \1"),
}


@cache
def broken() -> CudaLibrary:
    """The kernel with every one of the errors, which tells itself from the others by a number behind its name."""
    item, _ = kernels()["causal"]

    def edit(text: str) -> str:
        return "".join([text, *(_kernels(change(text), number) for number, change in enumerate(ERRORS.values()))])

    return CudaLibrary([item], edit, TARGET)


def _kernels(text: str, number: int) -> str:
    _, found = text.split('extern "C"', 1)
    return 'extern "C"' + found.replace("causal_kernel", f"causal_kernel_{number}")


@pytest.mark.parametrize("name", ["", *ERRORS])
def test_planted_errors_are_found(name: str) -> None:
    item, sample = kernels()["causal"]
    planted, key = broken(), item.kernel.name
    (launch,) = planted.launches[key]
    number = f"_{[*ERRORS].index(name)}" if name else ""
    planted.launches[key] = (replace(launch, entry=f"{key}_kernel{number}"),)
    try:
        (got,) = planted.run(key, *sample.inputs)
    except (AssertionError, EmulationError):
        assert name
        return
    assert (wrong(got, sample) < 1) == (not name)
