"""Kernels and the runner are clean under the Khronos validation layer, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LAYER = "VK_LAYER_KHRONOS_validation"
ROOT = Path(__file__).parents[2]
SCRIPT = f"""
import numpy as np
import vulkan as vk
from tests.vulkan.device import Device
from tests.vulkan.test_kernels import kernels

if {LAYER!r} not in [layer.layerName for layer in vk.vkEnumerateInstanceLayerProperties()]:
    print("no layer")
    raise SystemExit
device = Device(layers=[{LAYER!r}])
x, y = np.ones(256, np.int8), np.zeros(256, np.int8)
device.run(kernels()["reverse"], [x, y])
a, b, c = (np.ones(shape, np.float16) for shape in ((65, 50), (50, 70), (65, 70)))
named = {{"a_ptr": a, "b_ptr": b, "out_ptr": c}}
kernel = kernels()["matmul_float16"]
device.run(kernel, [named[binding.name] for binding in kernel.buffers])
vk.vkCreateBuffer(device.device, vk.VkBufferCreateInfo(size=0, usage=vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT), None)
print("ran", int(y.sum()), float(c[0, 0]))
"""


@pytest.mark.usefixtures("device")
def test_kernels_are_clean() -> None:
    """Of two kernels and a buffer of no bytes, which shows that the layer is heard, only the buffer is reported."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    if "no layer" in done.stdout:
        pytest.skip(f"{LAYER} is not installed")
    assert "ran 256 50.0" in done.stdout
    reported = set(re.findall(r"VUID-[\w-]+|UNASSIGNED-[\w-]+", done.stdout + done.stderr))
    assert reported == {"VUID-VkBufferCreateInfo-size-00912"}
