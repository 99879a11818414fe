"""Rows that are reduced by instructions of subgroups: right for subgroups of any size, full or not, and chosen where
the device has the instructions.

Mesa's driver for processors has subgroups of as many threads as its vectors have elements, which the environment sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conformance.kernels import op_group
from tests.conformance.selection import one_of_each
from tests.conformance.test_ops_on_targets import FAMILIES, check_half_samples, check_samples
from tests.conformance.test_symbolic_sizes import REFUSED, cases_of
from tests.conformance.test_symbolic_sizes import run as vary
from tests.vulkan.device import Device
from tests.vulkan.test_schedules import DIRECT, ROWS, STAGED, R, check_op, draw, run
from tests.vulkan.validation import in_process, validated
from transpiler import transpile
from transpiler.api import Package
from transpiler.gpu.vulkan import compile_kernel
from transpiler.schedule import import_schedule, schedule
from transpiler.spirv.dtypes import Capability
from transpiler.spirv.reflect import reflect
from transpiler.target import cpu_features

OPERATIONS = {"VK_SUBGROUP_FEATURE_BASIC_BIT", "VK_SUBGROUP_FEATURE_ARITHMETIC_BIT"}
# Threads of a workgroup, for the 8 of a subgroup of Mesa's: one that is not full (on Mesa only ever the one subgroup of
# a workgroup: its driver counts others that are not full as none), two, more than a workgroup has rows.
THREADS = (2, 16, 256)
TOGETHER = ("softmax_many", "softmax_long", "layer_norm_many", "sum_all")


def check_rows(device: Device, threads: int) -> None:
    """Rows and reductions by workgroups of so many threads."""
    schedules = [import_schedule(name) for name in ("gpu.lines", "vulkan.reduce")]
    with pytest.MonkeyPatch.context() as patch:
        for module in schedules:
            patch.setattr(module, "ROW_THREADS", threads)
        for name in TOGETHER:
            make, shape, terms = ROWS[name]
            check_op(device, STAGED, make(), draw(*shape), terms=terms)


@pytest.mark.parametrize("threads", THREADS)
def test_workgroups_of_any_size(threads: int, device: Device) -> None:
    check_rows(device, threads)


OTHER_SIZES = """
import vulkan as vk
from tests.vulkan.device import Device
from tests.vulkan.test_subgroups import check_rows
device = Device()
found = vk.VkPhysicalDeviceSubgroupProperties()
vk.vkGetPhysicalDeviceProperties2(device.physical, vk.VkPhysicalDeviceProperties2(pNext=found))
for threads in (2, 64):
    check_rows(device, threads)
print("llvmpipe" in device.name, found.subgroupSize)
"""


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("size", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_subgroups_of_other_sizes(size: int) -> None:
    if size == 16 and "avx512f" not in cpu_features():
        pytest.skip("this processor has no vectors of 16 numbers")
    text = in_process(OTHER_SIZES, LP_NATIVE_VECTOR_WIDTH=str(32 * size))
    if text.startswith("False"):
        pytest.skip("the device is none of Mesa's for processors")
    assert text.split() == ["True", str(size)]


@pytest.mark.parametrize("name", ["softmax_many", "layer_norm_many", "softmax_long", "group_norm", "sum_all"])
def test_both_variants_agree_on_what_is_no_number(name: str, device: Device) -> None:
    make, shape, _ = ROWS[name]
    rng = np.random.default_rng()
    x = draw(*shape)
    for value in (np.nan, np.inf, -np.inf):
        x.reshape(-1)[rng.integers(0, x.size, 2)] = value
    group = op_group(make(), [x])
    (plain,), (together,) = run(device, group, DIRECT, [x]), run(device, group, STAGED, [x])
    np.testing.assert_array_equal(np.isfinite(plain), np.isfinite(together))
    np.testing.assert_array_equal(plain[~np.isfinite(plain)], together[~np.isfinite(plain)])


def test_a_row_of_nothing_but_minus_infinity(device: Device) -> None:
    x = np.full((300, 70), -np.inf, np.float32)
    (got,) = run(device, op_group(R["softmax"](1), [x]), STAGED, [x])
    assert np.isnan(got).all()


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [("softmax_many", "float32", True), ("sum_all", "float32", True), ("softmax_many", "float64", False),
     ("sum_all", "int64", False), ("max_rows", "float32", False)],
)  # fmt: skip
def test_which_kernels_need_them(name: str, dtype: str, expected: bool) -> None:
    """Sums and largest numbers of float32, where any order will do."""
    make, shape, _ = ROWS[name]
    group = op_group(make(), [np.zeros(shape, dtype)])
    (launch,), files = compile_kernel(schedule(group, STAGED, "kernel"), STAGED)
    capabilities = reflect(files[launch.file]).capabilities
    needed = {Capability.GROUP_NON_UNIFORM, Capability.GROUP_NON_UNIFORM_ARITHMETIC}
    assert (set(launch.features) >= OPERATIONS, capabilities >= needed) == (expected, expected)
    (plain,), _ = compile_kernel(schedule(group, DIRECT, "kernel"), DIRECT)
    assert OPERATIONS.isdisjoint(plain.features)


# --- the ops' samples


@pytest.fixture
def everywhere(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short rows go to subgroups too, and small sums to workgroups."""
    monkeypatch.setattr(import_schedule("gpu.lines"), "FEW", 0)
    for name in ("LONG", "VERY_LONG"):
        monkeypatch.setattr(import_schedule("vulkan.reduce"), name, 1)


FAMILIES_OF_ROWS = ("softmax", "norm", "reduce")


@pytest.mark.usefixtures("everywhere")
def test_a_sample_of_each_op() -> None:
    ops = {sample.op.name for family in FAMILIES_OF_ROWS for sample in FAMILIES[family]}
    chosen = [sample for sample in one_of_each() if sample.op.name in ops]
    assert len(chosen) == len(ops)
    problems = check_samples(chosen, STAGED)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("family", FAMILIES_OF_ROWS)
def test_samples(family: str) -> None:
    problems = check_samples(FAMILIES[family], STAGED) + check_half_samples(family, STAGED)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("family", FAMILIES_OF_ROWS)
def test_sizes_that_vary(family: str) -> None:
    problems, refused, _ = vary(cases_of(family, every=False), STAGED)
    assert not problems, "\n".join(problems)
    assert refused <= REFUSED


# --- in packages


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(70)
        self.linear = nn.Linear(70, 33)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.linear(self.norm(x))
        return torch.softmax(y, -1), y.sum()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, nn.Module]:
    torch.manual_seed(21)
    module = Rows().eval()
    package = transpile(
        module, (torch.zeros(2, 143, 70),), target="vulkan", name="rows", out=tmp_path_factory.mktemp("rows"),
        dynamic_shapes={"x": {0: torch.export.Dim("batch", max=40)}},
    )  # fmt: skip
    return package, module


CHOSEN = """
import numpy as np
import rows.runtime.vulkan.device as device
device.KINDS = ("other", "integrated", "discrete", "virtual", "{kind}")  # what a processor is taken for
if {lacks}:
    device.SUBGROUP_OPERATIONS = device.SUBGROUP_OPERATIONS[:1]
from rows import Model
try:
    with Model() as model:
        print(model._running().library.variant, *np.load({x!r}).shape)
        np.save({y!r}, np.concatenate([item.ravel() for item in model(np.load({x!r}))]))
except Exception as error:
    print(error)
"""


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("kind", "lacks", "forced", "expected"),
    [
        ("discrete", False, "", "staged"),
        ("integrated", False, "", "staged"),
        ("discrete", True, "", "base"),
        ("cpu", False, "", "base"),
        ("cpu", False, "staged", "staged"),
    ],
)
def test_a_device_gets_them_if_it_has_them(
    kind: str, lacks: bool, forced: str, expected: str, rows: tuple[Package, nn.Module], tmp_path: Path
) -> None:
    package, module = rows
    x, y = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(x, draw(3, 143, 70))
    text = in_process(
        CHOSEN.format(kind=kind, lacks=lacks, x=str(x), y=str(y)),
        PYTHONPATH=str(package.path / "src"), TRANSPILE_ISA=forced,
    )  # fmt: skip
    assert text.split() == [expected, "3", "143", "70"]
    with torch.no_grad():
        expected_values = np.concatenate([item.numpy().ravel() for item in module(torch.from_numpy(np.load(x)))])
    np.testing.assert_allclose(np.load(y), expected_values, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("device")
def test_a_device_without_them_is_told_of_the_kernel(rows: tuple[Package, nn.Module]) -> None:
    text = in_process(
        CHOSEN.format(kind="discrete", lacks=True, x="", y=""),
        PYTHONPATH=str(rows[0].path / "src"), TRANSPILE_ISA="staged",
    )  # fmt: skip
    assert "cannot run this package: kernel layer_norm" in text
    assert "needs VK_SUBGROUP_FEATURE_ARITHMETIC_BIT" in text


@pytest.mark.usefixtures("device")
def test_they_are_clean_under_the_validation_layer(rows: tuple[Package, nn.Module]) -> None:
    code = (
        "import numpy as np; from rows import Model; x = np.ones((2, 143, 70), np.float32); "
        "Model()(x); Model(native=False)(x); print('ran')"
    )
    text, reported = validated(code, PYTHONPATH=str(rows[0].path / "src"), TRANSPILE_ISA="staged")
    assert text.startswith("ran"), text
    assert not reported, text
