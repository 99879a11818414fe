"""Kernels and the runner are clean under the Khronos validation layer, in a process of its own."""

from __future__ import annotations

import pytest

from tests.vulkan.validation import validated

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
