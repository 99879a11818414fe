"""No kernel reads or writes outside of its buffers, also where the driver forgives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conformance import targets
from tests.conformance.selection import one_of_each
from tests.conformance.test_ops_on_targets import check_samples
from tests.vulkan.accesses import CheckingLibrary, with_checks
from tests.vulkan.device import Device
from tests.vulkan.kernels import code_errors
from transpiler.gpu.vulkan import compile_kernel
from transpiler.group import Lowered, make_group
from transpiler.ir import Node, TensorType, Value
from transpiler.ops.activation import Relu
from transpiler.schedule import import_schedule
from transpiler.target import Target, load_targets

TARGETS = load_targets("vulkan")
PARTS = 4


def shifted(read: int, write: int) -> Lowered:
    """`y[i + write] = x[i + read]` for 64 elements."""
    x, y = (Value(name, TensorType("float32", (64,))) for name in "xy")
    builder = import_schedule("tir").KernelBuilder("shifted", [x.type], [y.type])
    with builder, import_schedule("gpu.threads").each_thread(64) as thread:
        builder.outputs[0].store(thread + write, builder.inputs[0][thread + read])
    lowered: Lowered = import_schedule("fuse").lowered(make_group((Node(Relu(), (x,), (y,)),), (y,)), builder, flops=0)
    return lowered


@pytest.mark.parametrize(("read", "write"), [(0, 0), (1, 0), (-1, 0), (0, 1)])
def test_what_lies_outside_is_found(read: int, write: int, device: Device, tmp_path: Path) -> None:
    item = shifted(read, write)
    for name, code in compile_kernel(item, TARGETS[0])[1].items():
        assert code_errors(name, with_checks(code), tmp_path) == ""
    library = CheckingLibrary([item], TARGETS[0], device)
    x = np.arange(64, dtype=np.float32)
    if read == write == 0:
        np.testing.assert_array_equal(library.run("shifted", x)[0], x)
    else:
        with pytest.raises(AssertionError, match="shifted: shifted_kernel reaches outside of a buffer"):
            library.run("shifted", x)
    library.close()


@pytest.mark.slow
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("target", TARGETS, ids=[item.variant.name for item in TARGETS])
def test_ops_stay_inside(target: Target, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "VulkanLibrary", CheckingLibrary)
    problems = check_samples(one_of_each()[part::PARTS], target)
    assert not problems, "\n".join(problems)
