"""Winograd convolutions with their channels last: numbers by the emulator, machine code, errors to be found, and where
they are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conformance.kernels import op_group
from tests.cuda.emulator import EmulationError
from tests.cuda.library import CudaLibrary, other
from tests.passes.support import graph
from tests.vulkan.bounds import check, magnitude
from transpiler import transpile
from transpiler.gpu.cubin import operations, usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.ops.base import rng
from transpiler.ops.channels_last import ConvLast
from transpiler.ops.winograd import PackWinograd
from transpiler.ops.winograd_last import WinogradLast
from transpiler.passes import winograd_last
from transpiler.passes.winograd_last import fast_convolutions
from transpiler.schedule import import_schedule, schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
# (images, height, width, channels, output channels, padding, tile): rests of tiles in both dims, of channels in chunks,
# and of output channels in runs.
CASES: Mapping[str, tuple[int, int, int, int, int, tuple[int, int], int]] = {
    "even": (2, 8, 12, 16, 32, (1, 1), 4),
    "odd": (1, 9, 7, 13, 21, (1, 1), 4),
    "small_tiles": (2, 5, 6, 6, 18, (0, 2), 2),
    "many_channels": (1, 4, 4, 132, 20, (1, 1), 2),
    "three_images": (3, 4, 4, 16, 16, (1, 1), 4),
}
# Roundings of an element in the transforms, two lines of up to six terms each, of the map, filter and result.
TRANSFORMS = 36


def drawn(name: str) -> tuple[WinogradLast, list[Array], Array]:
    """The op, its inputs, and the filter that is packed."""
    images, height, width, channels, out_channels, padding, tile = CASES[name]
    g = rng(f"winograd {name}")
    filters = g.standard_normal((out_channels, channels, 3, 3), np.float32)
    x = g.standard_normal((images, height, width, channels), np.float32)
    bias = g.standard_normal(out_channels, np.float32)
    return WinogradLast(out_channels, padding, tile), [x, PackWinograd(tile).reference(filters), bias], filters


@cache
def kernels() -> dict[str, tuple[Lowered, list[Array]]]:
    found = {}
    for name in CASES:
        op, inputs, _ = drawn(name)
        found[name] = schedule(op_group(op, inputs), TARGET, name), inputs
    return found


def exact(name: str) -> tuple[Array, Array | float, int]:
    """The result in float64, what its roundings are relative to, and how many there are."""
    op, (x, packed, bias), filters = drawn(name)
    wide = [array.astype(np.float64) for array in (x, filters.transpose(0, 2, 3, 1), bias)]
    result = ConvLast((1, 1), op.padding, (1, 1)).reference(*wide)
    return result, magnitude(op, x.transpose(0, 3, 1, 2), packed, bias), x.shape[-1] + TRANSFORMS


def test_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all images at once, and of two and then one, whose products have the same tile."""
    library = CudaLibrary([item for item, _ in kernels().values()])
    for name, (item, inputs) in kernels().items():
        assert len(library.launches[item.kernel.name]) == 3
        check(library.run(item.kernel.name, *inputs)[0], *exact(name))
    monkeypatch.setattr(import_schedule("cuda.winograd"), "WORKSPACE", 2 * 36 * (16 + 16) * 4)
    op, inputs, _ = drawn("three_images")
    library = CudaLibrary([schedule(op_group(op, inputs), TARGET, "parts")])
    launches = library.launches["parts"]
    assert len(launches) == 6
    assert launches[1].workgroup == launches[4].workgroup
    check(library.run("parts", *inputs)[0], *exact("three_images"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_stays_where_it_is(value: float) -> None:
    item, (x, packed, bias) = kernels()["odd"]
    x = x.copy()
    x[0, 2, 3, 5] = value
    op, _, filters = drawn("odd")
    with np.errstate(all="ignore"):
        direct = ConvLast((1, 1), op.padding, (1, 1)).reference(x, filters.transpose(0, 2, 3, 1), bias)
    (got,) = CudaLibrary([item]).run("odd", x, packed, bias)
    touched = np.zeros(got.shape, bool)
    touched[0, 1:4, 2:5] = True
    assert np.isfinite(got[~touched]).all()
    assert np.array_equal(np.isnan(got), np.isnan(direct))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_machine_code(arch: str) -> None:
    """Nothing in local memory; the products are multiply-adds on what asynchronous copies brought."""
    library = CudaLibrary([item for item, _ in kernels().values()])
    cubin = compile_code(library.text, arch).cubin
    used, found = usage(cubin), operations(cubin)
    for launches in library.launches.values():
        assert [used[launch.entry].stack for launch in launches] == [0, 0, 0]
        counted = found[launches[1].entry]
        assert counted["LDGSTS"] > 0
        assert counted["FFMA"] >= 2 * counted["LDS"]


ERRORS: Mapping[str, Callable[[str], str]] = {
    "no barrier": other(r"__syncthreads\(\);", ""),
    "no wait": other(r"copies_wait_[1-9]\(\);", ""),
    "no padding": other(r"\(0 <= ([^)]*)\) && ", r"(-9 <= \1) && "),
    "another point": other(r"0x1\.8p\+0f[^)]*\)", "0x1.9p+0f)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_planted_errors_are_found(name: str) -> None:
    item, inputs = kernels()["odd"]
    try:
        (got,) = CudaLibrary([item], ERRORS[name]).run("odd", *inputs)
    except (AssertionError, EmulationError):
        return
    with pytest.raises(AssertionError):
        check(got, *exact("odd"))


@pytest.mark.parametrize(
    ("images", "size", "channels", "precision", "tile"),
    [
        (32, 56, 64, "", 4),
        (32, 14, 256, "", 4),
        (1, 14, 256, "", 2),
        (1, 7, 512, "", None),  # filters at the points are more than what products save
        (32, 112, 4, "", None),  # transforms cost more than products of so few channels
        (32, 56, 64, "tf32", None),
    ],
)
def test_where_it_is_chosen(images: int, size: int, channels: int, precision: str, tile: int | None) -> None:
    before = graph(
        f"""
        func forward(
          %x: float32[{images}, {size}, {size}, {channels}] user "x",
          %w: float32[{channels}, 3, 3, {channels}] parameter "w",
        ) {{
          %y: float32[{images}, {size}, {size}, {channels}] = conv_last(%x, %w) {{stride = (1, 1),
            padding = (1, 1), dilation = (1, 1), groups = 1, precision = "{precision}"}}
          return %y
        }}
        """
    )
    after = fast_convolutions(before)
    assert [node.op.tile for node in after.nodes if isinstance(node.op, WinogradLast)] == ([tile] if tile else [])


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters are packed when the model is loaded; `--exact` and TF32 keep direct sums."""
    monkeypatch.setattr(winograd_last, "best_tile", lambda *_: 4)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()).eval()
    x = torch.randn(2, 5, 9, 10)
    package = transpile(model, (x,), target="cuda", arch="sm_80", name="fast", out=tmp_path / "fast")
    assert "winograd4x4" in (package.path / "src/fast/model.py").read_text()
    report = package.test()
    assert report.failed == 0, report.output
    exact = transpile(model, (x,), target="cuda", arch="sm_80", name="exact", out=tmp_path / "exact", exact=True)
    tf32 = transpile(model, (x,), target="cuda", arch="sm_80", name="tf32", out=tmp_path / "tf32", precision="tf32")
    for direct in (exact, tf32):
        assert "winograd" not in (direct.path / "src" / direct.path.name / "model.py").read_text()
