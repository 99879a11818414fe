"""Kernels and the runner are clean under the Khronos validation layer, in a process of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.vulkan.validation import validated
from transpiler import transpile
from transpiler.api import Package

SCRIPT = """
import numpy as np
from tests.vulkan.device import Device
from tests.vulkan.test_kernels import kernels

device = Device()
x, y = np.ones(256, np.int8), np.zeros(256, np.int8)
device.run(kernels()["reverse"], [x, y])
a, b, c = (np.ones(shape, np.float16) for shape in ((65, 50), (50, 70), (65, 70)))
named = {"a_ptr": a, "b_ptr": b, "out_ptr": c}
kernel = kernels()["matmul_float16"]
device.run(kernel, [named[binding.name] for binding in kernel.buffers])
vk.vkCreateBuffer(device.device, vk.VkBufferCreateInfo(size=0, usage=vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT), None)
print("ran", int(y.sum()), float(c[0, 0]))
"""


@pytest.mark.usefixtures("device")
def test_kernels_are_clean() -> None:
    """Of two kernels and a buffer of no bytes, which shows that the layer is heard, only the buffer is reported."""
    text, reported = validated(SCRIPT)
    assert "ran 256 50.0" in text
    assert reported == {"VUID-VkBufferCreateInfo-size-00912"}


class Mixed(nn.Module):
    """Kernels that check their data, that sort, that are made for graphics cards, and a state."""

    def __init__(self) -> None:
        super().__init__()
        self.some, self.others = nn.Embedding(10, 40), nn.Embedding(12, 40)
        self.register_buffer("last", torch.zeros(5, 40))

    def forward(self, i: torch.Tensor, j: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, y = torch.softmax(self.some(i), -1), self.others(j)
        before = self.last.clone()
        self.last.copy_(x)
        return (x @ y.T).sort(-1)[0], y.roll(3, 0).cumsum(-1), before


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Package:
    torch.manual_seed(5)
    args = torch.arange(5), torch.arange(7)
    folder = tmp_path_factory.mktemp("mixed")
    return transpile(Mixed().eval(), args, target="vulkan", name="mixed", out=folder)


CALLS = """
import os
import numpy as np
import mixed
from mixed.runtime.launches import Copy

i, j = np.arange(5), np.arange(7)
seen = []
for os.environ["TRANSPILE_ISA"] in ("base", "staged"):
    for os.environ["TRANSPILE_VULKAN_STAGING"] in ("", "1"):
        for native in (True, False):
            with mixed.Model(native=native) as model:
                model(i, j)
                seen.append(model(i, j))
                waiting = list(model._running()._idle._waiting.values()) if native else []
                for recording in sum(waiting, []):
                    assert len(recording.program.checked) > 2
                    steps = [step for step in recording.program.steps if not isinstance(step, Copy)]
                    assert not any(region.offset % 256 for step in steps for region in step.regions)
                for first in (0, 6):
                    try:
                        model(i + 6 - first, j + first)
                    except IndexError as error:
                        print("refused", str(error).split()[6])
                    model.reset()
for outputs in seen[1:]:
    for one, other in zip(seen[0], outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
assert seen[0][2].any()
print("ran", len(seen))
"""
PLANTED = """
import numpy as np
import mixed
from mixed.runtime.launches import Program

Program.needs_barrier = lambda self: [False] * len(self.steps)
mixed.Model()(np.arange(5), np.arange(7))
"""


@pytest.mark.usefixtures("device")
def test_every_way_to_run_a_package_is_clean(mixed: Package) -> None:
    """Both variants, in memory that the host sees and through staging memory, replayed and kernel by kernel."""
    text, reported = validated(CALLS, PYTHONPATH=str(mixed.path / "src"))
    assert "ran 8" in text
    assert text.count("refused take_5x40\nrefused take_7x40\n") == 8
    assert not reported, text


@pytest.mark.usefixtures("device")
def test_a_missing_barrier_is_reported(mixed: Package) -> None:
    _, reported = validated(PLANTED, PYTHONPATH=str(mixed.path / "src"))
    assert "SYNC-HAZARD-READ-AFTER-WRITE" in reported
